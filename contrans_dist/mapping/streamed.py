"""Sums over more rows than are held in memory: read and added up in chunks by Ray tasks, merged as a tree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from contrans_dist.config.map_options import MapOptions
from contrans_dist.distributed.actors import answer, as_task
from contrans_dist.mapping.aligned_rows import AlignedRows, side_by_side
from contrans_dist.mapping.fit import SumsByPart, control_options, fit_sums
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.sums import Sums, merge
from contrans_dist.mapping.tokens import TokenCentre, TokenSums, effective_rows, token_groups
from contrans_dist.store.activation_set import ActivationSet

CHUNK_ROWS = 8_192
SHUFFLED = "shuffled"
_WIDTHS_A_TASK = 8
"""Rows that a task sums up, in units of the models' widths together."""
_RUN_ROWS = 512
"""Rows of the shuffled control that change places together: few for a control, many for a file to be read."""
_FEWEST_RUNS = 64
_RUN_GAP = 512
"""Rows further apart than this are read by themselves."""


@dataclass(frozen=True)
class PairOfBlocks:
    """What a task reads: these source blocks, side by side, and one target block."""

    aligned: AlignedRows
    source: Sequence[int]
    target: int

    @property
    def widths(self) -> tuple[int, int]:
        return len(self.source) * self.aligned.source.d, self.aligned.target.d

    def rows(self, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Source and target rows from `first` to `last`."""
        x = [self.aligned.source.read_block(block, first, last) for block in self.source]
        return side_by_side(x), self.aligned.target.read_block(self.target, first, last)

    def source_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The source's rows of these numbers."""
        return side_by_side([_read_rows(self.aligned.source, block, rows) for block in self.source])


@dataclass(frozen=True)
class TokenMeans:
    """The token group of every row of a set, and the sums over its fit rows by group, of both models."""

    group: NDArray[np.int32]
    source: TokenSums
    target: TokenSums


def fit_streamed(
    aligned: AlignedRows, blocks: Sequence[int], target: int, options: MapOptions, control_seed: int | None
) -> tuple[AffineMap, AffineMap | None]:
    """The map from these source blocks to a target block, and its control where there is a seed for one.

    Memory grows with the width of the models, not with the rows. Raises ValueError as `fit_sums`.
    """
    pair = PairOfBlocks(aligned, blocks, target)
    n, length = len(aligned.split), rows_a_task(*pair.widths)
    runs = [(start, min(start + length, n)) for start in range(0, n, length)]
    reading = ray.put(pair)  # it names the part of every row: too much to travel with each task
    centre = options.centring(tokens_known=True)
    token_centre, about = None, None
    if centre == "token":
        tokens = aligned.tokens()
        group, n_groups = token_groups(tokens, aligned.split)
        groups, by_group = ray.put(group), as_task(token_sums)
        # In the hands of the driver, so that no lost node takes them along.
        source, target_sums = answer(
            lambda: _tree([by_group.remote(reading, *run, groups, n_groups) for run in runs], merge_tokens)
        )
        token_centre = TokenCentre(
            source.overall(), target_sums.overall(), *effective_rows(tokens, aligned.split)
        )
        about = ray.put(TokenMeans(group, source, target_sums))
    order = None
    if control_seed is not None:
        order = ray.put(shuffled_runs(aligned.split == FIT, control_seed))
    by_part = as_task(part_sums)
    parts: SumsByPart = answer(
        lambda: _tree([by_part.remote(reading, *run, order, about) for run in runs], merge_parts)
    )
    mapping = fit_sums(parts, options, centre, token_centre)
    if control_seed is None:
        return mapping, None
    return mapping, fit_sums({FIT: parts[SHUFFLED]}, control_options(mapping), centre, token_centre)


def rows_a_task(d_source: int, d_target: int) -> int:
    """Rows that one task sums up: enough that to set up the sums and to merge them costs little beside.

    A function of the widths alone, so that the result does not depend on the cluster.
    """
    chunks = _WIDTHS_A_TASK * (d_source + d_target) // CHUNK_ROWS
    return CHUNK_ROWS * max(chunks, 1)


def shuffled_runs(fit: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """For every row, int64 `[n]`, the row whose source states stand in for its own in the control.

    The fit rows (true in `fit`) change places in runs of `_RUN_ROWS`, over the whole set, so that they can
    still be read in runs; each of them is used once, and none of more than one run stays where it was.
    """
    order = np.arange(len(fit), dtype=np.int64)
    rows = np.flatnonzero(fit)
    runs = np.array_split(rows, max(-(-len(rows) // _RUN_ROWS), min(len(rows), _FEWEST_RUNS), 1))
    drawn = np.random.default_rng(seed).permutation(len(runs))
    # Each run takes the place of the one drawn before it: runs differ in length by one row at most.
    order[np.concatenate([runs[k] for k in drawn])] = np.concatenate([runs[k] for k in np.roll(drawn, 1)])
    return order


# ---------------------------------------------------------------- what the tasks do


def token_sums(
    pair: PairOfBlocks, start: int, stop: int, group: NDArray[np.int32], n_groups: int
) -> tuple[TokenSums, TokenSums]:
    """Sums over the fit rows from `start` to `stop` by token group, of source and target."""
    sums: tuple[TokenSums, TokenSums] | None = None
    for first in range(start, stop, CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, stop)
        fit, here = pair.aligned.split[first:last] == FIT, group[first:last]
        x, y = (TokenSums.of(rows, here, n_groups, fit) for rows in pair.rows(first, last))
        sums = (x, y) if sums is None else merge_tokens(sums, (x, y))
    assert sums is not None  # a task has rows
    return sums


def merge_tokens(a: tuple[TokenSums, TokenSums], b: tuple[TokenSums, TokenSums]) -> Any:
    """The sums of both, group by group."""
    return a[0].merge(b[0]), a[1].merge(b[1])


def part_sums(
    pair: PairOfBlocks,
    start: int,
    stop: int,
    order: NDArray[np.int64] | None,
    tokens: TokenMeans | None,
) -> SumsByPart:
    """Sums over the rows from `start` to `stop` by part of the split, and, with an `order`, of the control.

    With `tokens` they are of rows about their tokens' means, without those that have no group.
    """
    names = [FIT, VALIDATION, TEST, *([SHUFFLED] if order is not None else [])]
    parts = {name: Sums(*pair.widths) for name in names}
    for first in range(start, stop, CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, stop)
        numbers = np.arange(first, last)
        split: NDArray[Any] = pair.aligned.split[first:last]
        x, y = pair.rows(first, last)
        if tokens is not None:
            group = tokens.group[first:last]
            split = np.where(group >= 0, split, "")
            x, y = tokens.source.about(x, group), tokens.target.about(y, group)
        for name in (FIT, VALIDATION, TEST):
            parts[name].add(x, y, np.flatnonzero(split == name))
        if order is None:
            continue
        fit = np.flatnonzero(split == FIT)
        other = order[numbers[fit]]
        if tokens is not None:
            known = tokens.group[other] >= 0
            fit, other = fit[known], other[known]
        shuffled = pair.source_rows(other)
        if tokens is not None:
            shuffled = tokens.source.about(shuffled, tokens.group[other])
        parts[SHUFFLED].add(shuffled, y[fit])
    return {name: sums.done() for name, sums in parts.items()}


def merge_parts(a: SumsByPart, b: SumsByPart) -> SumsByPart:
    """The sums of both, part by part."""
    return {name: merge(a[name], b[name]) for name in a}


def _tree(references: list[ray.ObjectRef], merged: Callable[[Any, Any], Any]) -> ray.ObjectRef:
    """Merge neighbours level by level, as tasks, so that no process ever holds more than two sets of sums."""
    task = as_task(merged)
    while len(references) > 1:
        pairs = [task.remote(*references[i : i + 2]) for i in range(0, len(references) - 1, 2)]
        references = pairs + references[len(pairs) * 2 :]
    return references[0]


def _read_rows(side: ActivationSet, block: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The rows of these numbers, run by run: float32 `[m, d]`."""
    values = np.empty((len(rows), side.d), np.float32)
    # Between two fit rows of a run lie rows of the other parts: a gap, but no jump.
    jumps = np.flatnonzero((np.diff(rows) < 0) | (np.diff(rows) > _RUN_GAP)) + 1
    for run in np.split(np.arange(len(rows)), jumps):
        if len(run):
            first, last = int(rows[run[0]]), int(rows[run[-1]])
            values[run] = side.read_block(block, first, last + 1)[rows[run] - first]
    return values
