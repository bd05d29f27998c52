"""The run's analyses as drawings: t-SNE of states and of differences, and how alike the maps are."""

import math
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import Projection, Run, Similarity, read_projections, read_similarity
from contrans_dist.report.figures import concept_look
from contrans_dist.report.heatmaps import heat_figure
from contrans_dist.report.parts import Drawing, Studio
from contrans_dist.report.svg import label

_MOST_POINTS = 3000
"""Points in one figure: more swell the page and hide one another."""
_WIDTH = 4.6
"""Inches: two figures stand side by side."""
_MEANINGS = {
    "states": "t-SNE of the hidden states of the {side}, by concept (ConTrans, Figs. 7 and 8).",
    "differences": "t-SNE of the differences between positive and negative states of the {side}, by concept "
    "(L-Cross Modulation, Fig. 3).",
}


def analysis_drawings(run: Run, studio: Studio) -> tuple[list[Drawing], list[str]]:
    """A drawing for every analysis that the run holds; and those that cannot be read, one line each."""
    drawings: list[Drawing] = []
    try:
        _draw(run, studio, drawings)
    except UserError as error:
        return drawings, [str(error)]
    return drawings, []


def _draw(run: Run, studio: Studio, drawings: list[Drawing]) -> None:
    for found in read_projections(run):
        caption = _MEANINGS[found.kind].format(side=found.side)
        drawings.append(
            studio.draw(
                studio.name(found.kind, found.side),
                partial(projection_figure, found),
                found.table,
                f"{caption} Distances between far groups mean little.",
            )
        )
    similarity = read_similarity(run)
    if similarity:
        drawings.append(
            studio.draw(
                studio.name("map-similarity"),
                lambda: similarity_figure(similarity),
                similarity.table,
                "How alike the maps fitted on different prompts are.",
            )
        )


def projection_figure(found: Projection) -> Figure:
    """One panel a model and block, a colour and mark a concept."""
    panels = found.panels
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = _WIDTH / columns
    figure = Figure(figsize=(_WIDTH, min(size, 3.4) * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    total = sum(len(panel.points) for panel in panels)
    step = max(1, math.ceil(total / _MOST_POINTS))
    handles = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        own = np.array(panel.concepts)
        for index, concept in enumerate(found.concepts):
            points = panel.points[own == concept][::step]
            if not len(points):
                continue
            colour, marker = concept_look(index)
            handles[concept] = axes.scatter(
                points[:, 0], points[:, 1], s=18 if columns < 2 else 12, alpha=0.75, linewidths=0,
                color=colour, marker=marker, label=label(concept, 22),
            )  # fmt: skip
        axes.set_title(f"{label(panel.model.rsplit('/', 1)[-1], 24)}, block {panel.block}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    shown = [handles[concept] for concept in found.concepts if concept in handles]
    figure.legend(handles=shown, loc="outside lower center", ncols=3,
                  frameon=False, fontsize=8.5, markerscale=1.6, handletextpad=0.1)  # fmt: skip
    return figure


def similarity_figure(found: Similarity) -> Figure:
    """Maps against maps."""
    return heat_figure(found.values, found.names, found.names, ("", ""), "Similarity of maps", upward=False)
