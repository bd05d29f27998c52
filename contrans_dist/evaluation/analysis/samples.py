"""What the model wrote, answered and was about to say, before and after steering."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.evaluation.conditions import BASE, condition_order
from contrans_dist.store.tables import (
    EXAMPLES,
    RESULTS,
    TOKENS,
    ContinuationRow,
    Kind,
    TokenRow,
    columns_of,
    read_columns,
    read_rows,
    rows_of,
)

_ANSWER_COLUMNS = ("argmax_text", "argmax_token", "answer", "token_text")
_COLUMNS: dict[str, Kind] = {"concept": "text", "kind": "text", "condition": "text", "strength": "number"}


# -- continuations (Table 5 of ConTrans) -------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One prompt and all that was written after it, the unsteered first."""

    group: str
    """Concept, or group of items."""
    kind: str
    prompt: str
    continuations: list[ContinuationRow]


def read_examples(
    evaluation: Evaluation, points: Mapping[str, float], per_group: int = 2, most: int = 30
) -> list[Example]:
    """Prompts with continuations: from `examples.parquet`, else from results that hold continuations.

    `points`: condition -> strength that is of interest. Where a condition was continued at others only, its
    greatest is taken. The first `per_group` prompts of every group, at most `most`; none is picked by
    its outcome. Raises UserError for a damaged file.
    """
    for name in (EXAMPLES, RESULTS):
        location = evaluation.location / name
        table = read_columns(location, *columns_of(ContinuationRow)) if location.exists() else None
        if table is not None and name == RESULTS:
            table = _at_points(table, points)
        if table is not None and (rows := rows_of(table, ContinuationRow)):
            return _examples(rows, points, per_group, most)
    return []


def _at_points(table: pa.Table, points: Mapping[str, float]) -> pa.Table:
    """The rows without steering and those at the points, but none of validation items."""
    kept = pc.equal(table["strength"], 0.0)
    for condition, strength in points.items():
        at = pc.and_(pc.equal(table["condition"], condition), pc.equal(table["strength"], strength))
        kept = pc.or_(kept, at)
    if "kind" in table.column_names:
        kept = pc.and_(kept, pc.fill_null(pc.not_equal(table["kind"], "validation"), True))
    return table.filter(kept)


def _examples(
    rows: list[ContinuationRow], points: Mapping[str, float], per_group: int, most: int
) -> list[Example]:
    # Where a benchmark has groups of items, its rows may be of no concept.
    grouped = any(row.group is not None for row in rows)
    by_prompt: dict[tuple[str, str, str], list[ContinuationRow]] = {}
    for row in rows:
        group = (row.group if grouped else row.concept) or ""
        by_prompt.setdefault((group, row.item, row.concept), []).append(row)
    taken: dict[str, int] = {}
    examples = []
    for (group, *_), of_prompt in by_prompt.items():
        continuations = _continuations(of_prompt, points)
        if taken.get(group, 0) >= per_group or len(continuations) < 2:
            continue
        taken[group] = taken.get(group, 0) + 1
        examples.append(Example(group, of_prompt[0].kind or "", of_prompt[0].prompt, continuations))
    examples.sort(key=lambda example: example.group)
    if len(examples) > most:
        examples = [examples[index * len(examples) // most] for index in range(most)]
    return examples


def _continuations(rows: list[ContinuationRow], points: Mapping[str, float]) -> list[ContinuationRow]:
    """One of each condition, the unsteered first."""
    by_condition: dict[str, dict[float, ContinuationRow]] = {}
    for row in rows:
        name = BASE.name if row.strength == 0 else row.condition
        by_condition.setdefault(name, {})[row.strength] = row
    order = sorted(by_condition, key=lambda name: (name != BASE.name, condition_order(name)))
    return [
        at.get(points.get(name, 0.0)) or at[max(at, key=abs)]
        for name, at in ((name, by_condition[name]) for name in order)
    ]


# -- answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The most frequent answers on a concept's negative scenarios: (text, share of 1), before and after."""

    concept: str
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
    names = table.column_names if table is not None else []
    answer = next((name for name in _ANSWER_COLUMNS if name in names), None)
    if table is None or answer is None:
        return []
    table = table.filter(pc.equal(table["kind"], "negative"))
    zero = pc.equal(table["strength"], 0.0)
    steered = pc.and_(pc.equal(table["condition"], condition), pc.equal(table["strength"], strength))
    if BASE.name in pc.unique(table["condition"]).to_pylist():
        zero = pc.and_(zero, pc.equal(table["condition"], BASE.name))
    before, after = _counts(table.filter(zero), answer), _counts(table.filter(steered), answer)
    return [
        Answers(concept, _top(before.get(concept, {}), most), _top(counts, most))
        for concept, counts in sorted(after.items())
    ]


def _counts(table: pa.Table, answer: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for entry in table.group_by(["concept", answer]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(entry["concept"] or "", {})[entry[answer] or ""] = entry["count_all"]
    return counts


def _top(counts: dict[str, int], most: int) -> list[tuple[str, float]]:
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(text, count / total) for text, count in ranked[:most]]


# -- tokens (Table 8 of ConTrans) --------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """Tokens that are most often among those that rise, or fall, most: (text, number of prompts)."""

    concept: str
    condition: str
    strength: float
    n_prompts: int
    up: list[tuple[str, int]]
    down: list[tuple[str, int]]


def read_tokens(evaluation: Evaluation, condition: str, strength: float, most: int = 10) -> list[Moved]:
    """Tokens of every concept, the most frequent first; empty where none were counted.

    At the given strength where it was counted, else at the greatest; of the given condition where it is
    there, else of the first. Raises UserError for a damaged file.
    """
    location = evaluation.location / TOKENS
    if not location.exists():
        return []
    rows = read_rows(location, TokenRow)
    if not rows:
        return []
    read_under = condition if any(row.condition == condition for row in rows) else rows[0].condition
    rows = [row for row in rows if row.condition == read_under]
    strengths = {row.strength for row in rows}
    at = strength if strength in strengths else max(strengths, key=abs)
    rows = [row for row in rows if row.strength == at]
    return [
        _moved([row for row in rows if row.concept == concept], most)
        for concept in sorted({row.concept for row in rows})
    ]


def _moved(rows: list[TokenRow], most: int) -> Moved:
    """The tokens of one concept, condition and strength."""
    up, down = (
        sorted(
            ((row.token_text, row.count) for row in rows if row.direction == direction),
            key=lambda token: (-token[1], token[0]),
        )[:most]
        for direction in ("up", "down")
    )
    n_prompts = max(row.n_prompts for row in rows)
    return Moved(rows[0].concept, rows[0].condition, rows[0].strength, n_prompts, up, down)
