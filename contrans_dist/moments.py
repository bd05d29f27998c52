"""Mergeable float64 sums over rows: all that a map or a mean needs, in memory that does not grow.

Shapes: n rows, d_s columns in the source set, d_t in the target set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

CHUNK_ROWS = 4096  # rows turned to float64 at once: enough for full matmul speed, 128 MiB at d = 4096


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


@dataclass(frozen=True)
class RowMoments:
    """Count n and mean float64 [d] of one set of rows: enough for equation 1 over any number of shards."""

    n: int
    mean: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Self:
        """The moments of rows [n, d]. ValueError for NaN, infinity or a wrong shape."""
        array = finite_rows(rows)
        mean = array.mean(axis=0) if len(array) else np.zeros(array.shape[1])
        return cls(n=len(array), mean=mean)

    def merge(self, other: "RowMoments") -> "RowMoments":
        """The moments of both sets together. ValueError when the widths differ."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge widths {self.mean.size} and {other.mean.size}")
        n = self.n + other.n
        if n == 0:
            return self
        return RowMoments(n=n, mean=self.mean + (other.mean - self.mean) * (other.n / n))


@dataclass(frozen=True)
class Moments:
    """Sums of n pairs of rows (x, y), all float64 and all about the means.

    n: number of rows; mean_x [d_s]; mean_y [d_t]; sxx [d_s, d_s] = sum of (x - mean_x)^T (x - mean_x);
    sxy [d_s, d_t] = sum of (x - mean_x)^T (y - mean_y); syy [d_t] = sum of (y - mean_y)^2 by column.
    """

    n: int
    mean_x: np.ndarray
    mean_y: np.ndarray
    sxx: np.ndarray
    sxy: np.ndarray
    syy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, chunk: int = CHUNK_ROWS) -> "Moments":
        """The moments of x [n, d_s] and y [n, d_t] (any real dtype), `chunk` rows at a time.

        ValueError when the row counts differ or a row holds NaN or infinity.
        """
        x, y = as_rows(x, "source"), as_rows(y, "target")
        if len(x) != len(y):
            raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")
        sums = MomentSums(x.shape[1], y.shape[1])
        for start in range(0, len(x), chunk):
            sums.add(x[start : start + chunk], y[start : start + chunk])
        return sums.moments()

    @classmethod
    def empty(cls, d_source: int, d_target: int) -> "Moments":
        """The moments of no rows: merging them changes nothing."""
        return MomentSums(d_source, d_target).moments()

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

    def tensors(self) -> dict[str, np.ndarray]:
        """The sums as named arrays, to be stored; `n` becomes an int64 array of one element."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**named, "n": np.array([self.n], dtype=np.int64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "Moments":
        """The inverse of `tensors`. KeyError when one is missing."""
        arrays = {f.name: np.asarray(tensors[f.name], dtype=np.float64) for f in fields(cls) if f.name != "n"}
        return cls(n=int(tensors["n"][0]), **arrays)


class MomentSums:
    """Moments under way: add chunks of rows, or other moments, then ask for `moments()`.

    Holds one set of sums and updates it in place, so that memory stays at d_s * (d_s + d_t) numbers.
    """

    def __init__(self, d_source: int, d_target: int) -> None:
        self._n = 0
        self._mean_x, self._mean_y = np.zeros(d_source), np.zeros(d_target)
        self._sxx, self._sxy = np.zeros((d_source, d_source)), np.zeros((d_source, d_target))
        self._syy = np.zeros(d_target)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows x [n, d_s] and y [n, d_t]. ValueError for other widths or counts, NaN or infinity."""
        x, y = finite_rows(x, "source"), finite_rows(y, "target")
        if len(x) != len(y):
            raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")
        if len(x) == 0:
            return
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        # finite_rows gave private copies, so they can be centred in place.
        x -= mean_x
        y -= mean_y
        # x.T @ x is recognised by numpy as symmetric and costs half a product.
        self.merge(Moments(len(x), mean_x, mean_y, x.T @ x, x.T @ y, np.einsum("ij,ij->j", y, y)))

    def merge(self, other: Moments) -> None:
        """Add the sums of other rows: Chan, Golub and LeVeque's update, which subtracts no large numbers."""
        if other.sxy.shape != self._sxy.shape:
            raise ValueError(f"cannot merge moments of widths {self._sxy.shape} and {other.sxy.shape}")
        if other.n == 0:
            return
        n = self._n + other.n
        share = other.n / n
        dx, dy = other.mean_x - self._mean_x, other.mean_y - self._mean_y
        weight = self._n * share
        for own, added, left, right in ((self._sxx, other.sxx, dx, dx), (self._sxy, other.sxy, dx, dy)):
            own += added
            if weight:
                own += np.outer(weight * left, right)
        self._syy += other.syy + weight * dy * dy
        self._mean_x += share * dx
        self._mean_y += share * dy
        self._n = n

    def moments(self) -> Moments:
        """The sums so far. They share memory with this object: do not add to it afterwards."""
        return Moments(self._n, self._mean_x, self._mean_y, self._sxx, self._sxy, self._syy)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of a and b together; neither is changed. ValueError when the widths differ."""
    sums = MomentSums(*a.sxy.shape)
    sums.merge(a)
    sums.merge(b)
    return sums.moments()


def tree_merge(parts: Sequence[Moments]) -> Moments:
    """Merge neighbours, then neighbours of the results, until one is left: rounding grows with depth only.

    ValueError when there are no parts, or when their widths differ.
    """
    if not parts:
        raise ValueError("tree_merge: expected at least one part")
    level = list(parts)
    while len(level) > 1:
        pairs = [merge(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]
