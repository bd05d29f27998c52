"""What an evaluation cost: forward passes, tokens, seconds, by system and by condition."""

from collections.abc import Mapping

from contrans_dist.evaluation.analysis import Evaluation
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.compare import Matched
from contrans_dist.report.parts import Cell, Table, count_text, seconds_text

_TARGET = "target"
_COLUMNS = ("rows", "forward_passes", "tokens", "seconds")
_HEAD = ["Rows", "Forward passes", "Tokens", "Seconds"]
_CAPTION = (
    "Target, steered: no steering and every condition that adds a vector, together. Seconds: of all "
    "actors, added up."
)
_SHARED = (
    " They run together and share what lies below the steered block, so below it each has the part that its "
    "rows are of all."
)
_BEFOREHAND = " Not counted: what vectors take beforehand, states and maps, of which harvests and maps tell."


def cost_table(evaluation: Evaluation) -> Table | None:
    """A row a system, and one for each condition that adds a vector; None where nothing tells the cost."""
    if not evaluation.file.costs:
        return None
    rows, shared = [], False
    for system, cost in (evaluation.file.costs or {}).items():
        rows.append([Cell(_title(system)), *_cells(cost)])
        parts = _parts(cost, evaluation) if system == _TARGET else {}
        rows += [[Cell(f"– {condition_of(key).title}"), *_cells(part)] for key, part in parts.items()]
        shared = shared or bool(parts)
    caption = _CAPTION + (_SHARED if shared else "") + _BEFOREHAND
    return Table(["System", *_HEAD], rows, caption, compact=True)


def _parts(cost: Mapping[str, float], evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """What of the target's cost falls to each condition, by its rows."""
    counts = evaluation.file.rows or {}
    steered = {key: int(n) for key, n in counts.items() if not condition_of(key).no_vector}
    total = sum(steered.values())
    return {key: {name: value * n / total for name, value in cost.items()} for key, n in steered.items()}


def costs_of_runs(matched: Matched) -> Table | None:
    """A row for each run and system."""
    rows = [
        [Cell(run), Cell(_title(system)), *_cells(cost)]
        for run, evaluation in matched.by_run.items()
        for system, cost in (evaluation.file.costs or {}).items()
    ]
    return Table(["Run", "System", *_HEAD], rows, _CAPTION) if rows else None


def _title(system: str) -> str:
    return "Target, steered" if system == _TARGET else condition_of(system).title


def _cells(cost: Mapping[str, float]) -> list[Cell]:
    cells = []
    for name in _COLUMNS:
        value = cost.get(name)
        if value is None:
            cells.append(Cell("–", kind="quiet"))
        else:
            cells.append(Cell(seconds_text(value) if name == "seconds" else count_text(value)))
    return cells
