"""An evaluation's `metrics.json` as scores, and scores as a table."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from contrans_dist.analysis.scores import Evaluation, Leak, Row, Score
from contrans_dist.analysis.strengths import read_search
from contrans_dist.errors import UserError
from contrans_dist.storage import Location

METRICS_FILE = "metrics.json"
_TABLE = pa.schema(
    [
        ("condition", pa.string()), ("strength", pa.float64()), ("concept", pa.string()),
        ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("n", pa.int64()),
    ]
)  # fmt: skip


def read_evaluation(location: Location) -> Evaluation:
    """Read the `metrics.json` of an evaluation folder. Raises UserError for one of another form."""
    content = (location / METRICS_FILE).read_json()
    try:
        rows = [
            Row(
                str(entry["condition"]),
                float(entry["strength"]),
                {
                    name: _score(score)
                    for name, score in entry["metrics"].items()
                    if score["value"] is not None
                },
                _p_values(entry),
                {
                    against: {float(at): _floats(by_metric) for at, by_metric in by_strength.items()}
                    for against, by_strength in (entry.get("p_vs_elsewhere") or {}).items()
                },
            )
            for entry in content["conditions"]
        ]
        block = content.get("block")
        return Evaluation(
            name=location.name,
            location=location,
            benchmark=str(content["benchmark"]),
            model=str(content["model"]),
            rows=rows,
            leak=_leak(content.get("leak")),
            block=int(block) if isinstance(block, int | float) else None,
            notes=[str(note) for note in content.get("notes") or []],
            throughput=dict(content.get("throughput") or {}),
            costs={str(k): dict(v) for k, v in (content.get("costs") or {}).items()},
            search=read_search(location),
            reference=content.get("reference"),
            content=content,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{location / METRICS_FILE}: expected benchmark, model and conditions with metrics ({error!r})"
        ) from error


def _score(entry: Mapping[str, Any]) -> Score:
    low, high = entry.get("low"), entry.get("high")
    # An interval without width is none: all that was resampled had one and the same value.
    interval = None if low is None or high is None or low == high else (float(low), float(high))
    return Score(float(entry["value"]), interval, int(entry.get("n") or 0))


def _p_values(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {"base": entry.get("p_vs_base") or {}, **(entry.get("p_vs") or {})}
    return {against: _floats(by_metric) for against, by_metric in found.items()}


def _floats(by_metric: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(p) for name, p in by_metric.items()}


def _leak(entry: Mapping[str, Any] | None) -> Leak | None:
    if not entry:
        return None
    vector, mapping = entry.get("overlap_vector"), entry.get("overlap_map")
    return Leak(
        int(entry["evaluated"]),
        None if vector is None else int(vector),
        None if mapping is None else int(mapping),
        [str(example) for example in entry.get("examples") or []],
    )


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
