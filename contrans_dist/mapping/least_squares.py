"""Least squares without centring: V diag(1/sigma) U^T Y, equation 2 of ConTrans, in float64.

From rows, by an orthogonal factorisation, so that the condition number is not squared; from sums, with a
cut-off and an error estimate, because there it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

EPSILON = float(np.finfo(np.float64).eps)
# Above this condition number the float32 arithmetic of the original code holds no digit of the weak
# directions, and the solution, though exact here, is ruled by whatever noise the rows carry.
CONDITION_LIMIT = 1e8
ERROR_LIMIT = 1e-5
POWER_ROUNDS = 40


class _Triangle:
    """The inverse of an upper triangular R [k, k], or its pseudo-inverse where R is singular in float64.

    Well-conditioned: triangular solves, and the condition number by power and inverse iteration (within a few
    per cent). Otherwise the SVD of R, which shows rank and condition number exactly.
    """

    def __init__(self, r: np.ndarray, longest_side: int) -> None:
        self._r = np.asfortranarray(r)
        self._svd: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.rank = len(r)
        reciprocal, _ = scipy.linalg.lapack.dtrcon(self._r)
        if reciprocal > 1.0 / CONDITION_LIMIT:
            self.condition_number = self._estimate_condition()
            return
        u, sigma, vt = scipy.linalg.svd(r, check_finite=False)
        # What float64 cannot tell from zero, and no more: the usual bound for a matrix of this size.
        kept = sigma > sigma[0] * EPSILON * longest_side
        self.rank = int(kept.sum())
        self.condition_number = float(sigma[0] / sigma[kept][-1]) if self.rank else float("inf")
        self._svd = (u[:, kept], sigma[kept], vt[kept])

    def inverse_times(self, b: np.ndarray) -> np.ndarray:
        """R^-1 b for b [k, m]."""
        if self._svd is None:
            return scipy.linalg.solve_triangular(self._r, b, check_finite=False)
        u, sigma, vt = self._svd
        return vt.T @ ((u.T @ b) / sigma[:, None])

    def inverse_transposed_times(self, b: np.ndarray) -> np.ndarray:
        """R^-T b for b [k, m]."""
        if self._svd is None:
            return scipy.linalg.solve_triangular(self._r, b, trans="T", check_finite=False)
        u, sigma, vt = self._svd
        return u @ ((vt @ b) / sigma[:, None])

    def _estimate_condition(self) -> float:
        largest = _largest_eigenvalue(lambda v: self._r.T @ (self._r @ v), len(self._r))
        inverse = _largest_eigenvalue(
            lambda v: self.inverse_times(self.inverse_transposed_times(v)), len(self._r)
        )
        return float(np.sqrt(largest * inverse))


def _largest_eigenvalue(apply: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """The largest eigenvalue of a symmetric positive operator on [size, 1], by power iteration."""
    vector = np.random.default_rng(0).standard_normal((size, 1))
    vector /= np.linalg.norm(vector)
    value, previous = 0.0, -1.0
    for _ in range(POWER_ROUNDS):
        vector = apply(vector)
        value = float(np.linalg.norm(vector))
        if abs(value - previous) <= 1e-3 * value:
            break
        vector, previous = vector / value, value
    return value


class LeastSquares:
    """The pseudo-inverse X^+ of source rows X float64 [n, d_s], kept as factors.

    Fewer rows than columns: X^T = Q R, X^+ = Q R^-T, the shortest of all exact solutions. Otherwise X = Q R
    and X^+ = R^-1 Q^T. `rank` and `condition_number` are those of X, over the directions that were not cut
    off.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._dual = rows.shape[0] < rows.shape[1]
        tall = rows.T if self._dual else rows
        self._q, r = scipy.linalg.qr(tall, mode="economic", check_finite=False)
        self._triangle = _Triangle(r, max(rows.shape))
        self.rank, self.condition_number = self._triangle.rank, self._triangle.condition_number
        self.full_rank = min(rows.shape)
        self.side = "dual" if self._dual else "primal"

    def solve(self, target: np.ndarray) -> np.ndarray:
        """F = X^+ Y, float64 [d_s, d_t], for target rows Y [n, d_t]."""
        if self._dual:
            return self._q @ self._triangle.inverse_transposed_times(target)
        return self._triangle.inverse_times(self._q.T @ target)


def map_vectors(vectors: np.ndarray, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(v F float64 [k, d_t], warnings) for vectors v [k, d_s], source rows [n, d_s] and target rows [n, d_t].

    F is the map of `protocol: paper` over these rows, which is never formed: for a few vectors, forming it is
    most of the work.
    """
    # A copy of our own, which the factorisation may overwrite.
    x, v = np.array(source, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
    if x.shape[0] < x.shape[1]:
        within, r = scipy.linalg.qr_multiply(x.T, v, mode="right", overwrite_a=True)
        triangle = _Triangle(r, max(x.shape))
        weights = triangle.inverse_times(within.T).T
    else:
        q, r = scipy.linalg.qr(x, mode="economic", overwrite_a=True, check_finite=False)
        triangle = _Triangle(r, max(x.shape))
        weights = triangle.inverse_transposed_times(v.T).T @ q.T
    warnings = trust(triangle.rank, min(x.shape), triangle.condition_number)
    # For so few rows numpy sums in float64 without a float64 copy of the target, which would take longer.
    return weights @ np.asarray(target), warnings


@dataclass(frozen=True)
class Solution:
    """F float64 [d_s, d_t]; rank and condition_number are those of the rows X, not of X^T X."""

    weight: np.ndarray
    rank: int
    condition_number: float
    warnings: list[str] = field(default_factory=list)


def solve_sums(xx: np.ndarray, xy: np.ndarray, n: int) -> Solution:
    """F = (X^T X)^+ X^T Y from the uncentred sums xx [d_s, d_s] and xy [d_s, d_t] over n rows.

    X^T X has the square of X's condition number. Scaling every column to length one first takes out what
    comes from columns of different size alone (Cholesky is indifferent to it; residual streams have columns a
    hundred times the others). What is still lost is estimated and warned of. Directions that rounding cannot
    tell from zero are cut off: lambda <= max(64, 4 sqrt(d_s)) eps lambda_max.
    """
    limit = min(n, len(xx))
    solution = _cholesky_solution(xx, xy) if n >= len(xx) else None
    if solution is not None:
        return solution
    eigenvalues, vectors = scipy.linalg.eigh(xx, check_finite=False)
    largest = max(float(eigenvalues[-1]), 0.0)
    kept = eigenvalues > largest * EPSILON * max(64.0, 4.0 * np.sqrt(len(xx)))
    kept[: len(kept) - limit] = False
    rank = int(kept.sum())
    values, basis = eigenvalues[kept], vectors[:, kept]
    condition = float(np.sqrt(largest / values[0])) if rank else float("inf")
    weight = basis @ ((basis.T @ xy) / values[:, None])
    warnings = trust(rank, limit, condition) + _squared_loss(EPSILON * condition**2)
    return Solution(weight, rank, condition, warnings)


def _cholesky_solution(xx: np.ndarray, xy: np.ndarray) -> Solution | None:
    """`solve_sums` by Cholesky of the sums scaled to a unit diagonal; None where that is near singular."""
    lengths = np.sqrt(np.diag(xx))[:, None]
    if not lengths.min() > 0:
        return None
    scaled = xx / (lengths * lengths.T)
    factor, failed = scipy.linalg.lapack.dpotrf(scaled)
    if failed:
        return None
    reciprocal, _ = scipy.linalg.lapack.dpocon(factor, np.linalg.norm(scaled, 1))
    if reciprocal < 10 * EPSILON:
        return None

    def inverse_times(b: np.ndarray) -> np.ndarray:
        return scipy.linalg.cho_solve((factor, False), b / lengths, check_finite=False) / lengths

    largest = _largest_eigenvalue(lambda v: xx @ v, len(xx))
    condition = float(np.sqrt(largest * _largest_eigenvalue(inverse_times, len(xx))))
    warnings = trust(len(xx), len(xx), condition) + _squared_loss(EPSILON / reciprocal)
    return Solution(inverse_times(xy), len(xx), condition, warnings)


def trust(rank: int, full_rank: int, condition_number: float) -> list[str]:
    """The warnings, one line each, that a least-squares map of this rank and condition number deserves."""
    warnings = []
    if rank < full_rank:
        warnings.append(
            f"the source rows have rank {rank} of {full_rank}: directions zero to rounding were cut off"
        )
    if condition_number > CONDITION_LIMIT:
        warnings.append(
            f"condition number {condition_number:.1e}: the map's weak directions follow noise in the rows; "
            "protocol 'default' (ridge) is the safe choice"
        )
    return warnings


def _squared_loss(relative_error: float) -> list[str]:
    if relative_error <= ERROR_LIMIT:
        return []
    return [
        f"solved from sums, which square the condition number: weak directions are uncertain to a relative "
        f"{min(relative_error, 1.0):.0e}; fit from rows, or use protocol 'default'"
    ]
