"""Run by condition: what each run reports, and the paper's figures beside it."""

from collections.abc import Sequence

from contrans_dist.evaluation.analysis import Comparison, Matched, metric, strength_text
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.parts import Cell, Table, score_cell
from contrans_dist.report.published import figure_text
from contrans_dist.report.tables import read_at


def runs_table(found: Comparison, matched: Matched, key: str) -> Table:
    """Run by condition: value, interval, strength; what the paper found beside it.

    Figures of the paper for the very run stand in its cells; others in a row of their own, above.
    """
    conditions = ("base", *matched.conditions)
    head = ["Run", "No steering", *(condition_of(c).title for c in matched.conditions)]
    rows = [
        [Cell(run), *(_cell(found, matched, run, condition, key) for condition in conditions)]
        for run in matched.found
    ]
    papers = any(cell.aside for row in rows for cell in row)
    paper = " Inside, outside: where the paper's value lies in it." if papers else ""
    return Table(
        head,
        [*_stand_ins(found, matched, key, conditions), *rows],
        f"{how(matched, key)} In brackets: 95\u202f% interval.{paper}",
    )


def _cell(found: Comparison, matched: Matched, run: str, condition: str, key: str) -> Cell:
    point, name = matched.point(run, condition, key), condition_of(condition)
    kind = "main" if name.role == "tested" else ""
    cell = score_cell(point[1] if point else None, metric(key).percent, False, kind)
    at = f" at {strength_text(point[0])}" if point and condition != "base" and not name.no_vector else ""
    return Cell(cell.text, cell.note + at, cell.kind, aside=_paper(found, matched, run, condition, key))


def _paper(found: Comparison, matched: Matched, run: str, condition: str, key: str) -> str:
    """The paper's value for this very run, and whether our interval holds it; empty where it has none."""
    figures = found.published[run].figures(matched.name) if run in found.published else None
    value = figures.values.get(condition, {}).get(key) if figures and figures.own else None
    if value is None:
        return ""
    point = matched.point(run, condition, key)
    inside = point[1].holds(value) if point else None
    judged = "" if inside is None else ", inside" if inside else ", outside"
    return f"paper {figure_text(value, key)}{judged}"


def _stand_ins(found: Comparison, matched: Matched, key: str, conditions: Sequence[str]) -> list[list[Cell]]:
    """A row for each run of a paper that stands beside runs of which the paper has no figures."""
    rows = {}
    for run, published in found.published.items():
        figures = published.figures(matched.name) if run in matched.found else None
        if figures is None or figures.own or figures.run in matched.found:
            continue
        values = [figures.values.get(condition, {}).get(key) for condition in conditions]
        if any(value is not None for value in values):
            cells = [
                Cell("–", kind="quiet") if value is None else Cell(figure_text(value, key))
                for value in values
            ]
            rows[published.source, figures.run] = [Cell(figures.title, published.source), *cells]
    return list(rows.values())


def how(matched: Matched, key: str) -> str:
    """How the strength of each cell came about."""
    if any(each.metric(key).cost for each in matched.found.values()):
        ways = dict.fromkeys(read_at(each, key) for each in matched.found.values())
        return f"Each condition at {' or '.join(ways)}."
    chosen = [each.search is not None for each in matched.found.values()]
    if all(chosen):
        return "Each condition at the strength that was chosen on validation items."
    best = "Each condition at its best strength, which favours it a little."
    return f"{best} Where strengths were chosen on validation items, at that." if any(chosen) else best
