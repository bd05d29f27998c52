"""The figures of the report, drawn with matplotlib from what `analysis` read."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from contrans_dist.analysis import Evaluation, Grid, condition_name, metric, number, strength_text
from contrans_dist.report.svg import label

Look = tuple[str, str, Any]
"""Colour, marker, and dash in any form that matplotlib takes."""

# Okabe and Ito's palette: told apart by the colour-blind; marker and dash tell them apart in grey.
_LOOKS: dict[str, Look] = {
    "vector": ("#0072b2", "o", "-"),
    "lcross-own": ("#d55e00", "P", "-"),
    "lcross-unrelated": ("#8a5a00", "v", (0, (6, 2))),
    "self-align": ("#009e73", "s", "--"),
    "random": ("#6f6f6f", "X", ":"),
    "shuffled-map": ("#c27c00", "^", "-."),
    "other-concept": ("#b04f8c", "D", (0, (4, 1.5, 1, 1.5))),
    "random-map": ("#44403c", "<", (0, (1, 1))),
    "no-map": ("#7a5195", ">", (0, (3, 3))),
}
_SPARE = [("#3d7ea6", "h"), ("#8c510a", "p"), ("#5e8c31", "*"), ("#a63d57", "d")]
CONCEPT_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b04f8c", "#c27c00", "#56b4e9", "#6f6f6f", "#7a5195"]
CONCEPT_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "p"]


def look(condition: str) -> Look:
    """Colour, marker and dash of a condition, the same in every figure."""
    if condition in _LOOKS:
        return _LOOKS[condition]
    colour, marker = _SPARE[sum(condition.encode()) % len(_SPARE)]
    return colour, marker, (0, (2, 1))


def _curve(axes: Axes, evaluation: Evaluation, condition: str, key: str, band: bool) -> float | None:
    """Draw one condition over strength; returns its last value, where a label may stand."""
    points = evaluation.curve(condition, key)
    if not any(strength for strength, _ in points):
        return None
    colour, marker, dash = look(condition)
    main = condition_name(condition).role == "effect"
    strengths = [strength for strength, _ in points]
    if band:
        low, high = [score.low for _, score in points], [score.high for _, score in points]
        axes.fill_between(strengths, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(
        strengths,
        [score.value for _, score in points],
        color=colour,
        marker=marker,
        linestyle=dash,
        linewidth=2.6 if main else 1.5,
        markersize=(7 if main else 5.5) if band else 4,
        markeredgecolor="white",
        markeredgewidth=0.7,
        zorder=4 if main else 3,
        clip_on=False,
    )
    return points[-1][1].value


def _value_axis(axes: Axes, key: str) -> None:
    kind = metric(key)
    if kind.percent:
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u202f%"))


def strength_figure(evaluation: Evaluation, key: str) -> Figure:
    """A metric over steering strength: one line a condition, its interval as a band, named at its end."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for condition in reversed(evaluation.conditions):
        value = _curve(axes, evaluation, condition, key, band=True)
        if value is not None:
            ends.append((value, condition))
    _value_axis(axes, key)
    axes.set_xlabel("Steering strength")
    axes.set_ylabel(metric(key).title)
    strengths = [0.0, *evaluation.strengths] if evaluation.base(key) else evaluation.strengths
    axes.set_xticks(strengths, [strength_text(strength) for strength in strengths])
    axes.grid(axis="x", visible=False)
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for value, _ in ends], 0.062)
    for height, (value, condition) in zip(heights, ends, strict=True):
        name = condition_name(condition)
        axes.annotate(
            f"{label(name.title)}  {number(value, metric(key).percent)}",
            xy=(1, height),
            xycoords="axes fraction",
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            color=look(condition)[0],
            fontweight="bold" if name.role == "effect" else "normal",
            annotation_clip=False,
        )
    return figure


def spread(heights: list[float], gap: float) -> list[float]:
    """Move label heights (0 to 1) apart by at least `gap`, each as little as an even shift allows.

    Neighbours that collide become one group, centred where its members belong.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[list[int]] = []
    starts: list[float] = []
    for index in order:
        groups.append([index])
        starts.append(heights[index])
        while len(groups) > 1 and starts[-2] + gap * len(groups[-2]) > starts[-1]:
            groups[-2:] = [groups[-2] + groups[-1]]
            middle = float(np.mean([heights[member] for member in groups[-1]]))
            start = max(middle - gap * (len(groups[-1]) - 1) / 2, 0.0)
            starts[-2:] = [start]
    placed = [0.0] * len(heights)
    for start, group in zip(starts, groups, strict=True):
        for offset, member in enumerate(group):
            placed[member] = start + gap * offset
    return placed


def concepts_figure(evaluation: Evaluation, key: str) -> Figure:
    """The same metric for every concept: small multiples with common axes."""
    concepts = evaluation.concepts
    columns = min(3, len(concepts))
    rows = math.ceil(len(concepts) / columns)
    figure = Figure(figsize=(6.4, 1.7 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, concept in zip(grid.flat, concepts, strict=False):
        for condition in reversed(evaluation.conditions):
            _curve(axes, evaluation, condition, f"{concept}/{key}", band=False)
        axes.set_title(label(concept, 18))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", visible=False)
        _value_axis(axes, key)
    for axes in grid.flat[len(concepts) :]:
        axes.set_visible(False)
    figure.supxlabel("Steering strength", fontsize=9.5, color="#444")
    return figure


def _frame(x: int, y: int) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2.8, clip_on=False)


def grid_figure(grid: Grid, title: str, chosen: tuple[int, int] | None, as_percent: bool = False) -> Figure:
    """Values by block pair as a heat map; the chosen pair is framed, values are printed when they fit."""
    rows, columns = len(grid.source), len(grid.target)
    cell = min(0.46, 4.8 / columns, 4.8 / rows)
    figure = Figure(
        figsize=(max(columns * cell, 1.6) + 1.6, max(rows * cell, 1.2) + 1.1), layout="constrained"
    )
    axes = figure.add_subplot()
    values = np.array([[np.nan if v is None else v for v in line] for line in grid.values], np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(min(finite.min(), 0)), float(max(finite.max(), 1e-6))) if finite.size else (0.0, 1.0)
    low = max(low, -high)
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, origin="lower", interpolation="none")
    axes.grid(visible=False)
    axes.set_xlabel("Target block")
    axes.set_ylabel("Source block")
    step_x, step_y = math.ceil(columns / 16), math.ceil(rows / 16)
    axes.set_xticks(range(0, columns, step_x), [str(block) for block in grid.target[::step_x]])
    axes.set_yticks(range(0, rows, step_y), [str(block) for block in grid.source[::step_y]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    if cell >= 0.38:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                light = value < low + 0.55 * (high - low)
                text = f"{100 * value:.0f}" if as_percent else f"{value:.2f}".replace("0.", ".")
                axes.text(column, row, text, ha="center", va="center", fontsize=8,
                          color="white" if light else "#111")  # fmt: skip
    if chosen and chosen[0] in grid.source and chosen[1] in grid.target:
        x, y = grid.target.index(chosen[1]), grid.source.index(chosen[0])
        axes.add_patch(_frame(x, y))
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    if as_percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u202f%"))
    return figure
