"""Rows of activations as they come in: real numbers in two dimensions, none of them NaN or infinite."""

import numpy as np


def as_rows(rows: np.ndarray, name: str = "rows") -> np.ndarray:
    """`rows` as an array [n, d]; ValueError unless it has two dimensions and holds real numbers."""
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name}: expected an array [rows, columns], got shape {list(array.shape)}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


def check_finite(rows: np.ndarray, name: str = "rows") -> np.ndarray:
    """`rows` as an array [n, d], not copied; ValueError naming the first row that holds NaN or infinity."""
    array = as_rows(rows, name)
    # One pass without a mask: a sum is finite when all its terms are, barring overflow near 1e308.
    if not np.isfinite(array.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if bad.size:
            raise ValueError(f"{name}: row {bad[0]} holds NaN or infinity ({bad.size} such rows)")
    return array


def finite_rows(rows: np.ndarray, name: str = "rows") -> np.ndarray:
    """A float64 copy of rows [n, d]; ValueError naming the first row that holds NaN or infinity."""
    return check_finite(rows, name).astype(np.float64)
