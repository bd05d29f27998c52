"""The page that compares several runs, as plain data for the template."""

from dataclasses import dataclass, field
from urllib.parse import quote

from contrans_dist.analysis import (
    Comparison,
    Evaluation,
    Matched,
    comparison_table,
    condition_name,
    differing_settings,
    improvements,
    judge,
    metric,
    number,
    pairs_of,
    positions,
    strength_text,
)
from contrans_dist.report.costs import costs_of_runs
from contrans_dist.report.parts import Cell, Drawing, Studio, Table, score_cell
from contrans_dist.report.published import paper_table, published_groups, small_models
from contrans_dist.report.runfigures import axis_figure, pair_table, pairs_figure, runs_figure
from contrans_dist.report.tables import STATUS_WORDS
from contrans_dist.storage import Location

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


def build_comparison(found: Comparison, target: Location, studio: Studio) -> ComparisonPage:
    """Put the page together; `target` is the folder it will lie in."""
    sources = {(each.source, each.remarks): None for each in found.published.values()}
    return ComparisonPage(
        title=found.name,
        description=found.description,
        published=list(sources),
        small=small_models(found.runs.values()) if found.published else "",
        paper=None if _has_paper(found) else _paper_table(found),
        overview=_overview(found, target),
        settings=_settings(differing_settings(found.runs), list(found.runs)),
        sections=[_section(found, matched, studio) for matched in found.evaluations if matched.metrics],
        warnings=[problem for run in found.runs.values() for problem in run.problems],
    )


def _has_paper(found: Comparison) -> bool:
    """Whether a figure of the paper stands in some table."""
    return any(
        run in matched.found and matched.name in published.values
        for run, published in found.published.items()
        for matched in found.evaluations
    )


def _paper_table(found: Comparison) -> Table | None:
    first = next(iter(found.published.values()), None)
    return paper_table(first) if first else None


def _overview(found: Comparison, target: Location) -> Table:
    """A row a run: its page, its models, and the verdict of every evaluation."""
    head = ["Run", "Models", *[matched.name for matched in found.evaluations]]
    rows = []
    for name, run in found.runs.items():
        models = [run.model("source"), run.model("target")]
        cells = [_verdict_cell(matched.found.get(name)) for matched in found.evaluations]
        shown = " → ".join(models) if all(models) else next((e.model for e in run.evaluations), "")
        rows.append([Cell(name, link=_link(run.location, target)), Cell(shown), *cells])
    return Table(head, rows, "The verdict of each evaluation, by its heading metric.", numbers=False)


def _verdict_cell(evaluation: Evaluation | None) -> Cell:
    if evaluation is None or not evaluation.metrics:
        return Cell("–", kind="quiet")
    verdict = judge(evaluation, evaluation.metrics[0])
    if verdict is None:
        return Cell("nothing was steered", kind="quiet")
    percent = metric(verdict.metric).percent
    before = f"{number(verdict.base.value, percent)} → " if verdict.base else ""
    note = f"{before}{number(verdict.score.value, percent)}"
    if verdict.status == "cost":
        grown = verdict.base.value if verdict.base else 0.0
        return Cell(note, f"{verdict.score.value / grown:.2f} times" if grown else "")
    if evaluation.leak and evaluation.leak.seen:
        return Cell(f"{STATUS_WORDS[verdict.status]}, but on items seen before", note, "leaked")
    return Cell(STATUS_WORDS[verdict.status], note, verdict.status)


def _link(run: Location, target: Location) -> str:
    """From the page in `target` to a run's own page below it; empty where there is none."""
    above = target.uri.rstrip("/") + "/"
    if not run.uri.startswith(above) or not (run / "report.html").exists():
        return ""
    return f"{quote(run.uri.removeprefix(above).strip('/'))}/report.html"


def _settings(differing: dict[str, dict[str, str]], runs: list[str]) -> Table | None:
    """Runs in rows, or in columns where they are few and differ in much."""
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


def _section(found: Comparison, matched: Matched, studio: Studio) -> RunsSection:
    key = matched.metrics[0]
    anchor = studio.name(matched.name)
    return RunsSection(
        name=matched.name,
        anchor=anchor,
        benchmark=matched.benchmark,
        title=metric(key).title,
        table=runs_table(found, matched, key),
        drawings=_drawings(found, matched, key, anchor, studio),
        drawings_first=len(matched.found) > _SHORT_TABLE,
        others=[(metric(k).title, runs_table(found, matched, k)) for k in matched.metrics[1:]],
        paper=published_groups(found.published, matched),
        costs=costs_of_runs(matched),
    )


def runs_table(found: Comparison, matched: Matched, key: str) -> Table:
    """Run by condition: value, interval, strength; what the paper found beside it."""
    kind = metric(key)
    head = ["Run", "No steering", *(condition_name(c).title for c in matched.conditions)]
    rows = []
    for run in matched.found:
        cells = []
        for condition in ("base", *matched.conditions):
            point = matched.point(run, condition, key)
            shown = condition_name(condition)
            at = (
                f" at {strength_text(point[0])}" if point and condition != "base" and not shown.system else ""
            )
            cell = score_cell(point[1] if point else None, kind.percent, False,
                              "main" if shown.role == "effect" else "")  # fmt: skip
            paper = _paper(found, matched, run, condition, key)
            cells.append(Cell(cell.text, cell.note + at, cell.kind, aside=paper))
        rows.append([Cell(run), *cells])
    papers = any(cell.aside for row in rows for cell in row)
    paper = " Inside, outside: where the paper's value lies in it." if papers else ""
    return Table(head, rows, f"{_how(matched)} In brackets: 95\u202f% interval.{paper}")


def _paper(found: Comparison, matched: Matched, run: str, condition: str, key: str) -> str:
    """The paper's value of a cell, and whether our interval holds it; empty where it has none."""
    published = found.published.get(run)
    value = published.values.get(matched.name, {}).get(condition, {}).get(key) if published else None
    if value is None:
        return ""
    point, inside = matched.point(run, condition, key), ""
    if point and point[1].low < point[1].high:
        inside = ", inside" if point[1].low <= value <= point[1].high else ", outside"
    percent = metric(key).percent
    return f"paper {number(value, percent, 1 if percent else 2)}{inside}"


def _how(matched: Matched) -> str:
    """How the strength of each cell came about."""
    chosen = [each.search is not None for each in matched.found.values()]
    if all(chosen):
        return "Each condition at the strength that was chosen on validation items."
    best = "Each condition at its best strength, which favours it a little."
    return f"{best} Where strengths were chosen on validation items, at that." if any(chosen) else best


def _drawings(found: Comparison, matched: Matched, key: str, anchor: str, studio: Studio) -> list[Drawing]:
    title = metric(key).title
    data = comparison_table(matched, key)
    if found.axis:
        places = positions(list(matched.found))
        return [
            studio.draw(
                studio.name(anchor, "runs"),
                lambda: axis_figure(matched, key, found.axis, places),
                data,
                f"{title} over {found.axis}. {_how(matched)} Bands: 95\u202f% intervals.",
            )
        ]
    pairs = pairs_of({name: found.runs[name] for name in matched.found})
    if pairs is None:
        if len(matched.found) < 2:
            return []
        return [
            studio.draw(
                studio.name(anchor, "runs"),
                lambda: runs_figure(matched, key),
                data,
                f"{title}, run by run. {_how(matched)} Bars: 95\u202f% intervals.",
            )
        ]
    gains = improvements(matched, key)
    drawings = [
        studio.draw(
            studio.name(anchor, "improvement"),
            lambda: pairs_figure(pairs, gains, relative=False, as_percent=metric(key).percent),
            pair_table(pairs, gains),
            f"What the vector gains in {title} over no steering, by source and target."
            + (" In percentage points." if metric(key).percent else ""),
        )
    ]
    if any(ratio is not None for _, ratio in gains.values()):
        drawings.append(
            studio.draw(
                studio.name(anchor, "improvement-ratio"),
                lambda: pairs_figure(pairs, gains, relative=True, as_percent=True),
                pair_table(pairs, gains),
                "The same as a part of the value without steering. Empty: that value is 0.",
            )
        )
    return drawings
