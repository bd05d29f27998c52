"""Figures of the states themselves: the plane before and after steering, and norms by block."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from contrans_dist.analysis import Picture, number
from contrans_dist.report.figures import CONCEPT_COLOURS, CONCEPT_MARKERS, log_axis, spread
from contrans_dist.report.svg import label

_SHAPE = 0.64
"""Height of a small picture over its width."""


def picture_figure(shown: Picture) -> Figure:
    """Fig. 2b: states before (filled) and after steering (hollow), arrows between the concepts' centres."""
    extent = np.ptp(np.concatenate([shown.before, shown.after]), axis=0)
    shape = float(np.clip(extent[1] / max(float(extent[0]), 1e-9), 0.4, 0.8))
    figure = Figure(figsize=(6.4, 6.1 * shape + 0.3), layout="constrained")
    axes = figure.add_subplot()
    draw_picture(axes, shown, names=True, shape=shape)
    axes.set_xlabel(f"First direction ({100 * shown.explained[0]:.0f}\u202f% of the variance)")
    axes.set_ylabel(f"Second direction ({100 * shown.explained[1]:.0f}\u202f%)")
    return figure


def pictures_figure(shown: list[Picture]) -> Figure:
    """One small picture a concept, each in its own plane, with the share of states that came near."""
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(6.4, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, one in zip(grid.flat, shown, strict=False):
        draw_picture(axes, one, names=False, shape=_SHAPE)
        shares = f"{number(one.near_before, True, 0)} → {number(one.near_after, True, 0)}"
        axes.set_title(f"{label(one.concept, 16)} ({shares})", fontsize=9)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    return figure


def draw_picture(axes: Axes, shown: Picture, names: bool, shape: float) -> None:
    """Draw one picture; with `names`, each concept is named beside its centre before steering."""
    labels = np.array(shown.labels)
    _equal_limits(axes, np.concatenate([shown.before, shown.after]), shape)
    before, after = shown.centres(), shown.centres(after=True)
    heights = _label_heights(axes, {c: float(point[1]) for c, point in before.items() if c != shown.concept})
    heights[shown.concept] = float(before[shown.concept][1])
    for index, concept in enumerate(sorted(before)):
        colour = CONCEPT_COLOURS[index % len(CONCEPT_COLOURS)]
        marker = CONCEPT_MARKERS[index % len(CONCEPT_MARKERS)]
        own = concept == shown.concept
        start, end = shown.before[labels == concept], shown.after[labels == concept]
        axes.scatter(
            start[:, 0], start[:, 1], s=20, color=colour, marker=marker, alpha=0.75, linewidths=0, zorder=3
        )
        if not own:
            axes.scatter(
                end[:, 0],
                end[:, 1],
                s=20,
                facecolors="none",
                edgecolors=colour,
                marker=marker,
                alpha=0.6,
                linewidths=0.8,
            )
            axes.annotate(
                "",
                xy=tuple(after[concept]),
                xytext=tuple(before[concept]),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": colour,
                    "linewidth": 1.8,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
                zorder=5,
            )
        if names:
            axes.annotate(
                label(concept, 14),
                xy=tuple(before[concept]),
                xytext=(before[concept][0], heights[concept]),
                ha="center",
                va="center",
                fontweight="bold",
                color=colour,
                zorder=6,
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.9},
            )
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])


def _equal_limits(axes: Axes, points: NDArray[np.float64], shape: float) -> None:
    """Limits around points `[n, 2]` that give both directions one scale in a box of fixed shape."""
    axes.set_box_aspect(shape)
    low, high = points.min(axis=0), points.max(axis=0)
    middle, extent = (low + high) / 2, 1.12 * (high - low)
    width = max(float(extent[0]), float(extent[1]) / shape, 1e-9)
    axes.set_xlim(middle[0] - width / 2, middle[0] + width / 2)
    axes.set_ylim(middle[1] - width * shape / 2, middle[1] + width * shape / 2)


def _label_heights(axes: Axes, heights: dict[str, float]) -> dict[str, float]:
    """Heights in data units at which the labels of neighbouring centres do not cover one another."""
    low, high = axes.get_ylim()
    placed = spread([(height - low) / (high - low) for height in heights.values()], 0.07)
    return {concept: low + place * (high - low) for concept, place in zip(heights, placed, strict=True)}


def norms_figure(norms: dict[str, dict[int, float]], marked: int | None) -> Figure:
    """Median residual norm over blocks, one line a model; the steered block of the target is marked."""
    figure = Figure(figsize=(6.4, 2.5), layout="constrained")
    axes = figure.add_subplot()
    looks = [("#d55e00", "s", "--"), ("#0072b2", "o", "-")]
    for index, (name, values) in enumerate(norms.items()):
        colour, marker, dash = looks[index % len(looks)]
        blocks = sorted(values)
        heights = [values[block] for block in blocks]
        axes.plot(blocks, heights, color=colour, marker=marker, linestyle=dash, markeredgecolor="white",
                  markersize=5 if len(blocks) <= 40 else 3)  # fmt: skip
        axes.annotate(label(name), (blocks[-1], heights[-1]), xytext=(8, 0), textcoords="offset points",
                      color=colour, va="center", fontweight="bold", annotation_clip=False)  # fmt: skip
    if marked is not None:
        axes.axvline(marked, color="#999", linewidth=1, linestyle=":")
        axes.annotate("steered", (marked, 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
                      textcoords="offset points", va="top", color="#555", fontsize=8.5)  # fmt: skip
    if _spans(norms):
        log_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Block")
    axes.set_ylabel("Median residual norm")
    axes.grid(axis="x", visible=False)
    return figure


def _spans(norms: dict[str, dict[int, float]]) -> bool:
    values = [value for line in norms.values() for value in line.values() if value > 0]
    return bool(values) and max(values) > 20 * min(values)
