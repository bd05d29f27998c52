"""An evaluation's `metrics.json` as scores, and scores as a table."""

import pyarrow as pa

from contrans_dist.evaluation.analysis.scores import Evaluation, Leak, Row, Score
from contrans_dist.evaluation.analysis.strengths import read_search
from contrans_dist.store.location import Location
from contrans_dist.store.results import ConditionEntry, LeakEntry, ScoreEntry, read_metrics

_TABLE = pa.schema(
    [
        ("condition", pa.string()), ("strength", pa.float64()), ("concept", pa.string()),
        ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("n", pa.int64()),
    ]
)  # fmt: skip


def read_evaluation(location: Location) -> Evaluation:
    """Read the `metrics.json` of an evaluation folder. Raises UserError for one of another form."""
    found = read_metrics(location)
    return Evaluation(
        name=location.name,
        location=location,
        benchmark=found.benchmark,
        model=found.model,
        rows=[_row(entry) for entry in found.conditions],
        leak=_leak(found.leak),
        block=found.block,
        notes=found.notes or [],
        throughput=dict(found.throughput or {}),
        costs=found.costs or {},
        search=read_search(location),
        reference=found.reference,
        content=found.model_dump(),
    )


def _row(entry: ConditionEntry) -> Row:
    known = {name: score for name, score in entry.metrics.items() if score.value is not None}
    return Row(
        entry.condition,
        entry.strength,
        {name: _score(score) for name, score in known.items()},
        {"base": entry.p_vs_base or {}, **(entry.p_vs or {})},
        entry.p_vs_elsewhere or {},
    )


def _score(entry: ScoreEntry) -> Score:
    low, high = entry.low, entry.high
    # An interval without width is none: all that was resampled had one and the same value.
    interval = None if low is None or high is None or low == high else (low, high)
    return Score(entry.value or 0.0, interval, entry.n or 0)


def _leak(entry: LeakEntry | None) -> Leak | None:
    if entry is None:
        return None
    return Leak(entry.evaluated, entry.overlap_vector, entry.overlap_map, entry.examples or [])


def score_table(evaluation: Evaluation) -> pa.Table:
    """Every score as one row: condition, strength, concept (empty: all), metric, value, low, high, n.

    `low` and `high` are null where there is no interval.
    """
    rows = [
        {
            "condition": row.condition,
            "strength": row.strength,
            "concept": key.rpartition("/")[0],
            "metric": key.rpartition("/")[2],
            "value": score.value,
            "low": score.interval[0] if score.interval else None,
            "high": score.interval[1] if score.interval else None,
            "n": score.n,
        }
        for row in evaluation.rows
        for key, score in row.scores.items()
    ]
    return pa.Table.from_pylist(rows, schema=_TABLE)
