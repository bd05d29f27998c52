"""Continuations before and after steering, side by side (Table 5 of ConTrans)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.evaluation.analysis import Evaluation, Verdict, number, strength_text
from contrans_dist.evaluation.conditions import BASE, condition_of, condition_order
from contrans_dist.store.tables import EXAMPLES, RESULTS, ContinuationRow, columns_of, read_columns, rows_of

_MOST_LETTERS = 700
_PER_GROUP, _MOST = 2, 30


@dataclass(frozen=True)
class Said:
    """One continuation as it is shown."""

    title: str
    text: str
    note: str
    kind: str


@dataclass(frozen=True)
class Example:
    """A prompt with its continuations side by side, the unsteered first."""

    group: str
    prompt: str
    said: list[Said]


def examples_of(evaluation: Evaluation, verdict: Verdict) -> list[Example]:
    """Examples at the strengths of the verdict: unsteered, under the effect, and what it is compared with.

    The first prompts of every group: none is picked by its outcome. Raises UserError for a damaged file.
    """
    points = {verdict.effect.name: verdict.strength}
    points |= {
        rival.condition.name: rival.strength
        for rival in [*verdict.references, *verdict.controls]
        if rival.condition.role != "control" or rival.condition.drawn
    }
    return _examples(_continuations(evaluation, points), points)


def _continuations(evaluation: Evaluation, points: Mapping[str, float]) -> list[ContinuationRow]:
    """From `examples.parquet`, else from results that hold continuations: of those the rows without steering
    and at the points, but none of validation items."""
    for name in (EXAMPLES, RESULTS):
        location = evaluation.location / name
        table = read_columns(location, *columns_of(ContinuationRow)) if location.exists() else None
        if table is not None and name == RESULTS:
            table = _at_points(table, points)
        if table is not None and (rows := rows_of(table, ContinuationRow)):
            return rows
    return []


def _at_points(table: pa.Table, points: Mapping[str, float]) -> pa.Table:
    kept = pc.equal(table["strength"], 0.0)
    for condition, strength in points.items():
        at = pc.and_(pc.equal(table["condition"], condition), pc.equal(table["strength"], strength))
        kept = pc.or_(kept, at)
    if "kind" in table.column_names:
        kept = pc.and_(kept, pc.fill_null(pc.not_equal(table["kind"], "validation"), True))
    return table.filter(kept)


def _examples(rows: list[ContinuationRow], points: Mapping[str, float]) -> list[Example]:
    # Where a benchmark has groups of items, its rows may be of no concept.
    grouped = any(row.group is not None for row in rows)
    by_prompt: dict[tuple[str, str, str], list[ContinuationRow]] = {}
    for row in rows:
        group = (row.group if grouped else row.concept) or ""
        by_prompt.setdefault((group, row.item, row.concept), []).append(row)
    taken: Counter[str] = Counter()
    examples = []
    for (group, *_), of_prompt in sorted(by_prompt.items(), key=lambda entry: entry[0][0]):
        shown = _one_each(of_prompt, points)
        if taken[group] >= _PER_GROUP or len(shown) < 2:
            continue
        taken[group] += 1
        kind = "" if of_prompt[0].kind == "evaluation" else of_prompt[0].kind
        title = " · ".join(filter(None, (group, kind)))
        examples.append(Example(title, _cut(of_prompt[0].prompt), [_said(row) for row in shown]))
    if len(examples) > _MOST:
        examples = [examples[index * len(examples) // _MOST] for index in range(_MOST)]
    return examples


def _one_each(rows: list[ContinuationRow], points: Mapping[str, float]) -> list[ContinuationRow]:
    """One of each condition, the unsteered first: at its point, else at its greatest strength."""
    by_condition: dict[str, dict[float, ContinuationRow]] = {}
    for row in rows:
        name = BASE.name if row.strength == 0 else row.condition
        by_condition.setdefault(name, {})[row.strength] = row
    order = sorted(by_condition, key=lambda name: (name != BASE.name, condition_order(name)))
    return [
        at.get(points.get(name, 0.0)) or at[max(at, key=abs)]
        for name, at in ((name, by_condition[name]) for name in order)
    ]


def _said(continuation: ContinuationRow) -> Said:
    name = condition_of(continuation.condition) if continuation.strength else BASE
    at = continuation.strength and not name.no_vector
    judged = continuation.toxicity
    return Said(
        title=name.title + (f", {strength_text(continuation.strength)}" if at else ""),
        text=_cut(continuation.continuation) or "(nothing)",
        note="" if judged is None else f"toxic with probability {number(judged, True, 0)}",
        kind="base" if name is BASE else name.role,
    )


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"
