"""A map in the eigenbasis of the source's rows: ridge or rank by validation, and whitening.

Whitening. With M = A S_xy S_yy^(-1/2), A^2 the (regularised) inverse of S_xx, the fit is A M S_yy^(1/2). The
singular values of M are the canonical correlations: by so much the fit shrinks each direction, as it must to
predict best, and most where the two models agree least, which is where concepts may live. Whitened by a share
w they become their power 1 - w: at w = 1 the map is the orthogonal Procrustes rotation between the whitened
spaces, and what it predicts varies as much as the target's rows do. A map for vectors need not predict best.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from contrans_dist.mapping.ridge import SLACK, Spectrum, choose_ridge, filter_errors

RANKS_TRIED = 40
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Search:
    """What is tried on validation rows: relative `ridges`, or `ranks`; a single one is taken as it is.

    Both None: the pseudo-inverse. ranks empty: the grid of `rank_grid`.
    """

    ridges: np.ndarray | None = None
    ranks: np.ndarray | None = None


@dataclass(frozen=True)
class SpectralFit:
    """weight float64 [d_s, d_t]; the relative ridge, or the directions kept; the rows' rank and condition."""

    weight: np.ndarray
    ridge: float | None
    kept: int | None
    rank: int
    condition_number: float
    warnings: list[str]


@dataclass(frozen=True)
class Sums:
    """Sums over rows about one point: xx [d_s, d_s], xy [d_s, d_t], total (of y^2), and yy [d_t, d_t]."""

    xx: np.ndarray
    xy: np.ndarray
    total: float
    yy: np.ndarray | None = None


Rows = tuple[np.ndarray, np.ndarray]
Described = Callable[[], tuple[np.ndarray, np.ndarray, float]]
"""What `ridge.filter_errors` needs of the validation rows: linear, quadratic and their sum of squares."""


def from_sums(fit: Sums, validation: Sums | None, search: Search, whiten: float) -> SpectralFit:
    """The primal side: d_s unknowns a column. ValueError when there is a choice and nothing to choose on."""
    spectrum = Spectrum.of(fit.xx)
    projected = spectrum.vectors.T @ fit.xy

    def described() -> tuple[np.ndarray, np.ndarray, float]:
        if validation is None:
            raise ValueError("no validation rows to choose the ridge or rank on")
        linear = np.einsum("ij,ij->i", projected, spectrum.vectors.T @ validation.xy)
        seen = spectrum.vectors.T @ validation.xx @ spectrum.vectors
        return linear, seen * (projected @ projected.T), validation.total

    chosen = _Chosen.by(search, spectrum, described)
    if whiten == 0.0:
        weight = spectrum.vectors @ (chosen.inverse[:, None] * projected)
    else:
        if fit.yy is None:
            raise ValueError("whitening needs the target's own sums: expected MomentSums(..., target=True)")
        target = Spectrum.of(fit.yy)
        used = target.above_rounding()
        size = np.sqrt(target.values[used])
        half = np.sqrt(chosen.inverse)[:, None]
        white = (half * projected) @ (target.vectors[:, used] / size)
        weight = (spectrum.vectors * half.T) @ _spread(white, whiten) @ (size * target.vectors[:, used]).T
    return chosen.fit(weight, spectrum)


def from_rows(fit: Rows, validation: Rows, search: Search, whiten: float) -> SpectralFit:
    """The dual side: one unknown a row, the same result. All rows (x, y) are about the fit rows' centre."""
    (x, y), (x_validation, y_validation) = fit, validation
    spectrum = Spectrum.of(x @ x.T)
    projected = spectrum.vectors.T @ y

    def described() -> tuple[np.ndarray, np.ndarray, float]:
        if len(x_validation) == 0:
            raise ValueError("no validation rows to choose the ridge or rank on")
        seen = x_validation @ x.T @ spectrum.vectors
        linear = np.einsum("ij,ij->i", projected, seen.T @ y_validation)
        return linear, (seen.T @ seen) * (projected @ projected.T), float(np.sum(y_validation**2))

    chosen = _Chosen.by(search, spectrum, described)
    if whiten == 0.0:
        weight = x.T @ (spectrum.vectors @ (chosen.inverse[:, None] * projected))
    else:
        u, size, vt = scipy.linalg.svd(y, full_matrices=False, check_finite=False)
        used = size > size[0] * _EPSILON * max(y.shape)
        # X = U sqrt(lambda) V^T, so that V^T S_xy S_yy^(-1/2) is sqrt(lambda) U^T times Y's left vectors.
        seen = spectrum.above_rounding()
        root, half = np.sqrt(spectrum.values[seen]), np.sqrt(chosen.inverse[seen])
        white = (half * root)[:, None] * (spectrum.vectors[:, seen].T @ u[:, used])
        along = x.T @ (spectrum.vectors[:, seen] * (half / root))
        weight = along @ _spread(white, whiten) @ (size[used, None] * vt[used])
    return chosen.fit(weight, spectrum)


def rank_grid(full: int) -> np.ndarray:
    """The ranks that are tried, ascending, int [at most RANKS_TRIED]: 1 to `full`, evenly in logarithm."""
    return np.unique(np.geomspace(1, full, RANKS_TRIED).round().astype(np.int64))


@dataclass(frozen=True)
class _Chosen:
    """The inverse eigenvalues [k] of the candidate that was taken, and which it was."""

    inverse: np.ndarray
    ridge: float | None
    kept: int | None
    warnings: list[str]

    @classmethod
    def by(cls, search: Search, spectrum: Spectrum, described: Described) -> "_Chosen":
        """By validation, where there is a choice: `described` gives what the validation rows say."""
        if search.ridges is not None:
            inverses = np.stack([spectrum.inverse(ridge) for ridge in search.ridges])
            errors, total = _errors(inverses, described)
            ridge, warnings = choose_ridge(search.ridges, errors, total)
            return cls(spectrum.inverse(ridge), ridge, None, warnings)
        full = int(spectrum.above_rounding().sum())
        if search.ranks is None:
            return cls(spectrum.truncated(full), None, None, [])
        ranks = search.ranks if search.ranks.size else rank_grid(full)
        if ranks[-1] > full:
            raise ValueError(f"rank {ranks[-1]}: the source rows have rank {full}")
        inverses = np.stack([spectrum.truncated(int(rank)) for rank in ranks])
        errors, total = _errors(inverses, described)
        kept, warnings = choose_rank(ranks, errors, total)
        return cls(spectrum.truncated(kept), None, kept, warnings)

    def fit(self, weight: np.ndarray, spectrum: Spectrum) -> SpectralFit:
        return SpectralFit(weight, self.ridge, self.kept, *spectrum.rank(), self.warnings)


def choose_rank(ranks: np.ndarray, errors: np.ndarray | None, total: float) -> tuple[int, list[str]]:
    """(rank, warnings): the largest whose validation R2 is within `SLACK` of the best, as `choose_ridge`
    takes the smallest ridge; the only one when errors is None.
    """
    if errors is None:
        return int(ranks[0]), []
    best = float(errors.min())
    warnings = [] if best < total else ["no rank predicts the validation rows better than their mean"]
    return int(ranks[np.flatnonzero(errors <= best + SLACK * total)[-1]]), warnings


def _errors(inverses: np.ndarray, described: Described) -> tuple[np.ndarray | None, float]:
    if len(inverses) == 1:
        return None, 0.0
    linear, quadratic, total = described()
    return filter_errors(inverses, linear, quadratic, total), total


def _spread(white: np.ndarray, whiten: float) -> np.ndarray:
    """M with its singular values to the power 1 - whiten; those that are rounding alone become zero."""
    u, sigma, vt = scipy.linalg.svd(white, full_matrices=False, check_finite=False)
    used = sigma > sigma[0] * _EPSILON * max(white.shape)
    return (u[:, used] * sigma[used] ** (1.0 - whiten)) @ vt[used]
