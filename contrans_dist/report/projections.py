"""A run's analyses as drawings: t-SNE of states and of differences, and how alike the maps are."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import Run
from contrans_dist.report.figures import concept_look
from contrans_dist.report.heatmaps import heat_figure
from contrans_dist.report.parts import Drawing, Studio
from contrans_dist.report.svg import label
from contrans_dist.store.location import Location
from contrans_dist.store.tables import (
    ANALYSES,
    SIMILARITIES,
    PointRow,
    SimilarityRow,
    read_rows,
    table_of,
)

R = TypeVar("R")
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
    """A drawing for every analysis that the run holds and its recipe names; and those that cannot be read or
    are left out, one line each."""
    drawings: list[Drawing] = []
    problems: list[str] = []
    folder = run.location / ANALYSES
    there = _named(run, folder, problems)
    for kind in _MEANINGS:
        for side in ("source", "target"):
            location = folder / f"{kind}-{side}.parquet"
            if location.name in there:
                drawings += _told(problems, location, PointRow, partial(_projection, kind, side, studio))
    if SIMILARITIES in there:
        drawings += _told(problems, folder / SIMILARITIES, SimilarityRow, partial(_similarity, studio))
    return drawings, problems


def _named(run: Run, folder: Location, problems: list[str]) -> list[str]:
    """The files of a run's analyses without those that an earlier recipe has left, which are told."""
    names, kinds = folder.names(), run.recipe.analyses
    if kinds is None:
        return names
    named = [name for name in names if name.startswith(tuple(kinds))]
    problems += [
        f"{folder / name}: left out, the recipe does not name it" for name in names if name not in named
    ]
    return named


def _told(
    problems: list[str], location: Location, row: type[R], draw: Callable[[list[R]], Drawing]
) -> list[Drawing]:
    """The drawing of a file; none of one without rows, and of one that cannot be read, which is told."""
    try:
        rows = read_rows(location, row)
    except UserError as error:
        problems.append(str(error))
        return []
    return [draw(rows)] if rows else []


def _projection(kind: str, side: str, studio: Studio, points: list[PointRow]) -> Drawing:
    return studio.draw(
        (kind, side),
        lambda: projection_figure(points),
        table_of(points, PointRow),
        f"{_MEANINGS[kind].format(side=side)} Distances between far groups mean little.",
    )


def _similarity(studio: Studio, similar: list[SimilarityRow]) -> Drawing:
    return studio.draw(
        ("map-similarity",),
        lambda: similarity_figure(similar),
        table_of(similar, SimilarityRow),
        "How alike the maps fitted on different prompts are.",
    )


def projection_figure(points: list[PointRow]) -> Figure:
    """One panel a model and block, a colour and mark a concept."""
    panels = list(dict.fromkeys((point.model, point.block) for point in points))
    concepts = sorted({point.concept for point in points})
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = _WIDTH / columns
    figure = Figure(figsize=(_WIDTH, min(size, 3.4) * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    handles = {}
    for axes, (model, block) in zip(grid.flat, panels, strict=False):
        for index, concept in enumerate(concepts):
            shown = [
                (point.x, point.y)
                for point in points
                if (point.model, point.block, point.concept) == (model, block, concept)
            ][::step]
            if not shown:
                continue
            colour, marker = concept_look(index)
            handles[concept] = axes.scatter(
                *np.transpose(shown), s=18 if columns < 2 else 12, alpha=0.75, linewidths=0,
                color=colour, marker=marker, label=label(concept, 22),
            )  # fmt: skip
        axes.set_title(f"{label(model.rsplit('/', 1)[-1], 24)}, block {block}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.legend(handles=[handles[concept] for concept in concepts], loc="outside lower center", ncols=3,
                  frameon=False, fontsize=8.5, markerscale=1.6, handletextpad=0.1)  # fmt: skip
    return figure


def similarity_figure(similar: list[SimilarityRow]) -> Figure:
    """Maps against maps; a pair of which one direction is missing has the other's value."""
    names = list(dict.fromkeys([*(row.a for row in similar), *(row.b for row in similar)]))
    known = {(row.b, row.a): row.similarity for row in similar}
    known |= {(row.a, row.b): row.similarity for row in similar}
    values = [[known.get((a, b)) for b in names] for a in names]
    return heat_figure(values, names, names, ("", ""), "Similarity of maps", upward=False)
