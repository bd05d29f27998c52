"""Held-out R2 of the map for every pair of a source block and a target block, without fitting each pair."""

from collections.abc import Mapping, Sequence

import numpy as np

from contrans_dist.moments import finite_rows
from contrans_dist.ridge import Spectrum, check_ridges
from contrans_dist.splits import FIT, VALIDATION

PAIR_RIDGES = np.logspace(-10, 1, 12)  # decades: a table to choose by needs no finer ones
MAX_FIT_ROWS = 2000


def r2_table(
    source_blocks: Mapping[int, np.ndarray],
    target_blocks: Mapping[int, np.ndarray],
    split: np.ndarray,
    *,
    ridges: Sequence[float] | np.ndarray | None = None,
    max_fit_rows: int = MAX_FIT_ROWS,
) -> np.ndarray:
    """Validation R2 of the centred ridge map, at each pair's best ridge: float64 [n_source, n_target].

    source_blocks, target_blocks: block number to rows [n, d]; each block is asked for once, in the mapping's
    order, so a mapping that reads from disk holds one block in memory. split: str [n] of `split_of`. ridges:
    relative, as for `fit_map`; by default one a decade. Of more than `max_fit_rows` fit rows, that many are
    used, evenly spaced: memory is (n_target + n_ridges) * max_fit_rows^2 / 2 numbers of 8 bytes.

    The prediction of validation rows from a source block is W Y, with W [n_validation, n_fit] the same for
    every target block. Its squared error is |Y_v|^2 - 2 <W, Y_v Y^T> + <W^T W, Y Y^T>: inner products with
    matrices that are made once a target block. ValueError for rows that do not match the split, or a part
    without rows.
    """
    grid = check_ridges(PAIR_RIDGES if ridges is None else ridges)
    parts = np.asarray(split)
    fit, validation = np.flatnonzero(parts == FIT), np.flatnonzero(parts == VALIDATION)
    if len(fit) < 2 or len(validation) == 0:
        raise ValueError(
            f"{len(fit)} fit and {len(validation)} validation rows: not enough to compare block pairs"
        )
    if len(fit) > max_fit_rows:
        fit = fit[np.linspace(0, len(fit) - 1, max_fit_rows).astype(np.int64)]
    upper = np.flatnonzero(np.triu(np.ones((len(fit), len(fit)), dtype=bool)))
    # A symmetric inner product from the upper triangle: what is off the diagonal counts twice.
    twice = 2.0 - (upper % (len(fit) + 1) == 0)

    grams = np.empty((len(target_blocks), len(upper)))
    crosses = np.empty((len(target_blocks), len(validation) * len(fit)))
    totals = np.empty(len(target_blocks))
    for i, block in enumerate(target_blocks):
        y, y_validation = _centred(target_blocks[block], parts, fit, validation, f"target block {block}")
        grams[i] = (y @ y.T).ravel()[upper] * twice
        crosses[i] = (y_validation @ y.T).ravel()
        totals[i] = np.sum(y_validation**2)

    table = np.empty((len(source_blocks), len(target_blocks)))
    for i, block in enumerate(source_blocks):
        x, x_validation = _centred(source_blocks[block], parts, fit, validation, f"source block {block}")
        spectrum = Spectrum.of(x @ x.T)
        seen = x_validation @ x.T @ spectrum.vectors
        linear, quadratic = np.empty((len(grid), crosses.shape[1])), np.empty((len(grid), len(upper)))
        for j, ridge in enumerate(grid):
            predictor = (seen * spectrum.inverse(ridge)) @ spectrum.vectors.T
            linear[j] = predictor.ravel()
            quadratic[j] = (predictor.T @ predictor).ravel()[upper]
        errors = totals - 2.0 * linear @ crosses.T + quadratic @ grams.T
        table[i] = 1.0 - errors.min(axis=0) / totals
    return table


def _centred(
    rows: np.ndarray, parts: np.ndarray, fit: np.ndarray, validation: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """(fit rows, validation rows), float64, both about the mean of the fit rows."""
    if len(rows) != len(parts):
        raise ValueError(f"{name} has {len(rows)} rows, the split {len(parts)}")
    used, held_out = finite_rows(rows[fit], name), finite_rows(rows[validation], name)
    mean = used.mean(axis=0)
    return used - mean, held_out - mean
