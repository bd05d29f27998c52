"""How well a map predicts rows that it is shown, from the rows or from their sums."""

from dataclasses import dataclass

import numpy as np

from contrans_dist.mapping.sums import Sums


@dataclass(frozen=True)
class Goodness:
    """r2: 1 - SSE / SST over all columns; r2_column: the median of the columns' own R2; mse: per number."""

    r2: float
    r2_column: float
    mse: float


def score_rows(x: np.ndarray, y: np.ndarray, weight: np.ndarray, fit_mean: np.ndarray) -> Goodness | None:
    """Of x F over rows x [n, d_s], y [n, d_t], SST about `fit_mean`; None without rows or variance."""
    residual, around = y - x @ weight, y - fit_mean
    return _goodness(len(x), np.einsum("ij,ij->j", residual, residual), np.einsum("ij,ij->j", around, around))


def score_sums(
    rows: Sums,
    sxx: np.ndarray,
    weight: np.ndarray,
    means: tuple[np.ndarray, np.ndarray],
    fit_mean: np.ndarray,
) -> Goodness | None:
    """`score_rows` from the sums of rows, for predictions about `means`, which are near them.

    sxx [d_s, d_s]: their `Sums.sxx`, about the first of the means.
    """
    sxy, syy = rows.around(*means)
    squared = syy - 2.0 * np.einsum("ij,ij->j", weight, sxy) + np.einsum("ij,ij->j", weight, sxx @ weight)
    total = rows.syy + rows.n * (rows.mean_y - fit_mean) ** 2
    return _goodness(rows.n, np.maximum(squared, 0.0), total)


def _goodness(n: int, squared: np.ndarray, total: np.ndarray) -> Goodness | None:
    varying = total > 0
    if n == 0 or not varying.any():
        return None
    return Goodness(
        r2=float(1.0 - squared.sum() / total.sum()),
        r2_column=float(np.median(1.0 - squared[varying] / total[varying])),
        mse=float(squared.sum() / (n * len(squared))),
    )
