"""Figures of the states themselves: the plane before and after steering, and norms by block."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from contrans_dist.evaluation.analysis import Picture, number
from contrans_dist.report.figures import concept_look, log_axis
from contrans_dist.report.svg import label

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


def norms_figure(norms: dict[str, dict[int, float]], marked: int | None) -> Figure:
    """Median residual norm over blocks: one line a model, one mark where a single block is known.

    The steered block of the target is marked.
    """
    figure = Figure(figsize=(6.4, 2.5), layout="constrained")
    axes = figure.add_subplot()
    looks = [("#d55e00", "s", "--"), ("#0072b2", "o", "-")]
    for index, (name, values) in enumerate(norms.items()):
        colour, marker, dash = looks[index % len(looks)]
        blocks = sorted(values)
        heights = [values[block] for block in blocks]
        axes.plot(blocks, heights, color=colour, marker=marker, linestyle=dash, markeredgecolor="white",
                  markersize=5 if len(blocks) <= 40 else 3, clip_on=False, zorder=3)  # fmt: skip
        axes.annotate(label(name), (blocks[-1], heights[-1]), xytext=(8, 0), textcoords="offset points",
                      color=colour, va="center", fontweight="bold", annotation_clip=False)  # fmt: skip
    if marked is not None:
        axes.axvline(marked, color="#999", linewidth=1, linestyle=":")
        axes.annotate("steered", (marked, 1), xycoords=("data", "axes fraction"), xytext=(-4, -2),
                      textcoords="offset points", ha="right", va="top", color="#555",
                      fontsize=8.5)  # fmt: skip
    if _spans(norms):
        log_axis(axes)
    else:
        axes.set_ylim(0, 1.15 * max(max(values.values()) for values in norms.values()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Block")
    axes.set_ylabel("Median residual norm")
    axes.grid(axis="x", visible=False)
    return figure


def _spans(norms: dict[str, dict[int, float]]) -> bool:
    values = [value for line in norms.values() for value in line.values() if value > 0]
    return bool(values) and max(values) > 20 * min(values)
