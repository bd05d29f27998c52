"""What the model wrote before and after steering (Table 5 of ConTrans), from an evaluation's rows."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.evaluation.conditions import condition_order
from contrans_dist.store.location import Location
from contrans_dist.store.results import EXAMPLES, RESULTS, Kind, read_columns

_COLUMNS: dict[str, Kind] = {
    "concept": "text", "item": "text", "prompt": "text", "condition": "text", "strength": "number",
    "continuation": "text",
}  # fmt: skip
_ALSO: dict[str, Kind] = {"kind": "text", "group": "text", "toxicity": "number"}


@dataclass(frozen=True)
class Continuation:
    """What was written under one condition; strength 0 under `base`."""

    condition: str
    strength: float
    text: str
    toxicity: float | None = None
    """The classifier's probability that it is toxic, where it was asked."""


@dataclass(frozen=True)
class Example:
    """One prompt and all that was written after it, the unsteered first."""

    group: str
    """Concept, or group of items."""
    kind: str
    prompt: str
    continuations: list[Continuation]


def read_examples(
    evaluation: Evaluation, points: dict[str, float], each: int = 2, most: int = 30
) -> list[Example]:
    """Prompts with continuations: from `examples.parquet`, else from rows that hold continuations.

    `points`: condition -> strength that is of interest. Where a condition was continued at others only, its
    greatest is taken. The first `each` prompts of every group, at most `most`; none is picked by its outcome.
    Raises UserError for a damaged file.
    """
    for name in (EXAMPLES, RESULTS):
        table = _read(evaluation.location / name, points if name == RESULTS else None)
        if table is not None and table.num_rows:
            return _examples(table, points, each, most)
    return []


def _read(location: Location, points: dict[str, float] | None) -> pa.Table | None:
    """Rows with continuations; only those of `base` and of the points, where points are given."""
    if not location.exists():
        return None
    table = read_columns(location, _COLUMNS, _ALSO)
    if table is not None:
        table = table.filter(table["strength"].is_valid())
    if table is None or points is None:
        return table
    kept = pc.equal(table["strength"], 0.0)
    for condition, strength in points.items():
        own = pc.and_(pc.equal(table["condition"], condition), pc.equal(table["strength"], strength))
        kept = pc.or_(kept, own)
    if "kind" in table.column_names:
        kept = pc.and_(kept, pc.fill_null(pc.not_equal(table["kind"], "validation"), True))
    return table.filter(kept)


def _examples(table: pa.Table, points: dict[str, float], each: int, most: int) -> list[Example]:
    column = "group" if "group" in table.column_names else "concept"
    found: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for row in table.to_pylist():
        place = (str(row[column] or ""), str(row["item"]), str(row["concept"] or ""))
        found.setdefault(place, []).append(row)
    taken: dict[str, int] = {}
    examples = []
    for (group, *_), rows in found.items():
        continuations = _continuations(rows, points)
        if taken.get(group, 0) >= each or len(continuations) < 2:
            continue
        taken[group] = taken.get(group, 0) + 1
        first = rows[0]
        examples.append(
            Example(group, str(first.get("kind") or ""), str(first["prompt"] or ""), continuations)
        )
    examples.sort(key=lambda example: example.group)
    if len(examples) > most:
        examples = [examples[index * len(examples) // most] for index in range(most)]
    return examples


def _continuations(rows: list[dict[str, object]], points: dict[str, float]) -> list[Continuation]:
    by_condition: dict[str, dict[float, Continuation]] = {}
    for row in rows:
        strength, toxicity = float(str(row["strength"])), row.get("toxicity")
        name = "base" if strength == 0 else str(row["condition"])
        by_condition.setdefault(name, {})[strength] = Continuation(
            name, strength, str(row["continuation"] or ""), None if toxicity is None else float(str(toxicity))
        )
    order = sorted(by_condition, key=lambda name: (name != "base", condition_order(name)))
    return [
        at.get(points.get(name, 0.0)) or at[max(at, key=abs)]
        for name, at in ((name, by_condition[name]) for name in order)
    ]
