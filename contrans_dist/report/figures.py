"""The figures of the report, drawn with matplotlib from what `analysis` read."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from contrans_dist.benchmarks import Metric
from contrans_dist.evaluation.analysis import Evaluation, number, strength_text
from contrans_dist.evaluation.analysis.names import COST
from contrans_dist.evaluation.conditions import Condition, condition_of
from contrans_dist.report.svg import label
from contrans_dist.store.results import Score

_GAP = 0.062
"""Between two names beside a panel, as a share of its height."""
_STEEP = 20
"""From this factor between its ends a value axis is drawn as a logarithm."""
_CONCEPT_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b04f8c", "#c27c00", "#56b4e9", "#6f6f6f", "#7a5195"]
_CONCEPT_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "p"]


def concept_look(index: int) -> tuple[str, str]:
    """Colour and marker of the concept at a place; no pair of them comes twice among 64."""
    turn, place = divmod(index, len(_CONCEPT_COLOURS))
    return _CONCEPT_COLOURS[place], _CONCEPT_MARKERS[(place + turn) % len(_CONCEPT_MARKERS)]


def draw_line(
    axes: Axes, condition: Condition, xs: Sequence[float], scores: Sequence[Score], small: bool = False
) -> None:
    """One condition's line in its look, the intervals as a band; a `small` one has none."""
    colour, marker, dash = condition.look
    main = condition.role == "tested"
    if not small:
        low, high = zip(*(score.ends for score in scores), strict=True)
        axes.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(
        xs, [score.value for score in scores], color=colour, marker=marker, linestyle=dash,
        linewidth=2.6 if main else 1.5, markersize=4 if small else 7 if main else 5.5,
        markeredgecolor="white", markeredgewidth=0.7, zorder=4 if main else 3, clip_on=False,
    )  # fmt: skip


def _curve(axes: Axes, evaluation: Evaluation, name: str, key: str, small: bool = False) -> float | None:
    """Draw one condition over strength; returns its last value, where a label may stand."""
    points, condition = evaluation.curve(name, key), condition_of(name)
    if not any(strength for strength, _ in points):
        return None
    strengths, scores = zip(*points, strict=True)
    if condition.no_vector:
        colour, _, dash = condition.look
        axes.axhline(scores[-1].value, color=colour, linestyle=dash, linewidth=1.3, zorder=2)
    else:
        draw_line(axes, condition, strengths, scores, small)
    return float(scores[-1].value)


def value_axis(axis: Axis, kind: Metric, most: float = 1.0) -> None:
    """Limits and ticks of a metric's axis: shares run from 0 to the first round share above `most`."""
    if kind.percent:
        top = next((top for top in (0.08, 0.2, 0.4, 0.6, 0.8) if most <= top), 1.0)
        axis.set_view_interval(0, top, ignore=True)
        axis.set_ticks(list(np.linspace(0, top, 5)))
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\u202f%"))


def strength_figure(
    evaluation: Evaluation,
    key: str,
    perplexity: Evaluation | None = None,
    limit: float | None = None,
    chosen: dict[str, float] | None = None,
) -> Figure:
    """A metric over steering strength: one line a condition, its interval as a band, named at its end.

    With `perplexity`, what the same steering does to it stands below, on the same axis; `limit` is the most
    that was allowed. `chosen` strengths are ringed. Ways to answer that have no strength are level lines.
    """
    figure = Figure(figsize=(6.4, 5.4 if perplexity else 3.6), layout="constrained")
    heights = [2, 1] if perplexity else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _curves(panels[0], evaluation, key, chosen or {})
    if perplexity:
        # Half as high as the panel above it.
        _curves(panels[1], perplexity, COST, chosen or {}, evaluation.conditions, 2 * _GAP)
        if limit is not None:
            panels[1].axhline(limit, color="#a33b00", linewidth=1, linestyle=(0, (4, 3)), zorder=2)
            panels[1].annotate(
                "budget", (0, limit), xycoords=("axes fraction", "data"), xytext=(3, 3),
                textcoords="offset points", color="#a33b00", fontsize=8,
            )  # fmt: skip
    strengths = sorted(
        {*([0.0] if evaluation.base(key) else []), *evaluation.strengths}
        | set(perplexity.strengths if perplexity else [])
    )
    if len(strengths) <= 14:
        panels[-1].set_xticks(strengths, [strength_text(strength) for strength in strengths])
    panels[-1].set_xlabel("Steering strength")
    return figure


def _curves(
    axes: Axes,
    evaluation: Evaluation,
    key: str,
    chosen: dict[str, float],
    among: list[str] | None = None,
    gap: float = _GAP,
) -> None:
    """Every condition in one panel, named at the right."""
    ends, kind = [], evaluation.metric(key)
    for condition in reversed(evaluation.conditions):
        if among is not None and condition not in among:
            continue
        value = _curve(axes, evaluation, condition, key)
        if value is None:
            continue
        ends.append((value, condition))
        score = evaluation.score(condition, chosen.get(condition, math.nan), key)
        if score and condition_of(condition).role != "control":
            axes.plot(
                chosen[condition], score.value, marker="o", markersize=13, fillstyle="none",
                color=condition_of(condition).look[0], markeredgewidth=1.4, zorder=5, clip_on=False,
            )  # fmt: skip
    points = [score for c in evaluation.conditions for _, score in evaluation.curve(c, key)]
    value_axis(axes.yaxis, kind, max((score.top for score in points), default=1.0))
    values = [score.value for score in points]
    if not kind.percent and values and min(values) > 0 and max(values) > _STEEP * min(values):
        log_axis(axes)
    axes.set_ylabel(kind.title)
    axes.grid(axis="x", visible=False)
    name_ends(axes, ends, kind.percent, gap)


def log_axis(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers: the pages show text as it is, not as mathematics."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def name_ends(axes: Axes, ends: list[tuple[float, str]], as_percent: bool, gap: float = _GAP) -> None:
    """Name each line at its right end, (last value, condition), labels moved apart where they collide.

    `gap`: between two labels, as a share of the panel's height.
    """
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"
    places = [
        (math.log(value / low) / math.log(high / low)) if log else (value - low) / (high - low)
        for value, _ in ends
    ]
    for height, (value, condition) in zip(spread(places, gap), ends, strict=True):
        name = condition_of(condition)
        axes.annotate(
            f"{label(name.title)}  {number(value, as_percent)}",
            xy=(1, height),
            xycoords="axes fraction",
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            color=condition_of(condition).look[0],
            fontweight="bold" if name.role == "tested" else "normal",
            annotation_clip=False,
        )


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
    concepts = evaluation.groups(key)
    columns = min(3, len(concepts))
    rows = math.ceil(len(concepts) / columns)
    figure = Figure(figsize=(6.4, 1.7 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, concept in zip(grid.flat, concepts, strict=False):
        for condition in reversed(evaluation.conditions):
            _curve(axes, evaluation, condition, f"{concept}/{key}", small=True)
        axes.set_title(label(concept, 18))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", visible=False)
    for axes in grid.flat:
        # Only now: what is drawn later would move the limits of the panels before it.
        value_axis(axes.yaxis, evaluation.metric(key))
    for axes in grid.flat[len(concepts) :]:
        axes.set_visible(False)
    figure.supxlabel("Steering strength", fontsize=9.5, color="#444")
    return figure
