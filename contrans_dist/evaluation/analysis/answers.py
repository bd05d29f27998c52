"""What the target answered, from the rows of `results.parquet`."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.store.results import RESULTS, Kind, read_columns

_ANSWER_COLUMNS = ("argmax_text", "argmax_token", "answer", "token_text")
_COLUMNS: dict[str, Kind] = {"concept": "text", "kind": "text", "condition": "text", "strength": "number"}


@dataclass(frozen=True)
class Answers:
    """The most frequent answers on a concept's negative scenarios: (text, share of 1), before and after."""

    concept: str
    n: int
    before: list[tuple[str, float]]
    after: list[tuple[str, float]]


def frequent_answers(evaluation: Evaluation, condition: str, strength: float, most: int = 3) -> list[Answers]:
    """What the target answered most often, unsteered and under a condition, for each concept.

    Read from `results.parquet`; empty when that is missing or holds no answers' texts. Raises UserError when
    it is damaged.
    """
    location = evaluation.location / RESULTS
    if not location.exists():
        return []
    table = read_columns(location, _COLUMNS, dict.fromkeys(_ANSWER_COLUMNS, "text"))
    answer = next(
        (name for name in _ANSWER_COLUMNS if table is not None and name in table.column_names), None
    )
    if table is None or answer is None:
        return []
    table = table.filter(pc.equal(table["kind"], "negative"))
    zero = pc.equal(table["strength"], 0.0)
    steered = pc.and_(pc.equal(table["condition"], condition), pc.equal(table["strength"], strength))
    if "base" in pc.unique(table["condition"]).to_pylist():
        zero = pc.and_(zero, pc.equal(table["condition"], "base"))
    before, after = _shares(table.filter(zero), answer), _shares(table.filter(steered), answer)
    return [
        Answers(
            concept, sum(after[concept].values()), _top(before.get(concept, {}), most), _top(counts, most)
        )
        for concept, counts in sorted(after.items())
    ]


def _shares(table: pa.Table, answer: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for entry in table.group_by(["concept", answer]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(entry["concept"] or "", {})[entry[answer] or ""] = entry["count_all"]
    return counts


def _top(counts: dict[str, int], most: int) -> list[tuple[str, float]]:
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(text, count / total) for text, count in ranked[:most]]
