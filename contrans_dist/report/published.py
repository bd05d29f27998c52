"""Paper, ours and interval, side by side."""

from collections.abc import Sequence

from contrans_dist.benchmarks import Metric
from contrans_dist.evaluation.analysis import (
    Beside,
    Evaluation,
    Figures,
    Published,
    Run,
    beside,
    number,
    strength_text,
)
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.compare import Matched
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


def published_table(
    figures: Figures | None, evaluation: Evaluation, companions: Sequence[Evaluation] = ()
) -> Table | None:
    """Every published figure of an evaluation beside ours; None where there is none.

    Figures of another run of the paper name it, and are not judged by our interval.
    """
    if figures is None:
        return None
    compared = beside(figures, evaluation, companions)
    head = ["Condition", "Metric", figures.title, "Ours", _INTERVAL]
    run = "" if figures.of_this_run else f"run {figures.run}"
    source = ", ".join(filter(None, (figures.source, run)))
    why = "" if figures.of_this_run else "; the first with these figures, as none is for the models here"
    caption = f"Paper: {source}{why}." if source else ""
    if figures.of_this_run:
        rows = [[*_row(figure), _agreement(figure)] for figure in compared]
        return Table([*head, "Paper inside it"], rows, caption)
    return Table(head, [_row(figure) for figure in compared], caption)


def published_groups(matched: Matched) -> Table | None:
    """The published figures of single groups over all runs, for which `runs_table` has no cell."""
    rows = [
        [
            Cell(run),
            *_row(figure),
            _agreement(figure) if figures.of_this_run else Cell(f"of {figures.run}", kind="quiet"),
        ]
        for run, figures in matched.papers.items()
        for figure in beside(figures, matched.by_run[run])
        if "/" in figure.metric
    ]
    head = ["Run", "Condition", "Metric", "Paper", "Ours", _INTERVAL, "Paper inside it"]
    return Table(head, rows) if rows else None


def _row(figure: Beside) -> list[Cell]:
    kind, ours = figure.kind, figure.ours.score if figure.ours else None
    return [
        Cell(condition_of(figure.condition).title),
        Cell(_titled(figure.metric, kind), kind="words"),
        Cell(figure_text(figure.paper, kind)),
        Cell(figure_text(ours.value, kind), _at(figure)) if ours else Cell("–"),
        Cell(interval_text(ours, kind.percent)) if ours else Cell("–"),
    ]


def _titled(name: str, kind: Metric) -> str:
    """What a metric is called, with its group before it."""
    group = name.rpartition("/")[0]
    return f"{group}: {kind.title}" if group else kind.title


def paper_table(published: Published) -> Table | None:
    """All figures of the paper: a row for each of its runs, evaluations and metrics."""
    conditions = dict.fromkeys(condition for _, figures in published.values for condition in figures.values)
    rows = []
    for evaluation, figures in published.values:
        for name in dict.fromkeys(name for metrics in figures.values.values() for name in metrics):
            kind = figures.metric(name)
            values = [figures.values.get(condition, {}).get(name) for condition in conditions]
            cells = [Cell("–" if value is None else figure_text(value, kind)) for value in values]
            rows.append([Cell(figures.run, f"{evaluation} · {_titled(name, kind)}"), *cells])
    head = ["Run", *(condition_of(condition).title for condition in conditions)]
    return Table(head, rows, f"{published.source}.") if rows else None


def figure_text(value: float, kind: Metric) -> str:
    """A paper's figure of a metric, or ours beside it."""
    return number(value, kind.percent, 1 if kind.percent else 2)


def _at(figure: Beside) -> str:
    point = figure.ours
    if point is None or not point.strength or condition_of(figure.condition).no_vector:
        return ""
    return f"{_WAYS[point.way]} {strength_text(point.strength)}"


def _agreement(figure: Beside) -> Cell:
    if figure.ours is None:
        return Cell("not measured", kind="quiet")
    if figure.agrees is None:
        return Cell("no interval", kind="quiet")
    if figure.agrees:
        return Cell("yes", kind="apart")
    return Cell(
        "no, ours is higher" if figure.ours.score.value > figure.paper else "no, ours is lower", kind="warn"
    )


def small_models(runs: Sequence[Run]) -> str:
    """Sentences that say so when bundled models stand in for a paper's; empty otherwise."""
    published = any(run.published for run in runs)
    if not published and not any((run.recipe.name or "").startswith(_PAPERS) for run in runs):
        return ""
    models = {run.recipe.model(side) for run in runs for side in ("source", "target")}
    bundled = sorted(model for model in models if model.startswith(_BUNDLED))
    return _SMALL.format(models=", ".join(bundled)) + (_BESIDE if published else _ALONE) if bundled else ""
