"""Which blocks a map joins: the pairs that `--blocks` asks for, and the source blocks that each map reads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config.map_options import MapOptions
from contrans_dist.console import Progress, note
from contrans_dist.errors import UserError
from contrans_dist.mapping.aligned_rows import AlignedRows
from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.mapping.heldout import FIT
from contrans_dist.models import matched_depth, resolve_blocks, upper_blocks
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.map_file import BlockTable, Pair

_TABLE_ROWS = 4_096
"""Rows that the table of all pairs is fitted on: it ranks pairs, it is not the map."""

UPPER = 1 / 3
"""Share of a model's blocks, the upper ones, among which R2 may choose."""


def choose_pairs(spec: str, aligned: AlignedRows) -> tuple[list[Pair], BlockTable | None]:
    """The pairs of blocks that `--blocks` asks for, and the table of all pairs where that was needed.

    `depth`: three quarters of both models; `24:30` (several joined by commas); `r2`: highest validation R2;
    `best`: the same among the upper third of both models' blocks, for an early block is easily predicted and
    does not steer (jobs/MAPS.md).
    """
    source, target = aligned.source, aligned.target
    if spec == "depth":
        return [(matched_depth(source.n_blocks), matched_depth(target.n_blocks))], None
    if spec in ("best", "r2"):
        table = all_pairs(aligned)
        upper = [upper_blocks(side.n_blocks, UPPER) for side in (source, target)]
        chosen = (table.only(*upper) if spec == "best" else table).best()
        if spec == "best":
            note(
                f"blocks {chosen[0]} -> {chosen[1]}: the highest held-out R2 ({table.at(chosen):.2f}) in the "
                "upper third of both models; which pair steers, `contrans run` tries out"
            )
        return [chosen], table
    pairs = []
    for piece in spec.split(","):
        sides = piece.split(":")
        if len(sides) != 2:
            raise UserError(f"--blocks {spec}: expected depth, best, r2, or source:target such as 24:30")
        pairs.append((one_block(sides[0], source.n_blocks), one_block(sides[1], target.n_blocks)))
    return pairs, None


def one_block(spec: str, n_blocks: int, flag: str = "--blocks") -> int:
    """The block that one side of `source:target` names. Raises UserError when it names none or several."""
    blocks = resolve_blocks(spec, n_blocks, flag)
    if len(blocks) != 1:
        raise UserError(f"{flag} {spec}: expected one block on each side, such as 24:30, found {len(blocks)}")
    return blocks[0]


def all_pairs(aligned: AlignedRows) -> BlockTable:
    """Validation R2 of the ridge map of every pair of harvested blocks, on at most 4,096 rows."""
    source, target = aligned.source, aligned.target
    if set(aligned.split) == {FIT}:
        raise UserError(
            "--blocks best and r2 need held-out rows, which protocol lcross has not; name the pair"
        )
    split = aligned.split[:_TABLE_ROWS]
    with Progress("compare blocks", len(source.blocks) + len(target.blocks), "blocks") as progress:
        first = [_FirstRows(aligned, side, len(split), progress) for side in (source, target)]
        try:
            r2 = r2_table(first[0], first[1], split, width=max(source.d, target.d))
        except ValueError as error:
            raise UserError(f"{source.location}: {error}") from error
    return BlockTable.of(source.blocks, target.blocks, r2)


@dataclass(frozen=True)
class _FirstRows(Mapping[int, NDArray[np.float32]]):
    """The first rows of each harvested block, read when asked for: all blocks at once may not fit."""

    aligned: AlignedRows
    side: ActivationSet
    n_rows: int
    progress: Progress

    def __getitem__(self, block: int) -> NDArray[np.float32]:
        rows = self.aligned.read(self.side, block, self.n_rows)
        self.progress.advance(1)
        return rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.side.blocks)

    def __len__(self) -> int:
        return len(self.side.blocks)


def readable_blocks(block: int, options: MapOptions, held: set[int]) -> list[int]:
    """The source blocks that a map from `block` reads, ascending, its own last.

    held: the blocks that there are. Raises UserError where the options name a number and there are fewer.
    """
    wanted = options.blocks_below(block)
    missing = [below for below in wanted if below not in held]
    if not missing:
        return wanted
    if options.source_blocks is not None and missing != [block]:
        raise UserError(
            f"source_blocks {options.source_blocks}: expected the source's blocks {wanted}, "
            f"there are {sorted(held)}"
        )
    # Without a number, no more than there is: a harvest of one block still gives the map of that block.
    highest_missing = max((below for below in missing if below != block), default=-1)
    return [below for below in wanted if below > highest_missing]
