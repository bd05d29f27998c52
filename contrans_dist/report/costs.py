"""What an evaluation cost: forward passes, tokens, seconds, system by system."""

from collections.abc import Mapping

from contrans_dist.analysis import Evaluation, Matched, condition_name
from contrans_dist.report.parts import Cell, Table, count_text, seconds_text

_TARGET = "target"
_COLUMNS = ("rows", "forward_passes", "tokens", "seconds")
_HEAD = ["Rows", "Forward passes", "Tokens", "Seconds"]
_CAPTION = (
    "Target, steered: no steering and every condition that adds a vector, together. Seconds: of all "
    "actors, added up."
)


def cost_table(evaluation: Evaluation) -> Table | None:
    """A row a system; None where the evaluation says nothing of its cost."""
    if not evaluation.costs:
        return None
    rows = [[Cell(_title(system)), *_cells(cost)] for system, cost in evaluation.costs.items()]
    return Table(["System", *_HEAD], rows, _CAPTION, compact=True)


def costs_of_runs(matched: Matched) -> Table | None:
    """A row for each run and system."""
    rows = [
        [Cell(run), Cell(_title(system)), *_cells(cost)]
        for run, evaluation in matched.found.items()
        for system, cost in evaluation.costs.items()
    ]
    return Table(["Run", "System", *_HEAD], rows, _CAPTION) if rows else None


def _title(system: str) -> str:
    return "Target, steered" if system == _TARGET else condition_name(system).title


def _cells(cost: Mapping[str, float]) -> list[Cell]:
    cells = []
    for name in _COLUMNS:
        value = cost.get(name)
        if value is None:
            cells.append(Cell("–", kind="quiet"))
        else:
            cells.append(Cell(seconds_text(value) if name == "seconds" else count_text(value)))
    return cells
