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
from functools import cached_property

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


class Ridge:
    """Ridge regression on one source, factored once for every target and every ridge.

    values [k], ascending and not negative, and vectors [k, k]: the spectrum of the source's Gram matrix.
    """

    def __init__(
        self, gram: np.ndarray, held: np.ndarray | None = None, rows: np.ndarray | None = None
    ) -> None:
        """From sums about one point, X^T X and X_v^T X_v of the validation rows; or, for fewer rows than
        columns, from `rows` X, with X X^T and X X_v^T. ValueError when the rows are all the same.
        """
        values, self.vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
        if not values[-1] > 0:
            raise ValueError("the source rows are all the same: there is nothing to fit a map on")
        self.values, self._rows, self._seen = np.maximum(values, 0.0), rows, None
        if held is not None and rows is None:
            self._seen = self.vectors.T @ held @ self.vectors
        elif held is not None and held.size:
            along = self.vectors.T @ held
            self._seen = along @ along.T
        # What lies beyond a condition number of about 1e7 a Gram matrix cannot show: it counts as rank lost.
        kept = self.values[self.values > self.values[-1] * _cut_off(len(self.values))]
        self._rank, self._condition = len(kept), float(np.sqrt(kept[-1] / kept[0]))

    def inverse(self, ridge: float) -> np.ndarray:
        """1 / (lambda_i + ridge * lambda_max), [k]."""
        return 1.0 / (self.values + ridge * self.values[-1])

    def solve(
        self, xy: np.ndarray, held: tuple[np.ndarray, float] | None, ridges: Sequence[float] | None
    ) -> Solution:
        """The map of the smallest ridge that is about as good as the best on validation rows.

        xy: X^T Y, or Y where the source is given as rows. held: (the same of the validation rows, X_v^T Y_v
        or X X_v^T Y_v; the sum of squares of Y_v). ridges: those to be tried; None is `RIDGES`.
        """
        grid, warnings = _checked(ridges), list[str]()
        ridge, projected = float(grid[0]), self.vectors.T @ xy
        if len(grid) > 1:
            if held is None or self._seen is None:
                raise ValueError("no validation rows to choose the ridge on")
            ridge, warnings = choose_ridge(grid, self.errors(projected, *held, grid), held[1])
        weight = self.vectors @ (self.inverse(ridge)[:, None] * projected)
        if self._rows is None:
            return Solution(weight, "primal", self._rank, self._condition, ridge, warnings)
        return Solution(self._rows.T @ weight, "dual", self._rank, self._condition, ridge, warnings)

    def errors(
        self, projected: np.ndarray, held_xy: np.ndarray, total: float, ridges: np.ndarray
    ) -> np.ndarray:
        """Squared error over the validation rows of every ridge, float64 [n_ridges].

        projected: `vectors.T @ xy`; the other arguments as of `solve`. With D the diagonal of `inverse` as a
        vector it is total - 2 D linear + D quadratic D; linear [k] and quadratic [k, k] do not depend on the
        ridge.
        """
        assert self._seen is not None  # without validation rows there is no error over them
        linear = np.einsum("ij,ij->i", projected, self.vectors.T @ held_xy)
        inverses = np.stack([self.inverse(ridge) for ridge in ridges])
        quadratic = self._seen * (projected @ projected.T)
        return total - 2.0 * inverses @ linear + np.einsum("ri,ri->r", inverses @ quadratic, inverses)


def _checked(ridges: Sequence[float] | None) -> np.ndarray:
    """The relative ridges to try as a float64 array, ascending. ValueError when empty or not positive."""
    grid = np.sort(np.asarray(RIDGES if ridges is None else ridges, dtype=np.float64))
    if grid.ndim != 1 or grid.size == 0 or not (grid > 0).all() or not np.isfinite(grid).all():
        raise ValueError("ridges: expected positive numbers, relative to the largest eigenvalue")
    return grid


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
        self._q, r = scipy.linalg.qr(rows.T if self._dual else rows, mode="economic", check_finite=False)
        self._triangle = Triangle(r, max(rows.shape))

    def solve(self, target: np.ndarray) -> Solution:
        """F = X^+ Y for target rows Y [n, d_t]."""
        triangle = self._triangle
        if self._dual:
            weight, side = self._q @ triangle.inverse_times(target, transposed=True), "dual"
        else:
            weight, side = triangle.inverse_times(self._q.T @ target), "primal"
        return Solution(weight, side, triangle.rank, triangle.condition_number, None, triangle.trust())


class Triangle:
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

    @cached_property
    def condition_number(self) -> float:
        """Of R without the directions that were cut off."""
        sigma = scipy.linalg.svdvals(self._r, check_finite=False) if self._svd is None else self._svd[1]
        return float(sigma[0] / sigma[-1]) if self.rank else float("inf")

    def trust(self) -> list[str]:
        """`trust` of R; where it is well-conditioned there is nothing to warn of, nor to compute."""
        return [] if self._svd is None else _trust(self.rank, len(self._r), self.condition_number)

    def inverse_times(self, b: np.ndarray, transposed: bool = False) -> np.ndarray:
        """R^-1 b, or R^-T b, for b [k, m]."""
        if self._svd is None:
            return scipy.linalg.solve_triangular(self._r, b, trans=int(transposed), check_finite=False)
        u, sigma, vt = self._svd
        left, right = (u, vt) if transposed else (vt.T, u.T)
        return left @ ((right @ b) / sigma[:, None])


class PseudoInverseOfSums:
    """(X^T X)^+ of the sums X^T X [d_s, d_s] over n rows, kept as factors.

    X^T X has the square of X's condition number. Scaling every column to length one first takes out what
    comes from columns of different size alone (Cholesky is indifferent to it; residual streams have columns a
    hundred times the others). What is still lost is estimated and warned of.
    """

    def __init__(self, xx: np.ndarray, n: int) -> None:
        full_rank = min(n, len(xx))
        self._cholesky = _scaled_cholesky(xx) if n >= len(xx) else None
        if self._cholesky is not None:
            values = scipy.linalg.eigvalsh(xx, check_finite=False)
            values[0] = max(values[0], 0.0)
            lost = self._cholesky[2]
        else:
            values, vectors = scipy.linalg.eigh(xx, check_finite=False)
            kept = values > max(values[-1], 0.0) * _cut_off(len(xx))
            kept[: len(kept) - full_rank] = False
            values = values[kept]
            self._spectrum = values, vectors[:, kept]
            lost = EPSILON * values[-1] / values[0] if len(values) else float("inf")
        self._rank = len(values)
        known = self._rank > 0 and values[0] > 0
        self._condition = float(np.sqrt(values[-1] / values[0])) if known else float("inf")
        self._warnings = _trust(self._rank, full_rank, self._condition)
        if lost > ERROR_LIMIT:
            self._warnings.append(
                "solved from sums, which square the condition number: weak directions are uncertain to a "
                f"relative {min(lost, 1.0):.0e}; fit from rows, or use protocol 'default'"
            )

    def solve(self, xy: np.ndarray) -> Solution:
        """F = (X^T X)^+ X^T Y from xy = X^T Y [d_s, d_t]."""
        if self._cholesky is not None:
            factor, lengths, _ = self._cholesky
            weight = scipy.linalg.cho_solve((factor, False), xy / lengths, check_finite=False) / lengths
        else:
            values, vectors = self._spectrum
            weight = vectors @ ((vectors.T @ xy) / values[:, None])
        return Solution(weight, "primal", self._rank, self._condition, None, list(self._warnings))


def _scaled_cholesky(xx: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Of the sums scaled to a unit diagonal: (factor [d, d], columns' lengths [d, 1], relative error of what
    is solved with it); None near singular.
    """
    lengths = np.sqrt(np.diag(xx))[:, None]
    if not lengths.min() > 0:
        return None
    scaled = xx / (lengths * lengths.T)
    factor, failed = scipy.linalg.lapack.dpotrf(scaled)
    if failed:
        return None
    reciprocal, _ = scipy.linalg.lapack.dpocon(factor, np.linalg.norm(scaled, 1))
    return (factor, lengths, EPSILON / reciprocal) if reciprocal >= 10 * EPSILON else None


def _trust(rank: int, full_rank: int, condition_number: float) -> list[str]:
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
