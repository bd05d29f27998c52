"""Paper, ours and interval, side by side."""

from collections.abc import Iterable, Mapping, Sequence

from contrans_dist.evaluation.analysis import (
    Beside,
    Evaluation,
    Figures,
    Matched,
    Published,
    Run,
    beside,
    metric,
    number,
    strength_text,
)
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.parts import Cell, Table, interval_text

_BUNDLED = "demo:"
_PAPERS = ("contrans-", "lcross-")
"""How the names of the recipes begin that repeat a paper's experiments."""
_SMALL = "The models here are small ones that come with the program ({models}), not the paper's. "
_BESIDE = (
    "The paper's figures show what the experiment looks like at full size; ours cannot be expected to equal "
    "them."
)
_ALONE = "The numbers below cannot be expected to equal the paper's."
_INTERVAL = "95\u202f% interval"
_WAYS = {"chosen": "chosen strength", "best": "best strength", "greatest": "greatest strength",
         "reported": "strength", "given": "strength"}  # fmt: skip


def stands_beside(published: Published, evaluations: Iterable[str]) -> bool:
    """Whether one of these evaluations has figures of the paper for this very run."""
    return any((figures := published.figures(name)) and figures.of_this_run for name in evaluations)


def published_table(
    published: Published, evaluation: Evaluation, companions: Sequence[Evaluation] = ()
) -> Table | None:
    """Every published figure of an evaluation beside ours; None where there is none.

    Figures of another run of the paper name it, and are not judged by our interval.
    """
    figures = published.figures(evaluation.name)
    if figures is None:
        return None
    found = beside(figures, evaluation, companions)
    head = ["Condition", "Metric", figures.title, "Ours", _INTERVAL]
    if figures.of_this_run:
        rows = [[*_row(each), _agreement(each)] for each in found]
        return Table([*head, "Paper inside it"], rows, _caption(published, figures))
    return Table(head, [_row(each) for each in found], _caption(published, figures))


def _caption(published: Published, figures: Figures) -> str:
    source = ", ".join(
        part for part in (published.source, "" if figures.of_this_run else f"run {figures.run}") if part
    )
    why = "" if figures.of_this_run else "; the first with these figures, as none is for the models here"
    return f"Paper: {source}{why}." if source else ""


def published_groups(published: Mapping[str, Published], matched: Matched) -> Table | None:
    """The published figures of single groups over all runs, for which `runs_table` has no cell."""
    rows = [
        [
            Cell(run),
            *_row(each),
            _agreement(each) if figures.of_this_run else Cell(f"of {figures.run}", kind="quiet"),
        ]
        for run, evaluation in matched.by_run.items()
        if run in published and (figures := published[run].figures(matched.name))
        for each in beside(figures, evaluation)
        if "/" in each.metric
    ]
    head = ["Run", "Condition", "Metric", "Paper", "Ours", _INTERVAL, "Paper inside it"]
    return Table(head, rows) if rows else None


def _row(each: Beside) -> list[Cell]:
    kind, group = metric(each.metric), each.metric.rpartition("/")[0]
    return [
        Cell(condition_of(each.condition).title),
        Cell(f"{group}: {kind.title}" if group else kind.title, kind="words"),
        Cell(figure_text(each.paper, each.metric)),
        Cell(figure_text(each.ours.value, each.metric), _at(each)) if each.ours else Cell("–"),
        Cell(interval_text(each.ours, kind.percent)) if each.ours else Cell("–"),
    ]


def paper_table(published: Published) -> Table | None:
    """All figures of the paper: a row for each of its runs, evaluations and metrics."""
    conditions = dict.fromkeys(
        condition
        for evaluations in published.every.values()
        for found in evaluations.values()
        for condition in found
    )
    rows = []
    for run, evaluations in published.every.items():
        for evaluation, found in evaluations.items():
            for name in dict.fromkeys(name for metrics in found.values() for name in metrics):
                values = [found.get(condition, {}).get(name) for condition in conditions]
                cells = [Cell("–" if value is None else figure_text(value, name)) for value in values]
                group, kind = name.rpartition("/")[0], metric(name)
                title = f"{group}: {kind.title}" if group else kind.title
                rows.append([Cell(run, f"{evaluation} · {title}"), *cells])
    head = ["Run", *(condition_of(condition).title for condition in conditions)]
    return Table(head, rows, f"{published.source}.") if rows else None


def figure_text(value: float, name: str) -> str:
    """A paper's figure of a metric, or ours beside it."""
    percent = metric(name).percent
    return number(value, percent, 1 if percent else 2)


def _at(each: Beside) -> str:
    if each.strength is None or each.way is None or condition_of(each.condition).no_vector:
        return ""
    return f"{_WAYS[each.way]} {strength_text(each.strength)}"


def _agreement(each: Beside) -> Cell:
    if each.ours is None:
        return Cell("not measured", kind="quiet")
    if each.agrees is None:
        return Cell("no interval", kind="quiet")
    if each.agrees:
        return Cell("yes", kind="apart")
    return Cell("no, ours is higher" if each.ours.value > each.paper else "no, ours is lower", kind="warn")


def small_models(runs: Sequence[Run]) -> str:
    """Sentences that say so when bundled models stand in for a paper's; empty otherwise."""
    published = any(run.published for run in runs)
    if not published and not any(str(run.recipe.get("name")).startswith(_PAPERS) for run in runs):
        return ""
    models = {run.model(side) for run in runs for side in ("source", "target")}
    bundled = sorted(model for model in models if model.startswith(_BUNDLED))
    return _SMALL.format(models=", ".join(bundled)) + (_BESIDE if published else _ALONE) if bundled else ""
