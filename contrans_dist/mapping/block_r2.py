"""Held-out R2 of the map for every pair of a source block and a target block, without fitting each pair."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from contrans_dist.mapping.heldout import FIT, VALIDATION
from contrans_dist.mapping.solver import RIDGES, Ridge
from contrans_dist.mapping.sums import copied
from contrans_dist.vectors.row_checks import check_finite

MAX_FIT_ROWS = 2000
NARROW = 256  # columns; up to here the sums over columns are the cheap side, whatever the number of rows

Blocks = Mapping[int, np.ndarray]


def r2_table(
    source_blocks: Blocks,
    target_blocks: Blocks,
    split: np.ndarray,
    *,
    width: int,
) -> np.ndarray:
    """Validation R2 of the centred ridge map of every pair, each at its best ridge.

    At its best ridge, not at the smaller one that a map is then fitted with (`solver.choose_ridge`): that one
    gives up as much of R2 as the grid's steps make it, up to `solver.SLACK`, by chance more for one pair than
    for another; pairs are ranked by what they can reach.

    Args:
        source_blocks: Block number to rows [n, d_s]. Each block is asked for once, in the mapping's order, so
            one that reads from disk holds one block in memory.
        target_blocks: The same of the other model, rows [n, d_t].
        split: Str [n] of `split_of`.
        width: Of the wider model. Above `NARROW`, at most `MAX_FIT_ROWS` fit rows are used, evenly spaced;
            memory is (n_target + n_ridges) * MAX_FIT_ROWS^2 / 2 numbers of 8 bytes.

    Returns:
        float64 [n_source, n_target].

    Raises:
        ValueError: For rows that do not match the split, NaN or infinity, or a part without rows.
    """
    parts = np.asarray(split)
    fit, validation = np.flatnonzero(parts == FIT), np.flatnonzero(parts == VALIDATION)
    if len(fit) < 2 or len(validation) == 0:
        raise ValueError(
            f"{len(fit)} fit and {len(validation)} validation rows: not enough to compare block pairs"
        )
    if width <= NARROW:
        return _from_columns(source_blocks, target_blocks, _Centred(len(parts), fit, validation))
    if len(fit) > MAX_FIT_ROWS:
        fit = fit[np.linspace(0, len(fit) - 1, MAX_FIT_ROWS).astype(np.int64)]
    return _from_rows(source_blocks, target_blocks, _Centred(len(parts), fit, validation))


@dataclass
class _Centred:
    """Reads blocks as float64 rows about the mean of the fit rows, one after the other into one buffer: to
    ask for fresh memory costs more than to fill it.
    """

    n: int
    fit: np.ndarray
    validation: np.ndarray
    _buffer: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def read(self, blocks: Blocks, block: int, side: str) -> tuple[np.ndarray, np.ndarray]:
        """(fit rows, validation rows), which hold until the next call."""
        name = f"{side} block {block}"
        rows = check_finite(blocks[block], name)
        if len(rows) != self.n:
            raise ValueError(f"{name} has {len(rows)} rows, the split {self.n}")
        order = np.concatenate([self.fit, self.validation])
        if self._buffer.shape != (len(order), rows.shape[1]):
            self._buffer = np.empty((len(order), rows.shape[1]))
        used = copied(rows, order, self._buffer)
        used -= used[: len(self.fit)].mean(axis=0)
        return used[: len(self.fit)], used[len(self.fit) :]


def _from_columns(source: Blocks, target: Blocks, rows: _Centred) -> np.ndarray:
    """The table by way of d x d matrices: X^T X and X^T Y, as a map is fitted."""
    targets = [tuple(part.copy() for part in rows.read(target, block, "target")) for block in target]
    table = np.empty((len(source), len(targets)))
    for i, block in enumerate(source):
        x, x_held = rows.read(source, block, "source")
        ridge = Ridge(x.T @ x, x_held.T @ x_held)
        for j, (y, y_held) in enumerate(targets):
            total = float(np.sum(y_held**2))
            errors = ridge.errors(ridge.vectors.T @ (x.T @ y), x_held.T @ y_held, total, RIDGES)
            table[i, j] = 1.0 - errors.min() / total
    return table


def _from_rows(source: Blocks, target: Blocks, rows: _Centred) -> np.ndarray:
    """The table by way of matrices of fit rows by fit rows.

    The prediction of validation rows from a source block is W Y, with W [n_validation, n_fit] the same for
    every target block. Its squared error is |Y_v|^2 - 2 <W, Y_v Y^T> + <W^T W, Y Y^T>: inner products with
    matrices that are made once a target block.
    """
    n = len(rows.fit)
    upper = np.flatnonzero(np.triu(np.ones((n, n), dtype=bool)))
    # A symmetric inner product from the upper triangle: what is off the diagonal counts twice.
    twice = 2.0 - (upper % (n + 1) == 0)
    grams = np.empty((len(target), len(upper)))
    crosses = np.empty((len(target), len(rows.validation) * n))
    totals = np.empty(len(target))
    for i, block in enumerate(target):
        y, y_validation = rows.read(target, block, "target")
        np.multiply((y @ y.T).ravel()[upper], twice, out=grams[i])
        np.matmul(y_validation, y.T, out=crosses[i].reshape(len(y_validation), n))
        totals[i] = np.sum(y_validation**2)

    # Memory for all source blocks: asking for it again and again would take longer than the sums.
    linear, quadratic = np.empty((len(RIDGES), crosses.shape[1])), np.empty((len(RIDGES), len(upper)))
    square = np.empty((n, n))

    def squared_errors(ridges: np.ndarray, source: Ridge, seen: np.ndarray) -> np.ndarray:
        for j, ridge in enumerate(ridges):
            predictor = linear[j].reshape(len(rows.validation), n)
            np.matmul(seen * source.inverse(ridge), source.vectors.T, out=predictor)
            np.matmul(predictor.T, predictor, out=square)
            np.take(square.ravel(), upper, out=quadratic[j], mode="clip")
        used = slice(len(ridges))
        return totals - 2.0 * linear[used] @ crosses.T + quadratic[used] @ grams.T

    table = np.empty((len(source), len(target)))
    for i, block in enumerate(source):
        x, x_validation = rows.read(source, block, "source")
        factored = Ridge(x @ x.T)
        seen = x_validation @ x.T @ factored.vectors
        # Every second ridge first: an error has one valley over the ridge, so only those beside it are left.
        errors = squared_errors(RIDGES[::2], factored, seen)
        best = 2 * errors.argmin(axis=0)
        beside = sorted({k for k in (*(best - 1), *(best + 1)) if 0 < k < len(RIDGES)})
        if beside:
            errors = np.concatenate([errors, squared_errors(RIDGES[beside], factored, seen)])
        table[i] = 1.0 - errors.min(axis=0) / totals
    return table
