"""Concept vectors from an activation set: which rows are positive and negative, block by block."""

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

_LETTERS = 100
_VALUES = 8
"""Told of a column when none is the one asked for."""


def select_rows(activations: ActivationSet, condition: str) -> NDArray[np.int64]:
    """Rows that meet `column=value` (several, joined by commas, must all hold): int64 `[n]`.

    A comma belongs to the value where no `=` follows before the next one, or where a backslash is before it.
    Numbers are compared as numbers, so `1` and `1.0` name the same; a list has the value when one of its
    elements is it; a null has none. Raises UserError for a condition without `=`, a column that is not there
    or holds no such values, or no row that meets it, and says then which values there are.
    """
    return rows_where(activations, _pairs(condition))


def rows_where(activations: ActivationSet, wanted: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """`select_rows` for (column, value) pairs."""
    table = activations.read_columns(list(dict.fromkeys(name for name, _ in wanted)))
    mask = np.ones(table.num_rows, bool)
    for name, value in wanted:
        found = _having(table.column(name), value, f"{activations.location}: column {name!r}")
        if not found.any():
            there = _told(table.column(name))
            raise UserError(
                f"{activations.location}: no row has {_shown(f'{name}={value}')}; {name} is {there}"
            )
        mask &= found
    rows = np.flatnonzero(mask)
    if not rows.size:
        asked = _shown(",".join(f"{name}={value}" for name, value in wanted))
        raise UserError(f"{activations.location}: no row has {asked}, though some have each of them")
    return rows


def _pairs(condition: str) -> list[tuple[str, str]]:
    """The (column, value) pairs of a condition."""
    pairs: list[tuple[str, str]] = []
    for piece in re.split(r"(?<!\\),", condition):
        name, mark, value = piece.replace("\\,", ",").partition("=")
        if mark and name:
            pairs.append((name, value))
        elif pairs and not mark:
            pairs[-1] = pairs[-1][0], f"{pairs[-1][1]},{name}"
        else:
            raise UserError(f"{condition!r}: expected column=value, such as label=positive")
    return pairs


def _having(column: pa.ChunkedArray, value: str, where: str) -> NDArray[np.bool_]:
    """Which rows of a column have a value, bool `[n]`."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        owners = np.array(pc.list_parent_indices(column))
        mask = np.zeros(len(column), bool)
        mask[owners[_having(pc.list_flatten(column), value, where)]] = True
        return mask
    if pa.types.is_dictionary(kind):
        return _having(column.cast(kind.value_type), value, where)
    try:
        short = pa.types.is_float16(kind) or pa.types.is_float32(kind)
        codes = (column.cast(pa.float32()) if short else column).combine_chunks().dictionary_encode()
    except pa.ArrowException as error:
        raise UserError(f"{where} holds {kind}; expected texts, numbers or lists of them") from error
    values = python_values(codes.dictionary)
    if short:  # the number that was written, 0.1, and not what is nearest to it
        values = [float(str(np.float32(each))) for each in values]
    same = [_is(each, value) for each in values]
    indices = codes.indices.fill_null(len(same)).to_numpy(zero_copy_only=False)
    return np.array([*same, False])[indices]


def _is(found: Any, value: str) -> bool:
    """Whether a value of a column is the one that a condition names."""
    if isinstance(found, bool):
        return value.lower() in (str(found).lower(), str(int(found)))
    if isinstance(found, int | float | Decimal):
        try:
            return Decimal(value) == Decimal(str(found))
        except InvalidOperation:
            return False
    return str(found) == value


def _shown(value: Any) -> str:
    """A value as part of a line."""
    text = str(value)
    return text[:_LETTERS] if text.isprintable() else repr(text[:_LETTERS])


def _told(column: pa.ChunkedArray) -> str:
    """The commonest values of a column with their counts, for people."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    counts = Counter(python_values(column)).most_common(_VALUES + 1)
    told = [f"{'null' if value is None else _shown(value)} ({count})" for value, count in counts[:_VALUES]]
    return ", ".join(told) + (", ..." if len(counts) > _VALUES else "")


def refine(
    activations: ActivationSet,
    positive: NDArray[np.int64],
    negative: NDArray[np.int64],
    concept: str,
    method: str = "mean",
) -> ConceptVector:
    """The concept vector of two groups of rows, at every harvested block (equation 1, or PCA)."""
    values = np.zeros((activations.n_blocks, activations.d), np.float32)
    for block in activations.blocks:
        rows = activations.read_block(block)
        try:
            values[block] = concept_vector(rows[positive], rows[negative], method)
        except ValueError as error:
            raise UserError(f"{activations.location}, concept {concept}: {error}") from error
    texts = np.array(activations.read_columns(["text"]).column("text").to_pylist(), dtype=object)
    return ConceptVector(
        values=values,
        concept=concept,
        model=activations.manifest["identity"]["model"],
        method=method,
        n_positive=len(positive),
        n_negative=len(negative),
        norms=activations.norms,
        text_hashes=unit_hashes(texts[np.concatenate([positive, negative])]),
        steps=(
            f"{method} over {len(positive)} + {len(negative)} rows of {activations.manifest['fingerprint']}",
        ),
    )


def concept_rows(
    activations: ActivationSet, concept: str, seed: int = 0, limit: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positive and negative rows of one concept.

    With a `label` column: the rows labelled positive and negative of that concept. Without: its own rows
    against as many drawn from the other concepts (seeded). `limit` keeps the first pairs.
    """
    if "label" in activations.columns:
        positive = rows_where(activations, [("concept", concept), ("label", "positive")])
        negative = rows_where(activations, [("concept", concept), ("label", "negative")])
        if activations.facts.skipped and "pair_id" in activations.columns:
            # Pairs are taken by their order: one that has lost a text would shift all behind it.
            pairs = np.array(
                activations.read_columns(["pair_id"]).column("pair_id").to_pylist(), dtype=object
            )
            positive, negative = (
                mine[np.isin(pairs[mine], pairs[other])]
                for mine, other in ((positive, negative), (negative, positive))
            )
    else:
        labels = _concepts(activations)
        try:
            positive, negative = one_vs_rest(labels, concept, seed)
        except ValueError as error:
            raise UserError(f"{activations.location}: {error}") from error
    return positive[:limit], negative[:limit]


def concepts_in(activations: ActivationSet) -> list[str]:
    """The concepts of a contrast set, in order of appearance. Raises UserError without a `concept` column."""
    return list(dict.fromkeys(concept for concept in _concepts(activations) if concept is not None))


def _concepts(activations: ActivationSet) -> list[str | None]:
    """The concept of every row, as text."""
    found = python_values(activations.read_columns(["concept"]).column("concept"))
    return [None if concept is None else str(concept) for concept in found]
