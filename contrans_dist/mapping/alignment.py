"""Two activation sets over the same texts, joined: their split, and the pairs of blocks to fit maps for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config.map_options import blocks_below, check_source_blocks
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.mapping.fit import Protocol
from contrans_dist.mapping.heldout import FIT, paper_split, split_of
from contrans_dist.mapping.map_set import Pair, R2Table
from contrans_dist.models import matched_depth, resolve_blocks
from contrans_dist.store.activation_set import ActivationSet

_ROWS_READ = 65_536
"""Ids and texts that are read at a time."""
_TABLE_ROWS = 4_096
"""Rows that the table of all pairs is fitted on: it ranks pairs, it is not the map."""


@dataclass(frozen=True)
class Joined:
    """Two activation sets over the same texts, and which part of a fit each row belongs to."""

    source: ActivationSet
    target: ActivationSet
    split: NDArray[np.str_]
    rows: NDArray[np.int64] | None = None
    """Only these rows take part; None is all of them."""

    def read_source(self, blocks: Sequence[int]) -> NDArray[np.float32]:
        """The source's rows at several blocks, side by side: float32 `[rows, blocks * d]`."""
        return np.concatenate([self.read(self.source, block) for block in blocks], axis=1)

    def tokens(self) -> NDArray[np.int64]:
        """The token that each row of the target was taken from."""
        runs = [
            self.target.read_columns(["token_id"], start, min(start + _ROWS_READ, self.target.n_rows))
            for start in range(0, self.target.n_rows, _ROWS_READ)
        ]
        tokens = np.concatenate([run.column("token_id").to_numpy().astype(np.int64) for run in runs])
        return tokens if self.rows is None else tokens[self.rows]

    def read(self, side: ActivationSet, block: int, n_rows: int | None = None) -> NDArray[np.float32]:
        """The rows that take part, or the first `n_rows` of them: float32 `[rows, d]`."""
        if self.rows is None:
            return side.read_block(block, 0, n_rows)
        return side.read_block(block)[self.rows[:n_rows]]


def join(
    source: ActivationSet, target: ActivationSet, protocol: Protocol, rows: NDArray[np.int64] | None = None
) -> Joined:
    """Join on `row`; the text ids must agree. Raises UserError naming the first row that differs.

    Rows that one of them was harvested without are left out. `rows`: only these of the source's take part.

    The default protocol holds rows out by a hash of the text, or of the text that a prefix was cut from.
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
        name = "source_row" if "source_row" in source.columns else "text_id"
        split = np.concatenate([split_of([]), *map(split_of, values(source, name))])
        split = split if rows is None else split[rows]
    elif protocol == "paper":
        split = paper_split(n)
    else:
        split = np.full(n, FIT)
    return Joined(source, target, split, rows)


def _check_dates(source: ActivationSet, target: ActivationSet) -> None:
    """Raise UserError where two chat templates were told different days: their prompts may differ by it."""
    days = [side.manifest.get("identity", {}).get("chat_date") for side in (source, target)]
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
    left_out = [{each.row for each in side.facts.skipped} for side in (source, target)]
    if left_out[0] == left_out[1]:
        return source, target, rows
    both = np.setdiff1d(np.concatenate(numbers), list(left_out[0] | left_out[1]))
    note(f"{source.location} and {target.location}: {len(left_out[0] ^ left_out[1])} rows are in one alone")
    if rows is not None:
        asked = numbers[0][rows]
        rows = np.searchsorted(both, asked[np.isin(asked, both)])
    return source.keeping(both), target.keeping(both), rows


def values(side: ActivationSet, name: str) -> Iterator[list[str]]:
    """A column's values as text, some rows at a time: all of them at once may be large."""
    for start in range(0, side.n_rows, _ROWS_READ):
        column = side.read_columns([name], start, min(start + _ROWS_READ, side.n_rows)).column(name)
        yield [str(value) for value in column.to_pylist()]


def _first_difference(source: ActivationSet, target: ActivationSet) -> int | None:
    """The first row in which the sets' text ids differ; None where they are the same."""
    sides = (values(side, "text_id") for side in (source, target))
    for index, (a, b) in enumerate(zip(*sides, strict=False)):
        if a != b:
            pairs = enumerate(zip(a, b, strict=False))
            within = next((row for row, (x, y) in pairs if x != y), min(len(a), len(b)))
            return index * _ROWS_READ + within
    return None if source.n_rows == target.n_rows else min(source.n_rows, target.n_rows)


def choose_pairs(spec: str, joined: Joined) -> tuple[list[Pair], R2Table | None]:
    """The pairs of blocks that `--blocks` asks for, and the table of all pairs where that was needed.

    `depth`: three quarters of both models; `24:30` (several joined by commas); `best`: highest validation R2.
    """
    source, target = joined.source, joined.target
    if spec == "depth":
        return [(matched_depth(source.n_blocks), matched_depth(target.n_blocks))], None
    if spec == "best":
        table = all_pairs(joined)
        return [table.best()], table
    pairs = []
    for piece in spec.split(","):
        sides = piece.split(":")
        if len(sides) != 2:
            raise UserError(f"--blocks {spec}: expected depth, best, or source:target such as 24:30")
        pairs.append((one_block(sides[0], source.n_blocks), one_block(sides[1], target.n_blocks)))
    return pairs, None


def one_block(spec: str, n_blocks: int, flag: str = "--blocks") -> int:
    """The block that one side of `source:target` names. Raises UserError when it names none or several."""
    blocks = resolve_blocks(spec, n_blocks, flag)
    if len(blocks) != 1:
        raise UserError(f"{flag} {spec}: expected one block on each side, such as 24:30, found {len(blocks)}")
    return blocks[0]


def all_pairs(joined: Joined) -> R2Table:
    """Validation R2 of the ridge map of every pair of harvested blocks, on at most 4,096 rows."""
    split = joined.split
    if set(split) == {FIT}:
        raise UserError("--blocks best needs held-out rows, which protocol lcross has not; name the pair")
    kept = split[:_TABLE_ROWS]
    sides = (_Blocks(joined, joined.source, len(kept)), _Blocks(joined, joined.target, len(kept)))
    try:
        r2 = r2_table(sides[0], sides[1], kept)
    except ValueError as error:
        raise UserError(f"{joined.source.location}: {error}") from error
    return R2Table(joined.source.blocks, joined.target.blocks, r2)


@dataclass(frozen=True)
class _Blocks(Mapping[int, NDArray[np.float32]]):
    """The first rows of each harvested block, read when asked for: all blocks at once may not fit."""

    joined: Joined
    side: ActivationSet
    n_rows: int

    def __getitem__(self, block: int) -> NDArray[np.float32]:
        return self.joined.read(self.side, block, self.n_rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.side.blocks)

    def __len__(self) -> int:
        return len(self.side.blocks)


def read_blocks(block: int, protocol: str, source_blocks: int | None, held: set[int]) -> list[int]:
    """The source blocks that a pair's map reads, ascending, its own last."""
    try:
        check_source_blocks(protocol, source_blocks)
    except ValueError as error:
        raise UserError(str(error)) from error
    wanted = blocks_below(block, protocol, source_blocks)
    missing = [each for each in wanted if each not in held]
    if not missing:
        return wanted
    if source_blocks is not None and missing != [block]:
        raise UserError(
            f"source_blocks {source_blocks}: expected the source's blocks {wanted}, there are {sorted(held)}"
        )
    # Without a number, no more than there is: a harvest of one block still gives the map of that block.
    return [each for each in wanted if each > max((m for m in missing if m != block), default=-1)]
