"""The solver: least squares and ridge regression in float64, from rows or from their sums.

The pseudo-inverse is equation 2 of ConTrans, V diag(1/sigma) U^T Y: from rows by an orthogonal factorisation,
so that the condition number is not squared; from sums with a cut-off and an error estimate, because there it
is. A ridge is one eigendecomposition of X^T X or, with fewer rows than columns, of X X^T; after it every
ridge and every target costs a few products. Ridges are relative to the largest eigenvalue, so that they mean
the same for any number of rows and any scale.

Shapes: X [n, d_s] source rows, Y [n, d_t] target rows, F [d_s, d_t] with Y ~ X F.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

EPSILON = float(np.finfo(np.float64).eps)
# Above this condition number the float32 arithmetic of the original code holds no digit of the weak
# directions, and the solution, though exact here, is ruled by whatever noise the rows carry.
CONDITION_LIMIT = 1e8
ERROR_LIMIT = 1e-5
SLACK = 0.02  # of validation R2
RIDGES = np.logspace(-10, 1, 23)  # half decades


@dataclass(frozen=True)
class Solution:
    """A map and what is known of it.

    weight: F, float64 [d_s, d_t]. side: "primal" (d_s unknowns a column) or "dual" (one unknown a row). rank
    and condition_number: those of X, not of X^T X, before any ridge.
    """

    weight: np.ndarray
    side: str
    rank: int
    condition_number: float
    ridge: float | None = None
    warnings: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- ridge


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues [k], ascending and not negative, and eigenvectors [k, k] of X^T X or of X X^T."""

    values: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray) -> "Spectrum":
        """The spectrum of a symmetric positive semidefinite float64 matrix. ValueError when it is zero."""
        values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
        if not values[-1] > 0:
            raise ValueError("the source rows are all the same: there is nothing to fit a map on")
        return cls(np.maximum(values, 0.0), vectors)

    def inverse(self, ridge: float) -> np.ndarray:
        """1 / (lambda_i + ridge * lambda_max), [k]."""
        return 1.0 / (self.values + ridge * self.values[-1])

    def rank(self) -> tuple[int, float]:
        """(rank, condition number of X) over the eigenvalues that rounding can tell from zero.

        A Gram matrix shows condition numbers up to about 1e7; what lies beyond is counted as rank lost.
        """
        kept = self.values[self.values > self.values[-1] * _cut_off(len(self.values))]
        return len(kept), float(np.sqrt(kept[-1] / kept[0]))


def check_ridges(ridges: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """The relative ridges to try as a float64 array, ascending. ValueError when empty or not positive."""
    grid = np.sort(np.asarray(RIDGES if ridges is None else ridges, dtype=np.float64))
    if grid.ndim != 1 or grid.size == 0 or not (grid > 0).all() or not np.isfinite(grid).all():
        raise ValueError("ridges: expected positive numbers, relative to the largest eigenvalue")
    return grid


def ridge_from_sums(
    spectrum: Spectrum,
    xy: np.ndarray,
    held: tuple[np.ndarray, np.ndarray, float] | None,
    ridges: np.ndarray,
) -> Solution:
    """The ridge map from the spectrum of X^T X and from xy = X^T Y, all about one point.

    held: the same sums over the validation rows, X^T X, X^T Y and the sum of squares of Y, or None.
    """
    projected = spectrum.vectors.T @ xy
    ridge, warnings = float(ridges[0]), list[str]()
    if len(ridges) > 1:
        if held is None:
            raise ValueError("no validation rows to choose the ridge on")
        linear = np.einsum("ij,ij->i", projected, spectrum.vectors.T @ held[1])
        seen = spectrum.vectors.T @ held[0] @ spectrum.vectors
        errors = ridge_errors(spectrum, ridges, linear, seen * (projected @ projected.T), held[2])
        ridge, warnings = choose_ridge(ridges, errors, held[2])
    weight = spectrum.vectors @ (spectrum.inverse(ridge)[:, None] * projected)
    return Solution(weight, "primal", *spectrum.rank(), ridge, warnings)


def ridge_from_rows(
    spectrum: Spectrum,
    rows: tuple[np.ndarray, np.ndarray],
    held: tuple[np.ndarray, np.ndarray],
    ridges: np.ndarray,
) -> Solution:
    """The same map from the spectrum of X X^T, rows (X, Y) and validation rows (X, Y) about one point."""
    (x, y), (x_held, y_held) = rows, held
    projected = spectrum.vectors.T @ y
    ridge, warnings = float(ridges[0]), list[str]()
    if len(ridges) > 1:
        if len(x_held) == 0:
            raise ValueError("no validation rows to choose the ridge on")
        seen, total = x_held @ x.T @ spectrum.vectors, float(np.sum(y_held**2))
        linear = np.einsum("ij,ij->i", projected, seen.T @ y_held)
        errors = ridge_errors(spectrum, ridges, linear, (seen.T @ seen) * (projected @ projected.T), total)
        ridge, warnings = choose_ridge(ridges, errors, total)
    weight = x.T @ (spectrum.vectors @ (spectrum.inverse(ridge)[:, None] * projected))
    return Solution(weight, "dual", *spectrum.rank(), ridge, warnings)


def ridge_errors(
    spectrum: Spectrum, ridges: np.ndarray, linear: np.ndarray, quadratic: np.ndarray, total: float
) -> np.ndarray:
    """Squared error over validation rows of every ridge: float64 [n_ridges].

    With D the diagonal of `Spectrum.inverse` as a vector it is total - 2 D linear + D quadratic D; linear [k]
    and quadratic [k, k] do not depend on the ridge.
    """
    inverses = np.stack([spectrum.inverse(ridge) for ridge in ridges])
    return total - 2.0 * inverses @ linear + np.einsum("ri,ri->r", inverses @ quadratic, inverses)


def choose_ridge(ridges: np.ndarray, errors: np.ndarray, total: float) -> tuple[float, list[str]]:
    """(ridge, warnings): the smallest ridge whose validation R2 is within `SLACK` of the best.

    A larger ridge shrinks the map's small directions, where concepts live, for the sake of the large ones
    that rule the R2. Measured on two trained models, TinyStories 656k to 3M: the ridge of best R2 carried
    four emotions over at a mean Token Acc of .71, a tenth of it, .02 of R2 lower, at .83.

    total: the validation rows' sum of squares, which makes an error an R2.
    """
    best = int(np.argmin(errors))
    warnings = []
    if best == len(ridges) - 1:
        warnings.append(
            f"the largest ridge of the grid ({ridges[best]:.0e}) was best: hardly anything is predicted"
        )
    chosen = int(np.flatnonzero(errors <= errors[best] + SLACK * total)[0])
    return float(ridges[chosen]), warnings


def _cut_off(size: int) -> float:
    """The share of the largest eigenvalue of a Gram matrix of this size that is zero to rounding."""
    return EPSILON * max(64.0, 4.0 * float(np.sqrt(size)))


# ---------------------------------------------------------------- pseudo-inverse


class PseudoInverse:
    """The pseudo-inverse X^+ of source rows X float64 [n, d_s], kept as factors.

    Fewer rows than columns: X^T = Q R, X^+ = Q R^-T, the shortest of all exact solutions. Otherwise X = Q R
    and X^+ = R^-1 Q^T. Where R [k, k] is ill-conditioned its SVD takes its place, without the directions that
    float64 cannot tell from zero.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._dual = rows.shape[0] < rows.shape[1]
        self.side = "dual" if self._dual else "primal"
        self._q, r = scipy.linalg.qr(rows.T if self._dual else rows, mode="economic", check_finite=False)
        self._triangle = _Triangle(r, max(rows.shape))

    def solve(self, target: np.ndarray) -> Solution:
        """F = X^+ Y for target rows Y [n, d_t]."""
        triangle = self._triangle
        if self._dual:
            weight = self._q @ triangle.inverse_transposed_times(target)
        else:
            weight = triangle.inverse_times(self._q.T @ target)
        return Solution(weight, self.side, triangle.rank, triangle.condition_number(), None, triangle.trust())


class _Triangle:
    """The inverse of an upper triangular R [k, k], or its pseudo-inverse where R is singular in float64."""

    def __init__(self, r: np.ndarray, longest_side: int) -> None:
        self._r = np.asfortranarray(r)
        self._svd: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.rank = len(r)
        reciprocal, _ = scipy.linalg.lapack.dtrcon(self._r)
        if reciprocal > 1.0 / CONDITION_LIMIT:
            return
        u, sigma, vt = scipy.linalg.svd(r, check_finite=False)
        # What float64 cannot tell from zero, and no more: the usual bound for a matrix of this size.
        kept = sigma > sigma[0] * EPSILON * longest_side
        self.rank = int(kept.sum())
        self._svd = u[:, kept], sigma[kept], vt[kept]

    def condition_number(self) -> float:
        """Of R without the directions that were cut off."""
        sigma = scipy.linalg.svdvals(self._r, check_finite=False) if self._svd is None else self._svd[1]
        return float(sigma[0] / sigma[-1]) if self.rank else float("inf")

    def trust(self) -> list[str]:
        """`trust` of R; where it is well-conditioned there is nothing to warn of, nor to compute."""
        return [] if self._svd is None else trust(self.rank, len(self._r), self.condition_number())

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


def map_vectors(vectors: np.ndarray, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Vectors through the map of `protocol: paper` over these rows, which is never formed.

    For a few vectors, forming the map is most of the work.

    Args:
        vectors: v, [k, d_s].
        source: rows [n, d_s].
        target: rows [n, d_t] of the same texts.

    Returns:
        v F, float64 [k, d_t], and warnings, one line each.
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
    # For so few rows numpy sums in float64 without a float64 copy of the target, which would take longer.
    return weights @ np.asarray(target), triangle.trust()


def pseudo_inverse_from_sums(xx: np.ndarray, xy: np.ndarray, n: int) -> Solution:
    """F = (X^T X)^+ X^T Y from the sums xx [d_s, d_s] and xy [d_s, d_t] over n rows.

    X^T X has the square of X's condition number. Scaling every column to length one first takes out what
    comes from columns of different size alone (Cholesky is indifferent to it; residual streams have columns a
    hundred times the others). What is still lost is estimated and warned of.
    """
    limit = min(n, len(xx))
    solution = _by_cholesky(xx, xy) if n >= len(xx) else None
    if solution is not None:
        return solution
    eigenvalues, vectors = scipy.linalg.eigh(xx, check_finite=False)
    kept = eigenvalues > max(float(eigenvalues[-1]), 0.0) * _cut_off(len(xx))
    kept[: len(kept) - limit] = False
    rank, values, basis = int(kept.sum()), eigenvalues[kept], vectors[:, kept]
    condition = float(np.sqrt(values[-1] / values[0])) if rank else float("inf")
    weight = basis @ ((basis.T @ xy) / values[:, None])
    warnings = trust(rank, limit, condition) + _squared_loss(EPSILON * condition**2)
    return Solution(weight, "primal", rank, condition, None, warnings)


def _by_cholesky(xx: np.ndarray, xy: np.ndarray) -> Solution | None:
    """`pseudo_inverse_from_sums` by Cholesky of the sums scaled to a unit diagonal; None near singular."""
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
    weight = scipy.linalg.cho_solve((factor, False), xy / lengths, check_finite=False) / lengths
    eigenvalues = scipy.linalg.eigvalsh(xx, check_finite=False)
    smallest = max(float(eigenvalues[0]), 0.0)
    condition = float(np.sqrt(eigenvalues[-1] / smallest)) if smallest else float("inf")
    warnings = trust(len(xx), len(xx), condition) + _squared_loss(EPSILON / reciprocal)
    return Solution(weight, "primal", len(xx), condition, None, warnings)


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
