"""Paper, ours and interval, side by side."""

from collections.abc import Iterable, Mapping, Sequence

from contrans_dist.analysis import (
    Beside,
    Evaluation,
    Matched,
    Published,
    Run,
    beside,
    condition_name,
    metric,
    number,
    strength_text,
)
from contrans_dist.report.parts import Cell, Table, interval_text

_BUNDLED = "demo:"
_SMALL = (
    "The models here are small ones that come with the program ({models}), not the paper's. The paper's "
    "figures show what the experiment looks like at full size; ours cannot be expected to equal them."
)


_HEAD = ["Condition", "Metric", "Paper", "Ours", "95\u202f% interval", "Paper inside it"]


def published_table(
    published: Published, evaluation: Evaluation, companions: Sequence[Evaluation] = ()
) -> Table | None:
    """Every published figure of an evaluation beside ours; None where there is none."""
    rows = [_row(each) for each in beside(published, evaluation, companions)]
    return Table(_HEAD, rows, f"Paper: {published.source}." if published.source else "") if rows else None


def published_groups(published: Mapping[str, Published], matched: Matched) -> Table | None:
    """The published figures of single groups over all runs, for which `runs_table` has no cell."""
    rows = [
        [Cell(run), *_row(each)]
        for run, evaluation in matched.found.items()
        if run in published
        for each in beside(published[run], evaluation)
        if "/" in each.metric
    ]
    return Table(["Run", *_HEAD], rows) if rows else None


def _row(each: Beside) -> list[Cell]:
    kind, group = metric(each.metric), each.metric.rpartition("/")[0]
    return [
        Cell(condition_name(each.condition).title),
        Cell(f"{group}: {kind.title}" if group else kind.title, kind="words"),
        Cell(_figure(each.paper, each.metric)),
        Cell(_figure(each.ours.value, each.metric), _at(each)) if each.ours else Cell("–"),
        Cell(interval_text(each.ours, kind.percent)) if each.ours else Cell("–"),
        _agreement(each),
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
                cells = [Cell("–" if value is None else _figure(value, name)) for value in values]
                group, kind = name.rpartition("/")[0], metric(name)
                title = f"{group}: {kind.title}" if group else kind.title
                rows.append([Cell(run, f"{evaluation} · {title}"), *cells])
    head = ["Run", *(condition_name(condition).title for condition in conditions)]
    return Table(head, rows, f"{published.source}.") if rows else None


def _figure(value: float, name: str) -> str:
    percent = metric(name).percent
    return number(value, percent, 1 if percent else 2)


def _at(each: Beside) -> str:
    if each.strength is None or condition_name(each.condition).system:
        return ""
    return f"{'chosen' if each.chosen else 'best'} strength {strength_text(each.strength)}"


def _agreement(each: Beside) -> Cell:
    if each.ours is None:
        return Cell("not measured", kind="quiet")
    if each.agrees is None:
        return Cell("no interval", kind="quiet")
    if each.agrees:
        return Cell("yes", kind="apart")
    return Cell("no, ours is higher" if each.ours.value > each.paper else "no, ours is lower", kind="warn")


def small_models(runs: Iterable[Run]) -> str:
    """A sentence that says so when bundled models stand in for a paper's; empty otherwise."""
    models = {run.model(side) for run in runs for side in ("source", "target")}
    bundled = sorted(model for model in models if model.startswith(_BUNDLED))
    return _SMALL.format(models=", ".join(bundled)) if bundled else ""
