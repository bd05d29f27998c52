"""The target's states before and after steering: drawings for an evaluation's section."""

import math

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from contrans_dist.evaluation.analysis import Run, Verdict, number, strength_text
from contrans_dist.report.figures import concept_look
from contrans_dist.report.parts import Drawing, Studio
from contrans_dist.report.pictures import Picture, concept_states, picture, picture_table
from contrans_dist.report.svg import label
from contrans_dist.vectors.concept_vector import ConceptVector

_FIRST_PICTURE = "fear"
"""The concept that the paper's Fig. 2b shows."""


def plane_drawings(
    run: Run,
    block: int | None,
    verdict: Verdict,
    vectors: dict[str, ConceptVector],
    anchor: str,
    studio: Studio,
) -> list[Drawing]:
    """One large picture and, with several concepts, one of all; none without states or vectors."""
    states = run.harvests.get("contrast-target")
    labelled = concept_states(states, block) if states and block is not None else None
    if labelled is None or block is None:
        return []
    values, labels = labelled
    shown = [
        picture(values, labels, vectors[concept], block, verdict.strength)
        for concept in sorted(vectors)
        if concept in labels
    ]
    if not shown:
        return []
    first = next((one for one in shown if one.concept == _FIRST_PICTURE), shown[0])
    at = strength_text(first.strength)
    drawings = [
        studio.draw(
            (anchor, "pca"),
            lambda: picture_figure(first),
            picture_table(first),
            f"The target's states at block {first.block}, in the plane of their two main directions. "
            f"Filled: before. Hollow: after adding {at} × the vector of {first.concept}; arrows join the "
            f"centres. Of the other concepts' states, {number(first.near_before, True, 0)} lie nearest to "
            f"{first.concept} before and {number(first.near_after, True, 0)} after (in full width).",
        )
    ]
    if len(shown) > 1:
        lines = [
            picture_table(one).add_column(0, "steered_to", [[one.concept] * len(labels)]) for one in shown
        ]
        drawings.append(
            studio.draw(
                (anchor, "pca-all"),
                lambda: pictures_figure(shown),
                pa.concat_tables(lines),
                f"The same for every concept, each in its own plane, at strength {at}. In brackets: share of "
                "the other concepts' states that lie nearest to the concept, before → after.",
            )
        )
    return drawings


_SHAPE = 0.64
"""Height of a small picture over its width."""


def picture_figure(shown: Picture) -> Figure:
    """Fig. 2b: states before (filled) and after steering (hollow), arrows between the concepts' centres."""
    extent = np.ptp(np.concatenate([shown.before, shown.after]), axis=0)
    shape = float(np.clip(extent[1] / max(float(extent[0]), 1e-9), 0.4, 0.8))
    figure = Figure(figsize=(6.4, 6.1 * shape + 0.7), layout="constrained")
    axes = figure.add_subplot()
    draw_picture(axes, shown, shape=shape)
    axes.set_xlabel(f"First direction ({100 * shown.explained[0]:.0f}\u202f% of the variance)")
    axes.set_ylabel(f"Second direction ({100 * shown.explained[1]:.0f}\u202f%)")
    _legend(figure, shown)
    return figure


def pictures_figure(shown: list[Picture]) -> Figure:
    """One small picture a concept, each in its own plane, with the share of states that came near."""
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(6.4, 1.75 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, one in zip(grid.flat, shown, strict=False):
        draw_picture(axes, one, shape=_SHAPE, size=9)
        shares = f"{number(one.near_before, True, 0)} → {number(one.near_after, True, 0)}"
        axes.set_title(f"{label(one.concept, 16)} ({shares})", fontsize=9)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    _legend(figure, shown[0])
    return figure


def draw_picture(axes: Axes, shown: Picture, shape: float, size: float = 20) -> None:
    """Draw one picture; `size` of a state's mark, in square points."""
    labels = np.array(shown.labels)
    _equal_limits(axes, np.concatenate([shown.before, shown.after]), shape)
    before, after = shown.centres(), shown.centres(after=True)
    for index, concept in enumerate(sorted(before)):
        colour, marker = concept_look(index)
        start, end = shown.before[labels == concept], shown.after[labels == concept]
        axes.scatter(
            start[:, 0], start[:, 1], s=size, color=colour, marker=marker, alpha=0.75, linewidths=0, zorder=3
        )
        if concept == shown.concept:
            continue
        axes.scatter(
            end[:, 0], end[:, 1], s=size, facecolors="none", edgecolors=colour, marker=marker, alpha=0.6,
            linewidths=0.8, zorder=3,
        )  # fmt: skip
        arrow = axes.annotate(
            "", xy=tuple(after[concept]), xytext=tuple(before[concept]), zorder=5,
            arrowprops={"arrowstyle": "-|>", "mutation_scale": 4 * size**0.5, "color": colour,
                        "linewidth": 0.4 * size**0.5, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        # A white rim, without which the head drowns among marks of its own colour.
        assert arrow.arrow_patch is not None
        arrow.arrow_patch.set_path_effects([withStroke(linewidth=0.4 * size**0.5 + 2, foreground="white")])
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(figure: Figure, shown: Picture) -> None:
    """Every concept's mark below the panels: names among the states would hide them."""
    marks = [
        Line2D([], [], linestyle="none", color=colour, marker=marker, markersize=6, label=label(concept, 22))
        for index, concept in enumerate(sorted(shown.centres()))
        for colour, marker in [concept_look(index)]
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 6), frameon=False,
                  fontsize=8.5, handletextpad=0.1, columnspacing=1.2)  # fmt: skip


def _equal_limits(axes: Axes, points: NDArray[np.float64], shape: float) -> None:
    """Limits around points `[n, 2]` that give both directions one scale in a box of fixed shape."""
    axes.set_box_aspect(shape)
    low, high = points.min(axis=0), points.max(axis=0)
    middle, extent = (low + high) / 2, 1.12 * (high - low)
    width = max(float(extent[0]), float(extent[1]) / shape, 1e-9)
    axes.set_xlim(middle[0] - width / 2, middle[0] + width / 2)
    axes.set_ylim(middle[1] - width * shape / 2, middle[1] + width * shape / 2)
