"""Sums over more rows than are held in memory: read and added up in chunks by Ray tasks, merged as a tree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from contrans_dist.config.map_options import MapOptions
from contrans_dist.distributed.answers import answer
from contrans_dist.distributed.tasks import as_task
from contrans_dist.mapping.aligned_rows import AlignedRows, side_by_side
from contrans_dist.mapping.fit import SourceSums, SumsByPart, ridge_of
from contrans_dist.mapping.heldout import FIT, PARTS
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
class Corpus:
    """What every task reads: both models' rows and, of each row, its part, its token's group and, in the
    shuffled control, the row whose target states stand in for its own.
    """

    aligned: AlignedRows
    parts: NDArray[np.str_]
    group: NDArray[np.int32]
    stand_in: NDArray[np.int64] | None


class FitFromSums:
    """Maps from sums over an aligned corpus, and their controls where these are wanted.

    What pairs of blocks share is summed once: a block's token means, and the source blocks' own sums for
    targets that come one after the other. Memory grows with the width of the models, not with the rows.
    """

    def __init__(self, aligned: AlignedRows, options: MapOptions, shuffled: bool) -> None:
        self._aligned, self._options = aligned, options
        self._centre = options.centring(tokens_known=True)
        parts, group, self._n_groups = aligned.split, np.zeros(len(aligned.split), np.int32), 0
        if self._centre == "token":
            group, self._n_groups = token_groups(aligned.tokens(), parts)
            self._n_effective, self._lost = effective_rows(group, parts)
            parts = np.where(group >= 0, parts, "")
        stand_in = np.argsort(shuffled_runs(parts == FIT)) if shuffled else None
        # It names the part of every row: too much to travel with each task.
        self._corpus = ray.put(Corpus(aligned, parts, group, stand_in))
        self._token_sums: dict[tuple[bool, int], TokenSums] = {}
        self._blocks: Sequence[int] = ()
        self._source: SourceSums | None = None

    def fit(self, blocks: Sequence[int], target: int) -> tuple[AffineMap, AffineMap | None]:
        """The map from these source blocks to a target block, and its control. ValueError without rows."""
        if blocks != self._blocks:
            self._blocks, self._source = blocks, None
        runs = self._runs(len(blocks) * self._aligned.source.d, self._aligned.target.d)
        token_centre, means = None, None
        if self._centre == "token":
            source_sums = TokenSums.side_by_side([self._sums_by_token(True, block) for block in blocks])
            target_sums = self._sums_by_token(False, target)
            overall = source_sums.overall(), target_sums.overall()
            token_centre = TokenCentre(*overall, self._n_effective, self._lost)
            means = ray.put((source_sums, target_sums))
        task, cross_only = as_task(part_sums), self._source is not None
        parts: SumsByPart = answer(
            lambda: _tree(
                [task.remote(self._corpus, blocks, target, *run, means, cross_only) for run in runs],
                merge_parts,
            )
        )
        if self._source is None:
            self._source = SourceSums({part: parts[part] for part in PARTS}, self._options, self._centre)
        shuffled = parts.pop(SHUFFLED, None)
        mapping = self._source.fit(parts, self._options.ridges, token_centre)
        if shuffled is None:
            return mapping, None
        return mapping, self._source.fit({FIT: shuffled}, ridge_of(mapping), token_centre)

    def _sums_by_token(self, of_source: bool, block: int) -> TokenSums:
        if (of_source, block) not in self._token_sums:
            task, runs = as_task(token_sums), self._runs(self._aligned.source.d, self._aligned.target.d)
            # In the hands of the driver, so that no lost node takes them along.
            self._token_sums[of_source, block] = answer(
                lambda: _tree(
                    [task.remote(self._corpus, of_source, block, *run, self._n_groups) for run in runs],
                    TokenSums.merge,
                )
            )
        return self._token_sums[of_source, block]

    def _runs(self, d_source: int, d_target: int) -> list[tuple[int, int]]:
        n, length = len(self._aligned.split), rows_a_task(d_source, d_target)
        return [(start, min(start + length, n)) for start in range(0, n, length)]


def rows_a_task(d_source: int, d_target: int) -> int:
    """Rows that one task sums up: enough that to set up the sums and to merge them costs little beside.

    A function of the widths alone, so that the result does not depend on the cluster.
    """
    chunks = _WIDTHS_A_TASK * (d_source + d_target) // CHUNK_ROWS
    return CHUNK_ROWS * max(chunks, 1)


def shuffled_runs(fit: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For every row, int64 `[n]`, the row whose source states stand in for its own in the control.

    The fit rows (true in `fit`) change places in runs of `_RUN_ROWS`, over the whole set, so that they can
    still be read in runs; each of them is used once, and none of more than one run stays where it was.
    """
    order = np.arange(len(fit), dtype=np.int64)
    rows = np.flatnonzero(fit)
    runs = np.array_split(rows, max(-(-len(rows) // _RUN_ROWS), min(len(rows), _FEWEST_RUNS), 1))
    drawn = np.random.default_rng(0).permutation(len(runs))
    # Each run takes the place of the one drawn before it: runs differ in length by one row at most.
    order[np.concatenate([runs[k] for k in drawn])] = np.concatenate([runs[k] for k in np.roll(drawn, 1)])
    return order


# ---------------------------------------------------------------- what the tasks do


def token_sums(
    corpus: Corpus, of_source: bool, block: int, start: int, stop: int, n_groups: int
) -> TokenSums:
    """Sums over the fit rows from `start` to `stop` of one block of either model, by token group."""
    side = corpus.aligned.source if of_source else corpus.aligned.target
    sums = TokenSums(n_groups, side.d)
    for first in range(start, stop, CHUNK_ROWS):
        here = slice(first, min(first + CHUNK_ROWS, stop))
        rows = side.read_block(block, here.start, here.stop)
        sums.add(rows, corpus.group[here], corpus.aligned.split[here] == FIT)
    return sums


def part_sums(
    corpus: Corpus,
    blocks: Sequence[int],
    target: int,
    start: int,
    stop: int,
    means: tuple[TokenSums, TokenSums] | None,
    cross_only: bool,
) -> SumsByPart:
    """Sums over the rows from `start` to `stop` by part of the split, and of the control if there is one.

    With `means` they are of rows about their tokens' means. `cross_only`: as `Sums`; the control always is.
    """
    source, into = corpus.aligned.source, corpus.aligned.target
    widths = len(blocks) * source.d, into.d
    sums = {part: Sums(*widths, cross_only) for part in PARTS}
    if corpus.stand_in is not None:
        sums[SHUFFLED] = Sums(*widths, cross_only=True)
    for first in range(start, stop, CHUNK_ROWS):
        here = slice(first, min(first + CHUNK_ROWS, stop))
        x = side_by_side([source.read_block(block, here.start, here.stop) for block in blocks])
        y = into.read_block(target, here.start, here.stop)
        if means is not None:
            x, y = means[0].about(x, corpus.group[here]), means[1].about(y, corpus.group[here])
        for part in PARTS:
            sums[part].add(x, y, np.flatnonzero(corpus.parts[here] == part))
        if corpus.stand_in is None:
            continue
        fit = np.flatnonzero(corpus.parts[here] == FIT)
        others = corpus.stand_in[here][fit]
        shuffled = _read_rows(into, target, others)
        if means is not None:
            shuffled = means[1].about(shuffled, corpus.group[others])
        sums[SHUFFLED].add(x[fit], shuffled)
    return {part: of_part.done() for part, of_part in sums.items()}


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
