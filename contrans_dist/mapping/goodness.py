"""How well a linear prediction x F + b fits rows it is shown, from the rows or from their sums."""

from dataclasses import dataclass

import numpy as np

from contrans_dist.mapping.moments import Moments


@dataclass(frozen=True)
class Score:
    """r2: 1 - SSE / SST over all columns; r2_column: the median of the columns' own R2; mse: per number."""

    r2: float
    r2_column: float
    mse: float


def score_rows(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, fit_mean: np.ndarray
) -> Score | None:
    """The score over rows x [n, d_s], y [n, d_t], SST about `fit_mean`; None without rows or variance."""
    residual = y - (x @ weight + bias)
    around = y - fit_mean
    return _score(len(x), np.einsum("ij,ij->j", residual, residual), np.einsum("ij,ij->j", around, around))


def score_sums(
    rows: Moments | None, weight: np.ndarray, centre: np.ndarray, bias: np.ndarray, fit_mean: np.ndarray
) -> Score | None:
    """`score_rows` from sums. centre [d_s]: a point near the rows, so that no digits cancel."""
    if rows is None or rows.n == 0:
        return None
    sxx, sxy, syy = rows.around(centre, centre @ weight + bias)
    squared = syy - 2.0 * np.einsum("ij,ij->j", weight, sxy) + np.einsum("ij,ij->j", weight, sxx @ weight)
    total = rows.syy + rows.n * (rows.mean_y - fit_mean) ** 2
    return _score(rows.n, np.maximum(squared, 0.0), total)


def _score(n: int, squared: np.ndarray, total: np.ndarray) -> Score | None:
    varying = total > 0
    if n == 0 or not varying.any():
        return None
    return Score(
        r2=float(1.0 - squared.sum() / total.sum()),
        r2_column=float(np.median(1.0 - squared[varying] / total[varying])),
        mse=float(squared.sum() / (n * len(squared))),
    )
