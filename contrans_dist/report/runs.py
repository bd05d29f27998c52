"""Several runs: tables and figures, run by run, along an axis, or by source and target."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from contrans_dist.evaluation.analysis import strength_text
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.compare import Matched, Pairs
from contrans_dist.report.figures import draw_line, name_ends, value_axis
from contrans_dist.report.heatmaps import heat_figure
from contrans_dist.report.parts import Cell, Table, score_cell
from contrans_dist.report.published import figure_text
from contrans_dist.report.svg import label
from contrans_dist.report.tables import read_at

Gains = Mapping[str, tuple[float, float | None]]
_WIDE = 50
"""From this factor between the ends of an axis it is drawn as a logarithm."""


def runs_table(matched: Matched, key: str) -> Table:
    """Run by condition: value, interval, strength; what the paper found beside it.

    Figures of the paper for the very run stand in its cells; others in a row of their own, above.
    """
    conditions = ("base", *matched.conditions)
    head = ["Run", "No steering", *(condition_of(c).title for c in matched.conditions)]
    rows = [
        [Cell(run), *(_cell(matched, run, condition, key) for condition in conditions)]
        for run in matched.by_run
    ]
    papers = any(cell.aside for row in rows for cell in row)
    paper = " Inside, outside: where the paper's value lies in it." if papers else ""
    return Table(
        head,
        [*_stand_ins(matched, key, conditions), *rows],
        f"{how(matched, key)} In brackets: 95\u202f% interval.{paper}",
    )


def _cell(matched: Matched, run: str, condition: str, key: str) -> Cell:
    """A score, and the paper's value for this very run with whether our interval holds it."""
    point, name, kind = matched.point(run, condition, key), condition_of(condition), matched.metric(key)
    score = point.score if point else None
    cell = score_cell(score, kind.percent, False, "main" if name.role == "tested" else "")
    at = f" at {strength_text(point.strength)}" if point and point.strength and not name.no_vector else ""
    figures = matched.papers.get(run)
    paper = figures.values.get(condition, {}).get(key) if figures and figures.of_this_run else None
    aside = ""
    if paper is not None:
        inside = score.holds(paper) if score else None
        judged = "" if inside is None else ", inside" if inside else ", outside"
        aside = f"paper {figure_text(paper, kind)}{judged}"
    return Cell(cell.text, cell.note + at, cell.kind, aside=aside)


def _stand_ins(matched: Matched, key: str, conditions: Sequence[str]) -> list[list[Cell]]:
    """A row for each run of a paper that stands beside runs of which the paper has no figures."""
    rows = {}
    for figures in matched.papers.values():
        if figures.of_this_run or figures.run in matched.by_run:
            continue
        values = [figures.values.get(condition, {}).get(key) for condition in conditions]
        if any(value is not None for value in values):
            cells = [
                Cell("–", kind="quiet") if value is None else Cell(figure_text(value, matched.metric(key)))
                for value in values
            ]
            rows[figures.source, figures.run] = [Cell(figures.title, figures.source), *cells]
    return list(rows.values())


def how(matched: Matched, key: str) -> str:
    """How the strength of each cell came about."""
    evaluations = matched.by_run.values()
    if matched.metric(key).cost:
        ways = dict.fromkeys(read_at(evaluation, key) for evaluation in evaluations)
        return f"Each condition at {' or '.join(ways)}."
    chosen = [evaluation.search is not None for evaluation in evaluations]
    if all(chosen):
        return "Each condition at the strength that was chosen on validation items."
    best = "Each condition at its best strength, which favours it a little."
    return f"{best} Where strengths were chosen on validation items, at that." if any(chosen) else best


def axis_figure(matched: Matched, key: str, axis: str, places: list[float] | None) -> Figure:
    """A metric over the runs, one line a condition; `places` are the runs' positions, None for even steps."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    runs = list(matched.by_run)
    at = dict(zip(runs, places or map(float, range(len(runs))), strict=True))
    ends = []
    for condition in reversed(["base", *matched.conditions]):
        scores = {at[run]: point.score for run in runs if (point := matched.point(run, condition, key))}
        if scores:
            xs = sorted(scores)
            draw_line(axes, condition_of(condition), xs, [scores[x] for x in xs])
            ends.append((scores[xs[-1]].value, condition))
    value_axis(axes.yaxis, matched.metric(key), _highest(matched, key))
    axes.set_ylabel(matched.metric(key).title)
    axes.set_xlabel(label(axis, 60))
    spots = sorted(at.values())
    if places and spots[0] > 0 and spots[-1] / spots[0] >= _WIDE:
        axes.set_xscale("log")
    if places and len(spots) > 12:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    else:
        names = [label(run, 12) for run in sorted(runs, key=lambda run: at[run])]
        tilted = sum(map(len, names)) > 60
        axes.set_xticks(spots, names, rotation=35 if tilted else 0, ha="right" if tilted else "center")
        axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    name_ends(axes, ends, matched.metric(key).percent)
    return figure


def _highest(matched: Matched, key: str) -> float:
    """The highest end of an interval that is drawn."""
    points = (
        matched.point(run, condition, key)
        for run in matched.by_run
        for condition in ("base", *matched.conditions)
    )
    return max((point.score.top for point in points if point), default=1.0)


def _short(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def runs_figure(matched: Matched, key: str) -> Figure:
    """A metric run by run: a mark and its interval for each condition, the runs one below the other."""
    runs = list(matched.by_run)
    conditions = [c for c in ["base", *matched.conditions] if any(matched.point(r, c, key) for r in runs)]
    figure = Figure(figsize=(6.4, 1.3 + len(runs) * max(0.34, 0.085 * len(conditions))), layout="constrained")
    axes = figure.add_subplot()
    for place, condition in enumerate(conditions):
        colour, marker, _ = condition_of(condition).look
        name = condition_of(condition)
        shift = 0.7 * ((place + 0.5) / len(conditions) - 0.5)
        points = [
            (row + shift, point.score)
            for row, run in enumerate(runs)
            if (point := matched.point(run, condition, key))
        ]
        ranges = [(y, *score.interval) for y, score in points if score.interval]
        axes.hlines([y for y, *_ in ranges], [low for _, low, _ in ranges], [high for *_, high in ranges],
                    color=colour, linewidth=1.2, alpha=0.7)  # fmt: skip
        axes.plot(
            [s.value for _, s in points], [y for y, _ in points], linestyle="none", marker=marker,
            color=colour, markersize=7 if name.role == "tested" else 5, zorder=4,
            label=label(name.title, 30), clip_on=False,
        )  # fmt: skip
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_yticks(range(len(runs)), [label(run, 30) for run in runs])
    for row in range(1, len(runs)):
        axes.axhline(row - 0.5, color="#e4e4e0", linewidth=0.8, zorder=0)
    axes.grid(axis="y", visible=False)
    value_axis(axes.xaxis, matched.metric(key), _highest(matched, key))
    axes.set_xlabel(matched.metric(key).title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def pairs_figure(pairs: Pairs, gains: Gains, relative: bool, as_percent: bool) -> Figure:
    """Fig. 4 of ConTrans: what each source brings to each target, absolute or as a part of the base."""
    values = [
        [_gain(gains.get(pairs.runs.get((source, target), "")), relative) for target in pairs.targets]
        for source in pairs.sources
    ]
    rows, columns = _tails(pairs.sources), _tails(pairs.targets)
    title = "Improvement ratio" if relative else "Improvement"
    return heat_figure(values, rows, columns, ("Source", "Target"), title, as_percent, upward=False)


def _gain(gain: tuple[float, float | None] | None, relative: bool) -> float | None:
    return None if gain is None else gain[1] if relative else gain[0]


def _tails(names: list[str]) -> list[str]:
    """Model ids without their owners, where that still tells them apart."""
    tails = [name.rsplit("/", 1)[-1] for name in names]
    return tails if len(set(tails)) == len(tails) else names


def pair_table(pairs: Pairs, gains: Gains) -> pa.Table:
    """A row for each pair: source, target, run, improvement, improvement_ratio."""
    rows = [(*ends, run, *gains.get(run, (None, None))) for ends, run in pairs.runs.items()]
    columns = list(zip(*rows, strict=True))
    return pa.table(
        {
            "source": columns[0],
            "target": columns[1],
            "run": columns[2],
            "improvement": pa.array(columns[3], pa.float64()),
            "improvement_ratio": pa.array(columns[4], pa.float64()),
        }
    )
