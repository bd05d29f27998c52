"""What the target answered, and the tokens that rise and fall: the most frequent of each concept."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.evaluation.analysis import Evaluation, Verdict, number, strength_text
from contrans_dist.evaluation.conditions import BASE, condition_of
from contrans_dist.report.parts import Cell, Table
from contrans_dist.store.tables import RESULTS, TOKENS, Kind, TokenRow, read_columns, read_rows

_ANSWER = "argmax_text"
_COLUMNS: dict[str, Kind] = {"concept": "text", "kind": "text", "condition": "text", "strength": "number"}
_MOST_ANSWERS, _MOST_TOKENS = 3, 10


def answers_table(evaluation: Evaluation, verdict: Verdict) -> Table | None:
    """The most frequent answers on negative scenarios before and after steering, for each concept.

    Read from `results.parquet`; None when that is missing or holds no answers' texts. Raises UserError when
    it is damaged.
    """
    location = evaluation.location / RESULTS
    if not location.exists():
        return None
    table = read_columns(location, _COLUMNS, {_ANSWER: "text"})
    if table is None or _ANSWER not in table.column_names:
        return None
    table = table.filter(pc.equal(table["kind"], "negative"))
    zero = pc.equal(table["strength"], 0.0)
    steered = pc.and_(
        pc.equal(table["condition"], verdict.effect.name), pc.equal(table["strength"], verdict.strength)
    )
    if BASE.name in pc.unique(table["condition"]).to_pylist():
        zero = pc.and_(zero, pc.equal(table["condition"], BASE.name))
    before, after = _counts(table.filter(zero)), _counts(table.filter(steered))
    if not after:
        return None
    return Table(
        ["Concept", "Answers without steering", f"Answers at strength {strength_text(verdict.strength)}"],
        [
            [Cell(concept), Cell(_shares(before.get(concept, Counter()))), Cell(_shares(after[concept]))]
            for concept in sorted(after)
        ],
        "The most frequent first tokens on negative scenarios.",
        numbers=False,
    )


def _counts(table: pa.Table) -> dict[str, Counter[str]]:
    """By concept, how often each answer was given."""
    counts: dict[str, Counter[str]] = {}
    for entry in table.group_by(["concept", _ANSWER]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(entry["concept"] or "", Counter())[entry[_ANSWER] or ""] += entry["count_all"]
    return counts


def _shares(counts: Counter[str]) -> str:
    total = counts.total()
    return ", ".join(
        f"“{text.strip()}” {number(count / total, True, 0)}"
        for text, count in _most_frequent(counts.items(), _MOST_ANSWERS)
    )


def _most_frequent(counts: Iterable[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda entry: (-entry[1], entry[0]))[:most]


def token_table(evaluation: Evaluation, verdict: Verdict) -> Table | None:
    """Table 8 of ConTrans: for each concept the tokens that rise most and fall most, with the number of
    prompts; None where none were counted.

    Under the verdict's condition where it was counted, else under the first; at its strength, else at the
    greatest. Raises UserError for a damaged file.
    """
    location = evaluation.location / TOKENS
    rows = read_rows(location, TokenRow) if location.exists() else []
    if not rows:
        return None
    conditions = [row.condition for row in rows]
    condition = verdict.effect.name if verdict.effect.name in conditions else conditions[0]
    strengths = {row.strength for row in rows if row.condition == condition}
    strength = verdict.strength if verdict.strength in strengths else max(strengths, key=abs)
    rows = [row for row in rows if (row.condition, row.strength) == (condition, strength)]
    return Table(
        ["Concept", "Rise most", "Fall most"],
        [
            _token_cells([row for row in rows if row.concept == concept])
            for concept in sorted({row.concept for row in rows})
        ],
        f"{condition_of(condition).title} at strength {strength_text(strength)}. The number is of prompts in "
        "which a token is among those whose probability rises, or falls, most. ␣: a space before the word.",
        numbers=False,
    )


def _token_cells(rows: list[TokenRow]) -> list[Cell]:
    """The row of one concept."""
    cells = [Cell(rows[0].concept, f"{max(row.n_prompts for row in rows)} prompts")]
    for direction in ("up", "down"):
        counts = [(row.token_text, row.count) for row in rows if row.direction == direction]
        tokens = _most_frequent(counts, _MOST_TOKENS)
        cells.append(Cell(" · ".join(f"{_visible(text)}\u00a0{count}" for text, count in tokens) or "–"))
    return cells


def _visible(text: str) -> str:
    """A token with its whitespace visible: what differs must look different."""
    shown = text.replace("\n", "↵").replace("\t", "⇥")
    start = len(shown) - len(shown.lstrip(" "))
    return "␣" * start + shown[start:]
