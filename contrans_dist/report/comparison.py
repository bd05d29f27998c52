"""The page that compares several runs, as plain data for the template."""

from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from contrans_dist.evaluation.analysis import Evaluation, Run, judge, left_out, number
from contrans_dist.report.compare import (
    Comparison,
    Matched,
    comparison_table,
    differing_settings,
    improvements,
    pairs_of,
    positions,
)
from contrans_dist.report.costs import costs_of_runs
from contrans_dist.report.groups import groups_of_runs
from contrans_dist.report.parts import Cell, Drawing, Studio, Table
from contrans_dist.report.published import paper_table, published_groups, small_models
from contrans_dist.report.runs import (
    axis_figure,
    how,
    pair_table,
    pairs_figure,
    runs_figure,
    runs_table,
)
from contrans_dist.report.tables import STATUS_WORDS
from contrans_dist.store.location import Location

_SHORT_TABLE = 8
_FEW_RUNS = 6
"""Up to so many runs stand in columns where their settings are compared."""


@dataclass
class RunsSection:
    """One evaluation of all runs."""

    name: str
    anchor: str
    benchmark: str
    title: str
    table: Table
    notes: list[str]
    """Conditions that runs asked for and lack."""
    drawings: list[Drawing]
    drawings_first: bool
    """Whether the table is so long that the figures stand above it."""
    others: list[tuple[str, Table]]
    paper: Table | None
    """What papers found for single groups, beside ours."""
    costs: Table | None


@dataclass
class ComparisonPage:
    """Everything the template needs."""

    title: str
    description: str
    published: list[tuple[str, str]]
    """Source and remarks of what papers found."""
    small: str
    paper: Table | None
    """The paper's figures, where none of them is for these runs."""
    overview: Table
    settings: Table | None
    sections: list[RunsSection]
    warnings: list[str] = field(default_factory=list)


def build_comparison(comparison: Comparison, target: Location, studio: Studio) -> ComparisonPage:
    """Put the page together; `target` is the folder it will lie in."""
    published = comparison.published.values()
    sources = dict.fromkeys((figures.source, figures.remarks) for figures in published)
    return ComparisonPage(
        title=comparison.name,
        description=comparison.description,
        published=list(sources),
        small=small_models(list(comparison.runs.values())),
        # Where none is for these very runs, all of the paper's figures.
        paper=None if _has_paper(comparison) or not published else paper_table(next(iter(published))),
        overview=_overview(comparison, target),
        settings=_settings(comparison.runs),
        sections=[
            _section(comparison, matched, studio) for matched in comparison.evaluations if matched.metrics
        ],
        warnings=[problem for run in comparison.runs.values() for problem in run.problems],
    )


def _has_paper(comparison: Comparison) -> bool:
    """Whether the paper has figures for one of these very runs."""
    return any(
        published.has_any(evaluation.name for evaluation in comparison.runs[run].evaluations)
        for run, published in comparison.published.items()
    )


def _overview(comparison: Comparison, target: Location) -> Table:
    """A row a run: its page, its models, and the verdict of every evaluation."""
    head = ["Run", "Models", *[matched.name for matched in comparison.evaluations]]
    rows = []
    for name, run in comparison.runs.items():
        models = [run.recipe.model("source"), run.recipe.model("target")]
        cells = [_verdict_cell(matched.by_run.get(name)) for matched in comparison.evaluations]
        shown = " → ".join(models) if all(models) else next((e.file.model for e in run.evaluations), "")
        rows.append([Cell(name, link=_link(run.location, target)), Cell(shown), *cells])
    return Table(head, rows, "The verdict of each evaluation, by its heading metric.", numbers=False)


def _verdict_cell(evaluation: Evaluation | None) -> Cell:
    if evaluation is None or not evaluation.metrics:
        return Cell("–", kind="quiet")
    verdict = judge(evaluation, evaluation.metrics[0])
    if verdict is None:
        return Cell("nothing was steered", kind="quiet")
    percent = verdict.kind.percent
    before = f"{number(verdict.base.value, percent)} → " if verdict.base else ""
    note = f"{before}{number(verdict.score.value, percent)}"
    if verdict.status == "cost":
        grown = verdict.base.value if verdict.base else 0.0
        return Cell(note, f"{verdict.score.value / grown:.2f} times" if grown else "")
    if evaluation.file.leak and evaluation.file.leak.seen:
        return Cell(f"{STATUS_WORDS[verdict.status]}, but on items seen before", note, "leaked")
    return Cell(STATUS_WORDS[verdict.status], note, verdict.status)


def _link(run: Location, target: Location) -> str:
    """From the page in `target` to a run's own page below it; empty where there is none."""
    above = target.path.rstrip("/") + "/"
    below = run.store == target.store and run.path.startswith(above)
    if not below or not (run / "report.html").exists():
        return ""
    return f"{quote(run.path.removeprefix(above))}/report.html"


def _settings(runs: dict[str, Run]) -> Table | None:
    """Runs in rows, or in columns where they are few and differ in much."""
    differing = differing_settings(runs)
    if not differing:
        return None
    caption = "Only what differs. A dash: not set."
    if len(runs) <= _FEW_RUNS < len(differing):
        rows = [
            [Cell(key), *(Cell(values.get(run) or "–") for run in runs)] for key, values in differing.items()
        ]
        return Table(["Setting", *runs], rows, caption, numbers=False)
    rows = [[Cell(run), *(Cell(values.get(run) or "–") for values in differing.values())] for run in runs]
    return Table(["Run", *differing], rows, caption, numbers=False)


def _section(comparison: Comparison, matched: Matched, studio: Studio) -> RunsSection:
    key = matched.metrics[0]
    anchor = studio.name(matched.name)
    return RunsSection(
        name=matched.name,
        anchor=anchor,
        benchmark=matched.benchmark,
        title=matched.metric(key).title,
        table=runs_table(matched, key),
        notes=_left_out(comparison, matched),
        drawings=_drawings(comparison, matched, key, anchor, studio),
        drawings_first=len(matched.by_run) > _SHORT_TABLE,
        others=[
            *filter(None, [groups_of_runs(matched, key)]),
            *((matched.metric(k).title, runs_table(matched, k)) for k in matched.metrics[1:]),
        ],
        paper=published_groups(matched),
        costs=costs_of_runs(matched),
    )


def _left_out(comparison: Comparison, matched: Matched) -> list[str]:
    runs: dict[str, list[str]] = {}
    for name, evaluation in matched.by_run.items():
        if text := left_out(comparison.runs[name], evaluation):
            runs.setdefault(text, []).append(name)
    return [f"{', '.join(names)}: {text[0].lower()}{text[1:]}" for text, names in runs.items()]


def _drawings(
    comparison: Comparison, matched: Matched, key: str, anchor: str, studio: Studio
) -> list[Drawing]:
    """Along an axis, by source and target, or run by run."""
    kind, data, runs = matched.metric(key), comparison_table(matched, key), list(matched.by_run)
    if comparison.axis:
        axis = partial(axis_figure, matched, key, comparison.axis, positions(runs))
        caption = f"{kind.title} over {comparison.axis}. {how(matched, key)} Bands: 95\u202f% intervals."
        return [studio.draw((anchor, "runs"), axis, data, caption)]
    pairs = pairs_of({name: comparison.runs[name] for name in runs})
    if pairs is None and len(runs) < 2:
        return []
    if pairs is None:
        caption = f"{kind.title}, run by run. {how(matched, key)} Bars: 95\u202f% intervals."
        return [studio.draw((anchor, "runs"), partial(runs_figure, matched, key), data, caption)]
    gains = improvements(matched, key)
    table, figure = pair_table(pairs, gains), partial(pairs_figure, pairs, gains)
    caption = f"What the vector gains in {kind.title} over no steering, by source and target."
    drawings = [
        studio.draw(
            (anchor, "improvement"),
            partial(figure, relative=False, as_percent=kind.percent),
            table,
            f"{caption} In percentage points." if kind.percent else caption,
        )
    ]
    if any(ratio is not None for _, ratio in gains.values()):
        drawings.append(
            studio.draw(
                (anchor, "improvement-ratio"),
                partial(figure, relative=True, as_percent=True),
                table,
                "The same as a part of the value without steering. Empty: that value is next to nothing, its "
                "interval begins below half of it.",
            )
        )
    return drawings
