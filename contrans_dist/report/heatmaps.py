"""Heat maps: values by block pair, and by source and target of several runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from contrans_dist.evaluation.analysis import BlockTable
from contrans_dist.report.svg import label

Values = Sequence[Sequence[float | None]]


def grid_figure(
    grid: BlockTable, title: str, chosen: tuple[int, int] | None, as_percent: bool = False
) -> Figure:
    """Values by block pair; the chosen pair is framed."""
    framed = None
    if chosen and chosen[0] in grid.source and chosen[1] in grid.target:
        framed = grid.source.index(chosen[0]), grid.target.index(chosen[1])
    rows, columns = [str(block) for block in grid.source], [str(block) for block in grid.target]
    return heat_figure(
        grid.values, rows, columns, ("Source block", "Target block"), title, as_percent, framed
    )


def heat_figure(
    values: Values,
    rows: Sequence[str],
    columns: Sequence[str],
    axes_titles: tuple[str, str],
    title: str,
    as_percent: bool = False,
    framed: tuple[int, int] | None = None,
    upward: bool = True,
) -> Figure:
    """Values `[rows][columns]` as a heat map, printed where they fit; `framed` is a (row, column).

    `upward` has the first row at the bottom, as an axis; names read downward. Values below 0 get a scale of
    two colours around white, so that a loss is never taken for a small gain.
    """
    n_rows, n_columns = len(rows), len(columns)
    cell = min(0.46 if upward else 0.62, 4.8 / n_columns, 4.8 / n_rows)
    names = [label(name, 22) for name in rows], [label(name, 22) for name in columns]
    margin = 0.075 * max(map(len, names[0]), default=0)
    tilted = not upward and max(map(len, names[1]), default=0) * 0.075 > cell
    below = 0.06 * max(map(len, names[1]), default=0) if tilted else 0.0
    figure = Figure(
        figsize=(max(n_columns * cell, 1.6) + 1.6 + margin, max(n_rows * cell, 1.2) + 1.1 + below),
        layout="constrained",
    )
    axes = figure.add_subplot()
    array = np.array([[np.nan if v is None else v for v in line] for line in values], np.float64)
    low, high, signed = _scale(array, two_sided=not upward)
    image = axes.imshow(
        array, cmap="PuOr_r" if signed else "cividis", vmin=low, vmax=high,
        origin="lower" if upward else "upper", interpolation="none",
    )  # fmt: skip
    axes.grid(visible=False)
    axes.set_ylabel(axes_titles[0])
    axes.set_xlabel(axes_titles[1])
    step_x, step_y = math.ceil(n_columns / 16), math.ceil(n_rows / 16)
    turn: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
    axes.set_xticks(range(0, n_columns, step_x), names[1][::step_x], **turn)
    axes.set_yticks(range(0, n_rows, step_y), names[0][::step_y])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    if cell >= 0.38:
        for (row, column), value in np.ndenumerate(array):
            if np.isfinite(value):
                axes.text(column, row, _cell_text(value, as_percent), ha="center", va="center", fontsize=8,
                          color=_ink((value - low) / (high - low), signed))  # fmt: skip
    if framed:
        axes.add_patch(_frame(framed[1], framed[0]))
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    if as_percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u202f%"))
    return figure


def _cell_text(value: float, as_percent: bool) -> str:
    """A number short enough for a cell: no sign on a zero, no zero before the point."""
    text = f"{100 * value:.0f}" if as_percent else f"{value:.2f}".replace("0.", ".")
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def _scale(values: np.ndarray, two_sided: bool) -> tuple[float, float, bool]:
    """Lowest and highest colour, and whether the scale has a white middle at 0."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0, False
    low, high = float(min(finite.min(), 0)), float(max(finite.max(), 1e-6))
    if two_sided and low < 0:
        most = max(high, -low)
        return -most, most, True
    return max(low, -high), high, False


def _ink(place: float, signed: bool) -> str:
    """Colour of a number that stands on a colour of the scale, by its place from 0 to 1."""
    dark = abs(place - 0.5) > 0.36 if signed else place < 0.55
    return "white" if dark else "#111"


def _frame(x: int, y: int) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2.8, clip_on=False)
