"""Mergeable float64 sums over rows: all that a map or a mean needs, in memory that does not grow.

Shapes: n rows, d_s columns in the source set, d_t in the target set.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dgemm, dger, dsyr, dsyrk

from contrans_dist.vectors.row_checks import as_rows, check_finite

CHUNK_ROWS = 4096  # rows turned to float64 at once: enough for full matmul speed, 128 MiB at d = 4096
_COPIED_ROWS = 256  # few enough that a copy of them stays in the processor's cache


@dataclass(frozen=True)
class Moments:
    """Sums of n pairs of rows (x, y), all float64 and all about the means.

    n: number of rows; mean_x [d_s]; mean_y [d_t]; sxx [d_s, d_s] = sum of (x - mean_x)^T (x - mean_x);
    sxy [d_s, d_t] = sum of (x - mean_x)^T (y - mean_y); syy [d_t] = sum of (y - mean_y)^2 by column; target
    [d_t, d_t] = sum of (y - mean_y)^T (y - mean_y), which whitening alone needs, or None.
    """

    n: int
    mean_x: np.ndarray
    mean_y: np.ndarray
    sxx: np.ndarray
    sxy: np.ndarray
    syy: np.ndarray
    target: np.ndarray | None = None

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, chunk: int = CHUNK_ROWS, target: bool = False) -> "Moments":
        """The moments of x [n, d_s] and y [n, d_t] (any real dtype), `chunk` rows at a time.

        ValueError when the row counts differ or a row holds NaN or infinity.
        """
        x, y = as_rows(x, "source"), as_rows(y, "target")
        if len(x) != len(y):
            raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")
        sums = MomentSums(x.shape[1], y.shape[1], target)
        for start in range(0, len(x), chunk):
            sums.add(x[start : start + chunk], y[start : start + chunk])
        return sums.moments()

    def around(
        self, x: np.ndarray | float, y: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sxx, sxy, syy) about the points x [d_s] and y [d_t] instead of about the means.

        `around(0, 0)` gives the uncentred sums X^T X, X^T Y and the column sums of Y^2.
        """
        dx, dy = self.mean_x - x, self.mean_y - y
        return (
            self.sxx + np.outer(self.n * dx, dx),
            self.sxy + np.outer(self.n * dx, dy),
            self.syy + self.n * dy * dy,
        )

    def target_around(self, y: np.ndarray | float) -> np.ndarray | None:
        """`target` about the point y [d_t] instead of about the mean; None where there is none."""
        if self.target is None:
            return None
        dy = self.mean_y - y
        return self.target + np.outer(self.n * dy, dy)


class MomentSums:
    """Moments under way: add chunks of rows, or other moments, then ask for `moments()`.

    Holds one set of sums and updates it in place, so that memory stays at d_s * (d_s + d_t) numbers (with
    `target`, d_t * d_t more) and one chunk of float64 rows.
    """

    def __init__(self, d_source: int, d_target: int, target: bool = False) -> None:
        self._n = 0
        self._mean_x, self._mean_y = np.zeros(d_source), np.zeros(d_target)
        # In Fortran's order, for BLAS to add to them where they are; of sxx the upper triangle only.
        self._sxx = np.zeros((d_source, d_source), order="F")
        self._sxy = np.zeros((d_source, d_target), order="F")
        self._syy = np.zeros(d_target)
        self._target = np.zeros((d_target, d_target), order="F") if target else None
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Add rows x [n, d_s] and y [n, d_t], or only those numbered in `rows` (int [m]).

        ValueError for other widths or counts, NaN or infinity.
        """
        x, y = check_finite(x, "source"), check_finite(y, "target")
        if len(x) != len(y):
            raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")
        if (x.shape[1], y.shape[1]) != self._sxy.shape:
            raise ValueError(f"cannot add rows of widths {x.shape[1]} and {y.shape[1]} to {self._sxy.shape}")
        chosen = np.arange(len(x)) if rows is None else rows
        step = min(CHUNK_ROWS, max(len(chosen), 1))
        if self._buffers is None or len(self._buffers[0]) < step:
            # Kept from chunk to chunk: to ask for fresh memory takes longer than to fill it.
            self._buffers = np.empty((step, x.shape[1])), np.empty((step, y.shape[1]))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            self._add_chunk(_centred(x, part, self._buffers[0]), _centred(y, part, self._buffers[1]))

    def _add_chunk(self, x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray]) -> None:
        """Add centred rows and their means: (rows, mean) of both sides."""
        (rows_x, mean_x), (rows_y, mean_y) = x, y
        self._sxx = dsyrk(1.0, rows_x.T, beta=1.0, c=self._sxx, overwrite_c=True)
        self._sxy = dgemm(1.0, rows_x.T, rows_y.T, trans_b=True, beta=1.0, c=self._sxy, overwrite_c=True)
        self._syy += np.einsum("ij,ij->j", rows_y, rows_y)
        if self._target is not None:
            self._target = dsyrk(1.0, rows_y.T, beta=1.0, c=self._target, overwrite_c=True)
        self._move(len(rows_x), mean_x, mean_y)

    def _move(self, n: int, mean_x: np.ndarray, mean_y: np.ndarray) -> None:
        """Take in n rows of these means whose sums about them are added already: Chan, Golub and LeVeque's
        update, which subtracts no large numbers.
        """
        total = self._n + n
        weight = self._n * (n / total)
        dx, dy = mean_x - self._mean_x, mean_y - self._mean_y
        if weight:
            self._sxx = dsyr(weight, dx, a=self._sxx, overwrite_a=True)
            self._sxy = dger(
                weight, dx, dy, a=self._sxy, overwrite_x=False, overwrite_y=False, overwrite_a=True
            )
            if self._target is not None:
                self._target = dsyr(weight, dy, a=self._target, overwrite_a=True)
        self._syy += weight * dy * dy
        self._mean_x += (n / total) * dx
        self._mean_y += (n / total) * dy
        self._n = total

    def merge(self, other: Moments) -> None:
        """Add the sums of other rows."""
        if other.sxy.shape != self._sxy.shape:
            raise ValueError(f"cannot merge moments of widths {self._sxy.shape} and {other.sxy.shape}")
        if other.n == 0:
            return
        if (other.target is None) != (self._target is None):
            raise ValueError("cannot merge moments with and without the target's own sums")
        self._sxx += other.sxx
        self._sxy += other.sxy
        self._syy += other.syy
        if self._target is not None and other.target is not None:
            self._target += other.target
        self._move(other.n, other.mean_x, other.mean_y)

    def moments(self) -> Moments:
        """The sums so far. They share memory with this object: do not add to it afterwards."""
        for square in (self._sxx, self._target):
            if square is not None:
                _mirror(square)
        return Moments(self._n, self._mean_x, self._mean_y, self._sxx, self._sxy, self._syy, self._target)


def _centred(rows: np.ndarray, chosen: np.ndarray, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chosen rows about their mean, their mean), float64; the rows in `buffer`, until it is used again."""
    used = buffer[: len(chosen)]
    for start in range(0, len(chosen), _COPIED_ROWS):
        some = slice(start, start + _COPIED_ROWS)
        used[some] = rows[chosen[some]]
    mean = used.mean(axis=0)
    used -= mean
    return used, mean


def _mirror(square: np.ndarray) -> None:
    """Copy the upper triangle of a matrix [d, d] to its lower one, piece by piece, in place."""
    d = len(square)
    for start in range(0, d, _COPIED_ROWS):
        stop = min(start + _COPIED_ROWS, d)
        square[stop:, start:stop] = square[start:stop, stop:].T
        corner = square[start:stop, start:stop]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of a and b together; neither is changed. ValueError when the widths differ."""
    d_source, d_target = a.sxy.shape
    sums = MomentSums(d_source, d_target, a.target is not None)
    sums.merge(a)
    sums.merge(b)
    return sums.moments()
