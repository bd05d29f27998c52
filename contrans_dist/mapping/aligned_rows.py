"""Two activation sets over the same texts, row beside row, and the part of a fit that each row belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config.map_options import MapProtocol
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.mapping.heldout import FIT, paper_split, split_of
from contrans_dist.store.activation_set import ActivationSet

_ROWS_READ = 65_536
"""Ids and texts that are read at a time."""


@dataclass(frozen=True)
class AlignedRows:
    """Two activation sets over the same texts, and which part of a fit each row belongs to."""

    source: ActivationSet
    target: ActivationSet
    split: NDArray[np.str_]
    rows: NDArray[np.int64] | None = None
    """Only these rows take part; None is all of them."""

    def tokens(self) -> NDArray[np.int64]:
        """The token that each row of the target was taken from."""
        tables = [
            self.target.read_columns(["token_id"], start, min(start + _ROWS_READ, self.target.n_rows))
            for start in range(0, self.target.n_rows, _ROWS_READ)
        ]
        tokens = np.concatenate([table.column("token_id").to_numpy().astype(np.int64) for table in tables])
        return tokens if self.rows is None else tokens[self.rows]

    def read(self, side: ActivationSet, block: int, n_rows: int | None = None) -> NDArray[np.float32]:
        """The rows that take part, or the first `n_rows` of them: float32 `[rows, d]`."""
        if self.rows is None:
            return side.read_block(block, 0, n_rows)
        return side.read_block(block)[self.rows[:n_rows]]


def join(
    source: ActivationSet, target: ActivationSet, protocol: MapProtocol, rows: NDArray[np.int64] | None = None
) -> AlignedRows:
    """Join two activation sets on `row`; rows that one of them was harvested without are left out.

    Args:
        source: Of the source model.
        target: Of the target model.
        protocol: The default one holds rows out by a hash of the text, or of the text that a prefix was cut
            from; equal prefixes stay together.
        rows: Only these of the source's take part.

    Raises:
        UserError: Naming the first row whose texts differ.
    """
    _check_dates(source, target)
    source, target, rows = _in_both(source, target, rows)
    row = _first_difference(source, target)
    if row is not None:
        raise UserError(
            f"{source.location} and {target.location} differ in row {row}: harvest both on the same texts"
        )
    n = source.n_rows if rows is None else len(rows)
    if protocol == "default":
        split = _held_out(source)
        split = split if rows is None else split[rows]
    elif protocol == "paper":
        split = paper_split(n)
    else:
        split = np.full(n, FIT)
    return AlignedRows(source, target, split, rows)


def _held_out(source: ActivationSet) -> NDArray[np.str_]:
    """The part of each row, by its text or by the text that it was cut from."""
    if "source_row" not in source.columns:
        return np.concatenate([split_of([]), *map(split_of, column_text(source, "text_id"))])
    split = np.concatenate([split_of([]), *map(split_of, column_text(source, "source_row"))])
    # Texts that begin alike give equal prefixes: these go where the first of them goes.
    ids = np.concatenate([np.array([], str), *map(np.array, column_text(source, "text_id"))])
    _, first, same = np.unique(ids, return_index=True, return_inverse=True)
    return split[first[same]]


def _check_dates(source: ActivationSet, target: ActivationSet) -> None:
    """Raise UserError where two chat templates were told different days: their prompts may differ by it."""
    days = [side.manifest.identity.chat_date for side in (source, target)]
    if None not in days and days[0] != days[1]:
        raise UserError(
            f"{source.location} has chat date {days[0]}, {target.location} {days[1]}: harvest both with the "
            "same --chat-date"
        )


def _in_both(
    source: ActivationSet, target: ActivationSet, rows: NDArray[np.int64] | None
) -> tuple[ActivationSet, ActivationSet, NDArray[np.int64] | None]:
    """The sets without the rows of the input that the other was harvested without, and `rows` among them."""
    numbers = source.row_numbers(), target.row_numbers()
    left_out = [{text.row for text in side.manifest.skipped} for side in (source, target)]
    if left_out[0] == left_out[1]:
        return source, target, rows
    both = np.setdiff1d(np.concatenate(numbers), list(left_out[0] | left_out[1]))
    note(f"{source.location} and {target.location}: {len(left_out[0] ^ left_out[1])} rows are in one alone")
    if rows is not None:
        wanted = numbers[0][rows]
        rows = np.searchsorted(both, wanted[np.isin(wanted, both)])
    return source.keeping(both), target.keeping(both), rows


def column_text(side: ActivationSet, name: str) -> Iterator[list[str]]:
    """A column's values as text, some rows at a time: all of them at once may be large."""
    for start in range(0, side.n_rows, _ROWS_READ):
        column = side.read_columns([name], start, min(start + _ROWS_READ, side.n_rows)).column(name)
        yield [str(value) for value in column.to_pylist()]


def _first_difference(source: ActivationSet, target: ActivationSet) -> int | None:
    """The first row in which the sets' text ids differ; None where they are the same."""
    sides = (column_text(side, "text_id") for side in (source, target))
    for index, (a, b) in enumerate(zip(*sides, strict=False)):
        if a != b:
            pairs = enumerate(zip(a, b, strict=False))
            within = next((row for row, (x, y) in pairs if x != y), min(len(a), len(b)))
            return index * _ROWS_READ + within
    return None if source.n_rows == target.n_rows else min(source.n_rows, target.n_rows)


def side_by_side(blocks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows of several blocks, each [n, d], as rows [n, blocks * d]."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
