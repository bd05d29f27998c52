"""Sets of ToxiGen statements that have nothing in common: for evaluation, validation and refinement."""

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts load when first used

from contrans_dist.benchmarks.toxigen.data import Statement, group_name, plain, read_statements, words
from contrans_dist.data.texts import read_texts, records
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

PAIRS = 50
"""Kind and unkind remarks a group that a concept is refined from."""
_TONES = {"kind": False, "positive": False, "neutral": False, "unkind": True, "negative": True, "hate": True}


@dataclass(frozen=True)
class Draw:
    """Evaluation and validation statements, group by group, and what could not be had."""

    evaluation: list[Statement]
    validation: list[Statement]
    notes: tuple[str, ...]

    @property
    def remarks(self) -> set[str]:
        return _remarks([*self.evaluation, *self.validation])


def draw(statements: Sequence[Statement], per_group: int, validation: int, seed: int) -> Draw:
    """Toxic statements with a probability above 0.5, `validation` and then `per_group` of each group.

    No text is in both. Nor is a remark, as long as a group has enough without; a note says how many prompts
    share one, and which groups have fewer than were asked for. Raises UserError when nothing is left.
    """
    pool = [statement for statement in statements if statement.toxic and statement.probability > 0.5]
    by_group = {
        group: _shuffled(pool, group, seed) for group in sorted({statement.group for statement in pool})
    }
    for_validation = {g: _fewest_ties(of_group)[:validation] for g, of_group in by_group.items()}
    taken = _remarks(statement for of_group in for_validation.values() for statement in of_group)
    evaluation = {}
    for group, of_group in by_group.items():
        used = {statement.text for statement in for_validation[group]}
        rest = [statement for statement in of_group if statement.text not in used]
        evaluation[group] = sorted(rest, key=lambda statement: not taken.isdisjoint(statement.remarks))[
            :per_group
        ]
    notes = [
        *_short("evaluation", evaluation, per_group),
        *_short("validation", for_validation, validation),
    ]
    chosen = [statement for of_group in evaluation.values() for statement in of_group]
    shared = Counter(statement.group for statement in chosen if not taken.isdisjoint(statement.remarks))
    if shared:
        notes.append(
            "evaluation prompts that share a remark with a validation prompt, since there are no others: "
            + ", ".join(f"{group} {count}" for group, count in sorted(shared.items()))
        )
    if not chosen:
        raise UserError(
            f"toxigen: no prompts left to evaluate on: {len(pool)} are toxic with a probability above 0.5"
        )
    return Draw(
        chosen, [statement for of_group in for_validation.values() for statement in of_group], tuple(notes)
    )


def refinement_texts(
    folder: Location, seed: int, *, evaluation: int, validation: int
) -> dict[str, list[Any]]:
    """Columns `text`, `label`, `group`, `pair_id` of up to `PAIRS` pairs a group.

    Positive is what is labelled not toxic, negative what is labelled toxic. Nothing is in common with what an
    evaluation of the same folder and seed draws, with `evaluation` and `validation` prompts a group. From
    the folder's `remarks.jsonl`, with `text`, `group` and `label` (kind or unkind); else from the statements
    (those first whose probability agrees with the label, then the nearest to that); where there are prompt
    files alone, from their single remarks. Warns of groups with fewer pairs; raises UserError when there are
    none.
    """
    statements = read_statements(folder)
    taken = draw(statements, evaluation, validation, seed).remarks
    remarks = folder / "remarks.jsonl"
    pool = _single(_labelled(remarks) if remarks.exists() else statements)
    pool = [statement for statement in pool if taken.isdisjoint(statement.remarks)]
    pairs: dict[str, list[tuple[Statement, Statement]]] = {}
    for group in sorted({statement.group for statement in pool}):
        kind, unkind = (_agreeing(pool, group, toxic, seed) for toxic in (False, True))
        pairs[group] = list(zip(kind, unkind, strict=False))[:PAIRS]
    texts = [statement.text for of_group in pairs.values() for pair in of_group for statement in pair]
    if not texts:
        raise UserError(
            f"{folder}: no pairs left to refine from beside {evaluation} evaluation and {validation} "
            "validation prompts a group; ask for fewer of those"
        )
    for line in _short("refinement", pairs, PAIRS):
        warnings.warn(line, stacklevel=2)
    return {
        "text": texts,
        "label": ["positive", "negative"] * (len(texts) // 2),
        "group": [group for group, of_group in pairs.items() for _ in range(2 * len(of_group))],
        "pair_id": [number // 2 for number in range(len(texts))],
    }


def _labelled(location: Location) -> list[Statement]:
    rows = records(read_texts(location), str(location), ["text", "group", "label"])
    for number, row in enumerate(rows, 1):
        if not isinstance(row["label"], str) or row["label"] not in _TONES:
            raise UserError(
                f"{location}, line {number}: label {row['label']!r}: expected one of {', '.join(_TONES)}"
            )
    made = [(row["text"], group_name(str(row["group"])), _TONES[row["label"]]) for row in rows]
    return [Statement(plain(text), group, toxic, float(toxic)) for text, group, toxic in made]


def _single(statements: Sequence[Statement]) -> list[Statement]:
    """Lists of remarks (`- ...`) taken apart, each remark once; other statements as they are."""
    single: dict[str, Statement] = {}
    for statement in statements:
        if not statement.text.startswith("-"):
            single.setdefault(statement.text, statement)
            continue
        for line in statement.text.split("\n"):
            text = line.removeprefix("-").strip()
            if words(text):
                single.setdefault(words(text), replace(statement, text=text))
    return list(single.values())


def _agreeing(pool: Sequence[Statement], group: str, toxic: bool, seed: int) -> list[Statement]:
    mine = _shuffled([statement for statement in pool if statement.toxic == toxic], group, seed)
    return sorted(mine, key=lambda statement: max(0.0, (0.5 - statement.probability) * (1 if toxic else -1)))


def _shuffled(pool: Sequence[Statement], group: str, seed: int) -> list[Statement]:
    mine = [statement for statement in pool if statement.group == group]
    return random.Random(f"toxigen {seed} {group}").sample(mine, len(mine))


def _fewest_ties(statements: Sequence[Statement]) -> list[Statement]:
    """Those first that are tied to few others by shared remarks, however indirectly; else in order."""
    numbers: dict[str, int] = {}
    ties = [(i, numbers.setdefault(r, len(numbers))) for i, s in enumerate(statements) for r in s.remarks]
    n = len(statements)
    rows, columns = np.array(ties).T
    size = n + len(numbers)
    graph = scipy.sparse.coo_array((np.ones(len(ties)), (rows, n + columns)), shape=(size, size))
    cluster = scipy.sparse.csgraph.connected_components(graph, directed=False)[1][:n].tolist()
    sizes = Counter(cluster)
    return [statements[i] for i in sorted(range(n), key=lambda i: sizes[cluster[i]])]


def _remarks(statements: Iterable[Statement]) -> set[str]:
    return {remark for statement in statements for remark in statement.remarks}


def _short(kind: str, by_group: dict[str, Any], wanted: int) -> list[str]:
    few = [f"{group} {len(of_group)}" for group, of_group in by_group.items() if len(of_group) < wanted]
    return [f"{kind}: {wanted} a group asked for, there are fewer of {', '.join(few)}"] if few else []
