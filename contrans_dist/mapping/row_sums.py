"""Sums over many rows of two activation sets, task by task: by part of the split, and about tokens' means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrans_dist.mapping.alignment import Joined
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION
from contrans_dist.mapping.moments import Moments, MomentSums, merge
from contrans_dist.store.activation_set import ActivationSet

CHUNK_ROWS = 8_192
SHUFFLED = "shuffled"
Rows = NDArray[np.floating[Any]]
_RUN_GAP = 512
"""Rows further apart than this are read by themselves."""


@dataclass(frozen=True)
class Tokens:
    """Sums over the fit rows of each token group: counts `[g]`, source `[g, d_source]`, target `[g,
    d_target]`.
    """

    counts: NDArray[np.float64]
    source: NDArray[np.float64]
    target: NDArray[np.float64]

    def merge(self, other: "Tokens") -> "Tokens":
        """The sums of both."""
        return Tokens(self.counts + other.counts, self.source + other.source, self.target + other.target)

    def overall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean of all fit rows, source and target."""
        n = self.counts.sum()
        return self.source.sum(axis=0) / n, self.target.sum(axis=0) / n

    def about(self, rows: Rows, sums: NDArray[np.float64], group: NDArray[np.int32]) -> Rows:
        """rows, of these groups, about the groups' means; `sums` is source or target."""
        return rows - sums[group] / self.counts[group, None]


@dataclass(frozen=True)
class Reading:
    """What a task reads: these source blocks, side by side, and one target block."""

    joined: Joined
    source: Sequence[int]
    target: int

    @property
    def widths(self) -> tuple[int, int]:
        return len(self.source) * self.joined.source.d, self.joined.target.d

    def rows(self, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Source and target rows from `first` to `last`."""
        x = [self.joined.source.read_block(block, first, last) for block in self.source]
        return _side_by_side(x), self.joined.target.read_block(self.target, first, last)

    def source_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The source's rows of these numbers."""
        return _side_by_side([_read_rows(self.joined.source, block, rows) for block in self.source])


def token_sums(reading: Reading, start: int, stop: int, group: NDArray[np.int32], n_groups: int) -> Tokens:
    """Sums over the fit rows from `start` to `stop` by token group."""
    d_source, d_target = reading.widths
    counts = np.zeros(n_groups)
    source, target = np.zeros((n_groups, d_source)), np.zeros((n_groups, d_target))
    for first in range(start, stop, CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, stop)
        x, y = reading.rows(first, last)
        used = (reading.joined.split[first:last] == FIT) & (group[first:last] >= 0)
        groups = group[first:last][used]
        np.add.at(counts, groups, 1.0)
        np.add.at(source, groups, x[used])
        np.add.at(target, groups, y[used])
    return Tokens(counts, source, target)


def part_sums(
    reading: Reading,
    start: int,
    stop: int,
    control: NDArray[np.int64] | None,
    whiten: bool,
    tokens: Tokens | None = None,
    group: NDArray[np.int32] | None = None,
) -> dict[str, Moments]:
    """Sums over the rows from `start` to `stop` by part of the split, and those of the control.

    `whiten`: with the target's own sums for what is fitted on. `tokens`, with the `group` of every row (-1 is
    left out): of rows about their tokens' means.
    """
    names = [FIT, VALIDATION, TEST, *([SHUFFLED] if control is not None else [])]
    # Only what is fitted on is whitened; the sums that judge it need no matrix of the target's.
    sums = {name: MomentSums(*reading.widths, target=whiten and name in (FIT, SHUFFLED)) for name in names}
    for first in range(start, stop, CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, stop)
        rows: tuple[Rows, Rows] = reading.rows(first, last)
        split = reading.joined.split[first:last]
        if tokens is not None and group is not None:
            here = group[first:last]
            split = np.where(here >= 0, split, "")
            rows = tokens.about(rows[0], tokens.source, here), tokens.about(rows[1], tokens.target, here)
        for name in (FIT, VALIDATION, TEST):
            sums[name].add(*rows, np.flatnonzero(split == name))
        if control is None:
            continue
        fit = np.flatnonzero(split == FIT)
        fit_order = control[first:last][fit]
        if tokens is None or group is None:
            sums[SHUFFLED].add(reading.source_rows(fit_order), rows[1][fit])
            continue
        known = group[fit_order] >= 0
        fit, fit_order = fit[known], fit_order[known]
        shuffled = tokens.about(reading.source_rows(fit_order), tokens.source, group[fit_order])
        sums[SHUFFLED].add(shuffled, rows[1][fit])
    return {name: each.moments() for name, each in sums.items()}


def merge_parts(a: dict[str, Moments], b: dict[str, Moments]) -> dict[str, Moments]:
    """The sums of both, part by part."""
    return {name: merge(a[name], b[name]) for name in a}


def merge_tokens(a: Tokens, b: Tokens) -> Tokens:
    """The sums of both, group by group."""
    return a.merge(b)


def _side_by_side(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


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
