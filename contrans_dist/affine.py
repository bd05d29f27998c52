"""The map from a source model's activations to a target model's, y ~ x F + b, with what is known about it.

Row vectors throughout: F is [d_source, d_target]. The bias maps points (rows of activations); a concept
vector is a difference of points, so only F applies to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from contrans_dist.goodness import Score, score_rows, score_sums
from contrans_dist.leastsquares import LeastSquares, Solution, solve_sums, trust
from contrans_dist.moments import Moments, check_finite
from contrans_dist.ridge import RidgeFit, check_ridges, ridge_from_rows, ridge_from_sums
from contrans_dist.splits import FIT, TEST, VALIDATION, default_split, paper_split, shuffle_order

Protocol = Literal["default", "paper", "lcross"]
RANDOM_MAP = 0x72616E646F6D54
PROTOCOLS: tuple[Protocol, ...] = ("default", "paper", "lcross")


@dataclass(frozen=True)
class AffineMap:
    """A fitted map: weight float32 [d_source, d_target], bias float32 [d_target], and how it was come by.

    side: "primal" (d_source unknowns a column) or "dual" (one unknown a row, when there are fewer rows than
    columns). rank and condition_number: of the source rows fitted on (centred under "default"), before any
    ridge. ridge: relative to the largest eigenvalue, None where there is none. R2 = 1 - SSE / SST over all
    columns, SST about the fit rows' mean; r2_test_column is the median over the columns, which a few columns
    of huge variance cannot rule. mse_test: mean squared error per number. held_out False: the "test" figures
    are in-sample. Figures are None where there were no rows for them.
    """

    weight: np.ndarray
    bias: np.ndarray
    protocol: str
    side: str
    n_fit: int
    rank: int
    condition_number: float
    ridge: float | None = None
    r2_validation: float | None = None
    r2_test: float | None = None
    r2_test_column: float | None = None
    mse_test: float | None = None
    held_out: bool = True
    warnings: list[str] = field(default_factory=list)

    def map_points(self, rows: np.ndarray) -> np.ndarray:
        """rows [n, d_source] as points in the target's space, float32 [n, d_target]: x F + b."""
        return np.asarray(rows, dtype=np.float32) @ self.weight + self.bias

    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON takes it (an infinite condition number becomes None)."""
        facts = {k: v for k, v in self.__dict__.items() if k not in ("weight", "bias")}
        condition = self.condition_number if np.isfinite(self.condition_number) else None
        return {**facts, "condition_number": condition, "warnings": list(self.warnings)}

    @classmethod
    def from_header(cls, weight: np.ndarray, bias: np.ndarray, header: dict[str, Any]) -> "AffineMap":
        """The inverse of `header`; keys it does not know are left alone."""
        known = {k: v for k, v in header.items() if k in cls.__dataclass_fields__}
        if known.get("condition_number") is None:
            known["condition_number"] = float("inf")
        return cls(weight=weight, bias=bias, **known)


def fit_map(
    source: np.ndarray,
    target: np.ndarray,
    *,
    protocol: Protocol = "default",
    split: np.ndarray | None = None,
    ridges: Sequence[float] | np.ndarray | None = None,
) -> AffineMap:
    """The map from source rows [n, d_s] to target rows [n, d_t], row i of both from the same text.

    - "default": centred; fitted on the "fit" rows with the smallest relative ridge (of `ridges`, else 1e-10
      to 10 in half decades) that is about as good as the best on the "validation" rows
      (`ridge.choose_ridge`); R2 on the "test" rows. `split` is that of `split_of(text_ids)`; without it
      `default_split` is used, which cannot know of identical texts.
    - "paper": equation 2, V diag(1/sigma) U^T Y over the first 80 % of the rows, no centring, no bias; R2 and
      mean squared error on the last 10 %.
    - "lcross": the same (the pseudo-inverse) over all rows, as L-Cross Modulation fits on a concept's own
      prompts; its figures are in-sample, and it says so.

    ValueError for rows that do not match, NaN or infinity, a part of the split without rows, or an unknown
    protocol.
    """
    x, y = check_finite(source, "source"), check_finite(target, "target")
    if len(x) != len(y):
        raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")
    parts = _parts(len(x), protocol, split)
    names = (FIT, VALIDATION, TEST)
    if protocol == "default" and np.sum(parts == FIT) >= x.shape[1]:
        # The sums turn rows to float64 chunk by chunk; many rows are never copied whole.
        sums = [Moments.of(x[parts == name], y[parts == name]) for name in names]
        return fit_moments(*sums, ridges=ridges)
    x, y = x.astype(np.float64), y.astype(np.float64)
    fit, validation, test = ((x[parts == name], y[parts == name]) for name in names)
    if protocol != "default":
        _no_ridges(protocol, ridges)
        return _least_squares(fit, validation, test, protocol)
    mean_x, mean_y = fit[0].mean(axis=0), fit[1].mean(axis=0)
    solution = ridge_from_rows(
        fit[0] - mean_x, fit[1] - mean_y, validation[0] - mean_x, validation[1] - mean_y, check_ridges(ridges)
    )
    bias = mean_y - mean_x @ solution.weight
    scores = [score_rows(*rows, solution.weight, bias, mean_y) for rows in (validation, test)]
    return _assemble(solution, bias, scores, "default", "dual", len(fit[0]))


def fit_moments(
    fit: Moments,
    validation: Moments | None = None,
    test: Moments | None = None,
    *,
    protocol: Protocol = "default",
    ridges: Sequence[float] | np.ndarray | None = None,
) -> AffineMap:
    """`fit_map` from the sums of its three parts alone, so for any number of rows; always the primal side.

    Under "paper" and "lcross" the sums square the condition number: see `leastsquares.solve_sums` for the
    cut-off, and the map's warnings for what it cost. "default" needs `validation` unless `ridges` holds a
    single value; "lcross" takes `fit` alone. ValueError for parts without rows, or widths that differ.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    if fit.n == 0:
        raise ValueError("no rows to fit on")
    if protocol == "default":
        solution: RidgeFit | Solution = ridge_from_sums(fit, validation, check_ridges(ridges))
        centre, bias = fit.mean_x, fit.mean_y - fit.mean_x @ solution.weight
    else:
        _no_ridges(protocol, ridges)
        xx, xy, _ = fit.around(0.0, 0.0)
        solution = solve_sums(xx, xy, fit.n)
        centre, bias = np.zeros(len(fit.mean_x)), np.zeros(len(fit.mean_y))
    scored = (None, fit) if protocol == "lcross" else (validation, test)
    scores = [score_sums(part, solution.weight, centre, bias, fit.mean_y) for part in scored]
    return _assemble(solution, bias, scores, protocol, "primal", fit.n)


def shuffled_map(
    source: np.ndarray,
    target: np.ndarray,
    mapping: AffineMap,
    *,
    seed: int = 0,
    split: np.ndarray | None = None,
) -> AffineMap:
    """The control: `mapping` fitted again with its source rows permuted against the target's (seeded).

    Protocol and split must be those of `mapping`, and its ridge is taken over: choosing one anew would find
    that nothing can be predicted, take the largest, and leave a map of nearly nothing, which controls for
    nothing.
    """
    protocol: Protocol = next(name for name in PROTOCOLS if name == mapping.protocol)
    parts = _parts(len(source), protocol, split)
    shuffled = np.asarray(source)[shuffle_order(parts == FIT, seed)]
    ridges = None if mapping.ridge is None else [mapping.ridge]
    return fit_map(shuffled, target, protocol=protocol, split=split, ridges=ridges)


def random_map(like: AffineMap, seed: int = 0) -> AffineMap:
    """The control "random T": normal draws with the shape and the Frobenius norm of `like`, and no bias."""
    # A stream of its own: callers who drew their data with the same small seed must not meet it again here.
    draw = np.random.default_rng([RANDOM_MAP, seed]).standard_normal(like.weight.shape)
    draw *= np.linalg.norm(like.weight.astype(np.float64)) / np.linalg.norm(draw)
    return AffineMap(
        weight=draw.astype(np.float32),
        bias=np.zeros_like(like.bias),
        protocol="random",
        side="none",
        n_fit=0,
        rank=min(draw.shape),
        condition_number=float("inf"),
    )


Rows = tuple[np.ndarray, np.ndarray]


def _parts(n: int, protocol: str, split: np.ndarray | None) -> np.ndarray:
    """The part of every row, str [n]; ValueError for an unknown protocol or a split that does not fit it."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    if protocol != "default":
        if split is not None:
            raise ValueError(f"protocol {protocol!r} takes the rows in input order: it has no split")
        parts = paper_split(n) if protocol == "paper" else np.full(n, FIT)
    else:
        parts = default_split(n) if split is None else np.asarray(split)
    if parts.shape != (n,):
        raise ValueError(f"the split has shape {list(parts.shape)}, expected one part for each of {n} rows")
    if not (parts == FIT).any():
        raise ValueError("the split leaves no rows to fit on")
    return parts


def _no_ridges(protocol: str, ridges: object) -> None:
    if ridges is not None:
        raise ValueError(f"protocol {protocol!r} has no ridge")


def _least_squares(fit: Rows, validation: Rows, test: Rows, protocol: str) -> AffineMap:
    solver = LeastSquares(fit[0])
    weight, bias = solver.solve(fit[1]), np.zeros(fit[1].shape[1])
    warnings = trust(solver.rank, solver.full_rank, solver.condition_number)
    solution = Solution(weight, solver.rank, solver.condition_number, warnings)
    mean = fit[1].mean(axis=0)
    scored = (validation, fit if protocol == "lcross" else test)
    scores = [score_rows(*rows, weight, bias, mean) for rows in scored]
    return _assemble(solution, bias, scores, protocol, solver.side, len(fit[0]))


def _assemble(
    solution: RidgeFit | Solution,
    bias: np.ndarray,
    scores: list[Score | None],
    protocol: str,
    side: str,
    n: int,
) -> AffineMap:
    """The map as stored, from the float64 solution and the scores on (validation, test)."""
    validation, test = scores
    warnings = list(solution.warnings)
    held_out = protocol != "lcross"
    if not held_out:
        warnings.append("R2 is in-sample: every row was fitted on")
    elif test is not None and test.r2 < 0:
        warnings.append(f"R2 on held-out rows is {test.r2:.2f}: worse than predicting the mean")
    return AffineMap(
        weight=solution.weight.astype(np.float32),
        bias=bias.astype(np.float32),
        protocol=protocol,
        side=side,
        n_fit=n,
        rank=solution.rank,
        condition_number=solution.condition_number,
        ridge=solution.ridge if isinstance(solution, RidgeFit) else None,
        r2_validation=validation.r2 if validation else None,
        r2_test=test.r2 if test else None,
        r2_test_column=test.r2_column if test else None,
        mse_test=test.mse if test else None,
        held_out=held_out,
        warnings=warnings,
    )
