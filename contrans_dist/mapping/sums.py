"""Mergeable float64 sums over rows: all that a map needs of them, in memory that does not grow.

Shapes: n rows, d_s columns in the source set, d_t in the target set.
"""

import numpy as np
from scipy.linalg.blas import dgemm, dger, dsyr, dsyrk

from contrans_dist.vectors.row_checks import as_rows, check_finite

CHUNK_ROWS = 4096  # rows turned to float64 at once: enough for full matmul speed, 128 MiB at d = 4096
_COPIED_ROWS = 256  # few enough that a copy of them stays in the processor's cache


class Sums:
    """Sums of n pairs of rows (x, y), all float64 and all about the means; chunks of rows are added in place.

    n: number of rows; mean_x [d_s]; mean_y [d_t]; sxx [d_s, d_s] = sum of (x - mean_x)^T (x - mean_x);
    sxy [d_s, d_t] = sum of (x - mean_x)^T (y - mean_y); syy [d_t] = sum of (y - mean_y)^2 by column.
    With `cross_only` there is no sxx: it is the same for every target, and the largest part of the work.
    """

    def __init__(self, d_source: int, d_target: int, cross_only: bool = False) -> None:
        self.n = 0
        self.mean_x, self.mean_y = np.zeros(d_source), np.zeros(d_target)
        # In Fortran's order, for BLAS to add to them where they are.
        self.sxx = None if cross_only else np.zeros((d_source, d_source), order="F")
        self.sxy = np.zeros((d_source, d_target), order="F")
        self.syy = np.zeros(d_target)
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, chunk: int = CHUNK_ROWS, *, cross_only: bool = False) -> "Sums":
        """The sums of rows in memory.

        Args:
            x: [n, d_s], any real dtype.
            y: [n, d_t].
            chunk: Rows that are turned to float64 at a time.
            cross_only: Leave out sxx.

        Raises:
            ValueError: When the row counts differ or a row holds NaN or infinity.
        """
        x, y = as_rows(x, "source"), as_rows(y, "target")
        check_same_length(x, y)
        sums = cls(x.shape[1], y.shape[1], cross_only)
        for start in range(0, len(x), chunk):
            sums.add(x[start : start + chunk], y[start : start + chunk])
        return sums.done()

    def add(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Add rows, in place.

        Args:
            x: [n, d_s], any real dtype.
            y: [n, d_t].
            rows: Only those of these numbers, int [m].

        Raises:
            ValueError: For other widths or counts, NaN or infinity.
        """
        x, y = check_finite(x, "source"), check_finite(y, "target")
        check_same_length(x, y)
        if (x.shape[1], y.shape[1]) != self.sxy.shape:
            raise ValueError(f"cannot add rows of widths {x.shape[1]} and {y.shape[1]} to {self.sxy.shape}")
        chosen = np.arange(len(x)) if rows is None else rows
        step = min(CHUNK_ROWS, max(len(chosen), 1))
        if self._buffers is None or len(self._buffers[0]) < step:
            # Kept from chunk to chunk: to ask for fresh memory takes longer than to fill it.
            self._buffers = np.empty((step, x.shape[1])), np.empty((step, y.shape[1]))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            rows_x, mean_x = _centred(x, part, self._buffers[0])
            rows_y, mean_y = _centred(y, part, self._buffers[1])
            if self.sxx is not None:
                self.sxx = dsyrk(1.0, rows_x.T, beta=1.0, c=self.sxx, overwrite_c=True)
            self.sxy = dgemm(1.0, rows_x.T, rows_y.T, trans_b=True, beta=1.0, c=self.sxy, overwrite_c=True)
            self.syy += np.einsum("ij,ij->j", rows_y, rows_y)
            self._move(len(part), mean_x, mean_y)
        if self.sxx is not None:
            _mirror(self.sxx)

    def _move(self, n: int, mean_x: np.ndarray, mean_y: np.ndarray) -> None:
        """Take in n rows of these means whose sums about them are added already: Chan, Golub and LeVeque's
        update, which subtracts no large numbers. Of sxx the upper triangle alone is right afterwards.
        """
        total = self.n + n
        weight = self.n * (n / total)
        dx, dy = mean_x - self.mean_x, mean_y - self.mean_y
        if weight:
            if self.sxx is not None:
                self.sxx = dsyr(weight, dx, a=self.sxx, overwrite_a=True)
            self.sxy = dger(
                weight, dx, dy, a=self.sxy, overwrite_x=False, overwrite_y=False, overwrite_a=True
            )
        self.syy += weight * dy * dy
        self.mean_x += (n / total) * dx
        self.mean_y += (n / total) * dy
        self.n = total

    def done(self) -> "Sums":
        """The sums without the memory that adding rows takes."""
        self._buffers = None
        return self

    def source_around(self, x: np.ndarray | float) -> np.ndarray:
        """sxx about the point x [d_s] instead of about the mean; about 0 it is X^T X."""
        assert self.sxx is not None  # whoever wants it did not leave it out
        dx = self.mean_x - x
        return self.sxx + np.outer(self.n * dx, dx)

    def around(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(sxy, syy) about the points x [d_s] and y [d_t]; about 0, X^T Y and the column sums of Y^2."""
        dx, dy = self.mean_x - x, self.mean_y - y
        return self.sxy + np.outer(self.n * dx, dy), self.syy + self.n * dy * dy


def merge(a: Sums, b: Sums) -> Sums:
    """The sums of the rows of a and b together; neither is changed. ValueError when the widths differ."""
    if a.sxy.shape != b.sxy.shape:
        raise ValueError(f"cannot merge sums of widths {a.sxy.shape} and {b.sxy.shape}")
    both = Sums(*a.sxy.shape, cross_only=a.sxx is None)
    for part in (a, b):
        if part.n:
            if both.sxx is not None and part.sxx is not None:
                both.sxx += part.sxx
            both.sxy += part.sxy
            both.syy += part.syy
            both._move(part.n, part.mean_x, part.mean_y)
    if both.sxx is not None:
        _mirror(both.sxx)
    return both


def check_same_length(x: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError unless source x and target y have as many rows."""
    if len(x) != len(y):
        raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")


def copied(rows: np.ndarray, chosen: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """The rows of these numbers in the first places of `buffer`, float64, until it is used again."""
    used = buffer[: len(chosen)]
    for start in range(0, len(chosen), _COPIED_ROWS):
        some = slice(start, start + _COPIED_ROWS)
        used[some] = rows[chosen[some]]
    return used


def _centred(rows: np.ndarray, chosen: np.ndarray, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chosen rows about their mean, their mean), float64; the rows in `buffer`."""
    used = copied(rows, chosen, buffer)
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
