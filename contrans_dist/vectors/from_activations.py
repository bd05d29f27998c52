"""Concept vectors from an activation set: which of its rows are contrasted, and the vector of each block."""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contrans_dist.data.contamination import unit_hashes
from contrans_dist.data.table_hash import python_values
from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.extract import concept_vector, one_vs_rest

_MOST_LETTERS = 100
"""Of a value, in a message."""
_MOST_VALUES = 8
"""Of a column that a message lists, when none is the one that was named."""


def select_rows(activations: ActivationSet, criterion: str) -> NDArray[np.int64]:
    """The rows of an activation set that meet a criterion, as `--positive` and `--rows` write it.

    Args:
        activations: The set, of which only the named columns are read.
        criterion: `column=value`; several, joined by commas, must all hold. A comma belongs to the value
            where no `=` follows before the next one, or where a backslash is before it. Numbers are compared
            as numbers, so `1` and `1.0` name the same; a list has the value when one of its elements is it; a
            null has none.

    Returns:
        Row numbers in ascending order, int64 `[n]`, n > 0.

    Raises:
        UserError: For a criterion without `=`, a column that is not there or holds no such values, or no row
            that meets it; it says then which values there are.
    """
    pairs = _pairs(criterion)
    table = activations.read_columns(list(dict.fromkeys(name for name, _ in pairs)))
    return _rows_where(table, pairs, str(activations.location))


def _rows_where(table: pa.Table, pairs: Sequence[tuple[str, str]], where: str) -> NDArray[np.int64]:
    """`select_rows` for (column, value) pairs."""
    meets_all = np.ones(table.num_rows, bool)
    for name, value in pairs:
        column = table.column(name)
        meets = _having(column, value, f"{where}: column {name!r}")
        if not meets.any():
            raise UserError(
                f"{where}: no row has {_shortened(f'{name}={value}')}; {name} is {_commonest(column)}"
            )
        meets_all &= meets
    rows = np.flatnonzero(meets_all)
    if not rows.size:
        criterion = _shortened(",".join(f"{name}={value}" for name, value in pairs))
        raise UserError(f"{where}: no row has {criterion}, though some have each of them")
    return rows


def _pairs(criterion: str) -> list[tuple[str, str]]:
    """The (column, value) pairs of a criterion."""
    pairs: list[tuple[str, str]] = []
    for piece in re.split(r"(?<!\\),", criterion):
        name, mark, value = piece.replace("\\,", ",").partition("=")
        if mark and name:
            pairs.append((name, value))
        elif pairs and not mark:
            pairs[-1] = pairs[-1][0], f"{pairs[-1][1]},{name}"
        else:
            raise UserError(f"{criterion!r}: expected column=value, such as label=positive")
    return pairs


def _having(column: pa.ChunkedArray, value: str, where: str) -> NDArray[np.bool_]:
    """Which rows of a column have a value, bool `[n]`."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        owners = np.array(pc.list_parent_indices(column))
        rows = np.zeros(len(column), bool)
        rows[owners[_having(pc.list_flatten(column), value, where)]] = True
        return rows
    if pa.types.is_dictionary(kind):
        return _having(column.cast(kind.value_type), value, where)
    short = pa.types.is_float16(kind) or pa.types.is_float32(kind)
    try:
        codes = (column.cast(pa.float32()) if short else column).combine_chunks().dictionary_encode()
    except pa.ArrowException as error:
        raise UserError(f"{where} holds {kind}; expected texts, numbers or lists of them") from error
    held = python_values(codes.dictionary)
    if short:  # the number that was written, 0.1, and not what is nearest to it
        held = [float(str(np.float32(number))) for number in held]
    equal = [_equal(distinct, value) for distinct in held]
    return np.array([*equal, False])[codes.indices.fill_null(len(equal)).to_numpy(zero_copy_only=False)]


def _equal(held: Any, value: str) -> bool:
    """Whether a value that a column holds is the one that a criterion names."""
    if isinstance(held, bool):
        return value.lower() in (str(held).lower(), str(int(held)))
    if isinstance(held, int | float | Decimal):
        try:
            return Decimal(value) == Decimal(str(held))
        except InvalidOperation:
            return False
    return str(held) == value


def _shortened(value: Any) -> str:
    """A value as part of a message."""
    text = str(value)
    return text[:_MOST_LETTERS] if text.isprintable() else repr(text[:_MOST_LETTERS])


def _commonest(column: pa.ChunkedArray) -> str:
    """The commonest values of a column with their counts, as part of a message."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    counts = Counter(python_values(column)).most_common(_MOST_VALUES + 1)
    parts = [
        f"{'null' if value is None else _shortened(value)} ({count})"
        for value, count in counts[:_MOST_VALUES]
    ]
    return ", ".join(parts) + (", ..." if len(counts) > _MOST_VALUES else "")


def refine(
    activations: ActivationSet,
    positive: NDArray[np.int64],
    negative: NDArray[np.int64],
    concept: str,
    method: str = "mean",
) -> ConceptVector:
    """The concept vector of two groups of rows, at every block that the set has.

    Args:
        activations: The contrast texts' activation set.
        positive: Row numbers of the texts with the concept, int64 `[n]`.
        negative: Row numbers of the texts without, int64 `[m]`.
        concept: Its name.
        method: See `extract.concept_vector`. `pca` takes the whole pairs alone where `pair_id` marks them.

    Raises:
        UserError: For rows that make no vector, naming set and concept.
    """
    if method == "pca" and "pair_id" in activations.columns:
        positive, negative = whole_pairs(activations.read_columns(["pair_id"]), positive, negative)
    values = np.zeros((activations.n_blocks, activations.d), np.float32)
    for block in activations.blocks:
        rows = activations.read_block(block)
        try:
            values[block] = concept_vector(rows[positive], rows[negative], method)
        except ValueError as error:
            raise UserError(f"{activations.location}, concept {concept}: {error}") from error
    texts = np.array(activations.read_columns(["text"]).column("text").to_pylist(), dtype=object)
    fingerprint = activations.manifest.fingerprint
    return ConceptVector(
        values=values,
        concept=concept,
        model=activations.manifest.identity.model,
        method=method,
        n_positive=len(positive),
        n_negative=len(negative),
        norms=activations.norms,
        text_hashes=unit_hashes(texts[np.concatenate([positive, negative])]),
        steps=(f"{method} over {len(positive)} + {len(negative)} rows of {fingerprint}",),
    )


def concept_rows(
    activations: ActivationSet, concept: str, seed: int = 0, limit: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positive and the negative rows of one concept of a contrast set.

    Args:
        activations: With a column `label`, a concept's rows are labelled `positive` and `negative`; without,
            its rows stand against as many of the other concepts' (`extract.one_vs_rest`).
        concept: As the column `concept` has it.
        seed: Draws the other concepts' rows.
        limit: Keep only the first so many of each side.

    Returns:
        Row numbers (positive, negative), int64. Where `pair_id` marks pairs, the first are those of whole
        pairs; where texts were left out of the harvest too, there are no others.

    Raises:
        UserError: When either side is empty.
    """
    names = [name for name in ("label", "pair_id") if name in activations.columns]
    table, where = activations.read_columns(["concept", *names]), str(activations.location)
    return contrast_rows(table, where, concept, seed, limit, bool(activations.manifest.skipped))


def contrast_rows(
    table: pa.Table, where: str, concept: str, seed: int = 0, limit: int | None = None, pairs: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`concept_rows` of contrast texts that need not be harvested.

    `where`: what a message calls them. `pairs`: whether half a pair may be missing.
    """
    if "label" not in table.column_names:
        try:
            positive, negative = one_vs_rest(_concepts(table), concept, seed)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        return positive[:limit], negative[:limit]
    positive = _rows_where(table, [("concept", concept), ("label", "positive")], where)
    negative = _rows_where(table, [("concept", concept), ("label", "negative")], where)
    if "pair_id" in table.column_names:
        first, second = whole_pairs(table, positive, negative)
        if not pairs:
            first = np.concatenate([first, np.setdiff1d(positive, first)])
            second = np.concatenate([second, np.setdiff1d(negative, second)])
        return np.sort(first[:limit]), np.sort(second[:limit])
    return positive[:limit], negative[:limit]


def whole_pairs(
    table: pa.Table, positive: NDArray[np.int64], negative: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of two sides that have a partner on the other, the two of a pair at one place; the sides as
    they are where none has one, since the ids say nothing of them then.

    Args:
        table: With a column `pair_id`. Rows with the same one are partners in their order, since several
            concepts may count their pairs from 0; a null is nobody's.
        positive: Row numbers, int64 `[n]`, whose order stays.
        negative: Row numbers, int64 `[m]`.
    """
    ids = [None if value is None else str(value) for value in python_values(table.column("pair_id"))]

    def keyed(rows: NDArray[np.int64]) -> dict[tuple[str, int], int]:
        met: Counter[str] = Counter()
        keys = {}
        for row in rows.tolist():
            name = ids[row]
            if name is not None:
                keys[name, met[name]] = row
                met[name] += 1
        return keys

    sides = keyed(positive), keyed(negative)
    both = [key for key in sides[0] if key in sides[1]]
    if not both:
        return positive, negative
    first, second = (np.array([side[key] for key in both], np.int64) for side in sides)
    return first, second


def concepts_in(activations: ActivationSet) -> list[str]:
    """The concepts of a contrast set, in order of appearance. Raises UserError without a column `concept`."""
    concepts = _concepts(activations.read_columns(["concept"]))
    return list(dict.fromkeys(concept for concept in concepts if concept is not None))


def _concepts(table: pa.Table) -> list[str | None]:
    """The concept of every row, as text."""
    values = python_values(table.column("concept"))
    return [None if value is None else str(value) for value in values]
