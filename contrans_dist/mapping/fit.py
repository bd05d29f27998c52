"""The map from a source model's activations to a target model's, y ~ x F + b, with what is known about it.

Row vectors throughout: F is [d_source, d_target]. The bias maps points (rows of activations); a concept
vector is a difference of points, so only F applies to it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from contrans_dist.config.map_options import Centre, Fitting, Regularise, fitting
from contrans_dist.mapping.fit_rows import Rows, prepared
from contrans_dist.mapping.goodness import Score, score_rows, score_sums
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, shuffle_order
from contrans_dist.mapping.least_squares import LeastSquares, Solution, solve_sums, trust
from contrans_dist.mapping.linear_map import PROTOCOLS, AffineMap, Protocol, options_of, random_map, ridges_of
from contrans_dist.mapping.moments import Moments
from contrans_dist.mapping.ridge import check_ridges
from contrans_dist.mapping.spectral import Search, SpectralFit, Sums, from_rows, from_sums

__all__ = ["PROTOCOLS", "AffineMap", "Protocol", "fit_map", "fit_moments", "random_map", "shuffled_map"]


def fit_map(
    source: np.ndarray,
    target: np.ndarray,
    *,
    protocol: Protocol = "default",
    split: np.ndarray | None = None,
    ridges: Sequence[float] | np.ndarray | None = None,
    centre: Centre | None = None,
    regularise: Regularise | None = None,
    rank: int | None = None,
    whiten: float | None = None,
    tokens: np.ndarray | None = None,
) -> AffineMap:
    """The map from source rows [n, d_s] to target rows [n, d_t], row i of both from the same text.

    - "default": centred; fitted on the "fit" rows with the smallest relative ridge (of `ridges`, else 1e-10
      to 10 in half decades) that is about as good as the best on the "validation" rows
      (`ridge.choose_ridge`), then half whitened (`spectral`); R2 on the "test" rows. `split` is that of
      `split_of(text_ids)`; without it `default_split` is used, which cannot know of identical texts.
    - "paper": equation 2, V diag(1/sigma) U^T Y over the first 80 % of the rows, no centring, no bias; R2 and
      mean squared error on the last 10 %.
    - "lcross": the same (the pseudo-inverse) over all rows, as L-Cross Modulation fits on a concept's own
      prompts; its figures are in-sample, and it says so.

    Options of "default", each by itself (None is the protocol's own): `centre` True, False, or "token" (about
    the mean of the fit rows of the same of `tokens` [n]: the default where they are given); `regularise`
    "ridge", "rank" or "none"; `rank`, a number of directions instead of a choice; `whiten` 0 to 1. With
    whitening the map no longer predicts best, so its R2 is lower: it is made for vectors. Several source
    blocks are one `source`, side by side.

    ValueError for rows that do not match, NaN or infinity, a part of the split without rows, an unknown
    protocol, or an option that contradicts it.
    """
    if centre is None and tokens is None and protocol == "default":
        centre = True
    options = _options(protocol, ridges, centre, regularise, rank, whiten)
    rows = prepared(source, target, protocol, split, options, tokens)
    mapping = _fit_rows(rows, protocol, options, ridges)
    return replace(mapping, n_effective=rows.effective, warnings=[*rows.warnings, *mapping.warnings])


def fit_moments(
    fit: Moments,
    validation: Moments | None = None,
    test: Moments | None = None,
    *,
    protocol: Protocol = "default",
    ridges: Sequence[float] | np.ndarray | None = None,
    centre: Centre | None = None,
    regularise: Regularise | None = None,
    rank: int | None = None,
    whiten: float | None = None,
) -> AffineMap:
    """`fit_map` from the sums of its three parts alone, so for any number of rows; always the primal side.

    Under "paper", "lcross" and regularise "none" the sums square the condition number: see
    `leastsquares.solve_sums` for the cut-off, and the map's warnings for what it cost. "default" needs
    `validation` unless `ridges` holds a single value, and sums made with `target` unless whiten is 0;
    "lcross" takes `fit` alone. ValueError for parts without rows, widths that differ, or centre "token",
    which needs the rows.
    """
    if centre is None and protocol == "default":
        centre = True
    options = _options(protocol, ridges, centre, regularise, rank, whiten)
    if options.centre == "token":
        raise ValueError("centre 'token' needs the rows, not their sums: expected true or false")
    return _fit_sums((fit, validation, test), protocol, options, ridges)


def shuffled_map(
    source: np.ndarray,
    target: np.ndarray,
    mapping: AffineMap,
    *,
    seed: int = 0,
    split: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> AffineMap:
    """The control: `mapping` fitted again with its source rows permuted against the target's (seeded).

    Protocol, split and tokens must be those of `mapping`; its options, and its ridge or rank, are taken over:
    choosing one anew would find that nothing can be predicted, take the largest, and leave a map of nearly
    nothing, which controls for nothing.
    """
    protocol: Protocol = next(name for name in PROTOCOLS if name == mapping.protocol)
    options = options_of(mapping)
    rows = prepared(source, target, protocol, split, options, tokens)
    shuffled = replace(rows, x=rows.x[shuffle_order(rows.parts == FIT, seed)])
    return _fit_rows(shuffled, protocol, options, ridges_of(mapping))


def _options(
    protocol: str,
    ridges: object,
    centre: Centre | None,
    regularise: Regularise | None,
    rank: int | None,
    whiten: float | None,
) -> Fitting:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    options = fitting(protocol, centre, regularise, rank, whiten)
    if ridges is not None and options.regularise != "ridge":
        told = f"protocol {protocol!r}" if protocol != "default" else f"regularise {options.regularise!r}"
        raise ValueError(f"{told} has no ridge")
    return options


def _fit_rows(rows: Rows, protocol: Protocol, options: Fitting, ridges: object) -> AffineMap:
    many = np.sum(rows.parts == FIT) >= rows.x.shape[1]
    if protocol == "default" and many and not _plain(options):
        # The sums turn rows to float64 chunk by chunk; many rows are never copied whole.
        chosen = [rows.parts == name for name in (FIT, VALIDATION, TEST)]
        sums = [Moments.of(rows.x[some], rows.y[some], target=options.whiten > 0) for some in chosen]
        return _fit_sums((sums[0], sums[1], sums[2]), protocol, options, ridges, rows.means)
    fit, validation, test = (rows.of(name) for name in (FIT, VALIDATION, TEST))
    centre = np.zeros(fit[0].shape[1]), np.zeros(fit[1].shape[1])
    if options.centre:
        centre = fit[0].mean(axis=0), fit[1].mean(axis=0)
        fit, validation, test = ((x - centre[0], y - centre[1]) for x, y in (fit, validation, test))
    solution: SpectralFit | Solution
    side = "dual"
    if _plain(options):
        solver = LeastSquares(fit[0])
        side = solver.side
        warnings = trust(solver.rank, solver.full_rank, solver.condition_number)
        solution = Solution(solver.solve(fit[1]), solver.rank, solver.condition_number, warnings)
    else:
        solution = from_rows(fit, validation, _search(options, ridges), options.whiten)
    scored = (validation, fit if protocol == "lcross" else test)
    mean = fit[1].mean(axis=0)
    scores = [score_rows(*part, solution.weight, np.zeros(len(mean)), mean) for part in scored]
    bias = _bias(solution.weight, rows.means or centre, options)
    return _assemble(solution, bias, scores, (protocol, side, options), len(fit[0]))


def _fit_sums(
    parts: tuple[Moments, Moments | None, Moments | None],
    protocol: Protocol,
    options: Fitting,
    ridges: object,
    means: tuple[np.ndarray, np.ndarray] | None = None,
) -> AffineMap:
    fit, validation, test = parts
    if fit.n == 0:
        raise ValueError("no rows to fit on")
    centre = (
        (fit.mean_x, fit.mean_y) if options.centre else (np.zeros(len(fit.mean_x)), np.zeros(len(fit.mean_y)))
    )
    solution: SpectralFit | Solution
    if _plain(options):
        xx, xy, _ = fit.around(*centre)
        solution = solve_sums(xx, xy, fit.n - bool(options.centre))
    else:
        held = _sums(validation, centre) if validation is not None and validation.n else None
        solution = from_sums(_sums(fit, centre), held, _search(options, ridges), options.whiten)
    bias = _bias(solution.weight, centre, options)
    scored = (None, fit) if protocol == "lcross" else (validation, test)
    scores = [score_sums(part, solution.weight, centre[0], bias, fit.mean_y) for part in scored]
    bias = _bias(solution.weight, means or centre, options)
    return _assemble(solution, bias, scores, (protocol, "primal", options), fit.n)


def _plain(options: Fitting) -> bool:
    """Whether the fit is the pseudo-inverse, for which there are better ways than an eigenbasis."""
    return options.regularise == "none" and options.whiten == 0


def _search(options: Fitting, ridges: object) -> Search:
    if options.regularise == "ridge":
        return Search(ridges=check_ridges(ridges))  # type: ignore[arg-type]
    if options.regularise == "none":
        return Search()
    return Search(ranks=np.array([] if options.rank is None else [options.rank], dtype=np.int64))


def _sums(part: Moments, centre: tuple[np.ndarray, np.ndarray]) -> Sums:
    xx, xy, yy = part.around(*centre)
    return Sums(xx, xy, float(yy.sum()), part.target_around(centre[1]))


def _bias(weight: np.ndarray, means: tuple[np.ndarray, np.ndarray], options: Fitting) -> np.ndarray:
    return means[1] - means[0] @ weight if options.centre else np.zeros(weight.shape[1])


def _assemble(
    solution: SpectralFit | Solution,
    bias: np.ndarray,
    scores: list[Score | None],
    how: tuple[str, str, Fitting],
    n: int,
) -> AffineMap:
    """The map as stored, from the float64 solution, the scores on (validation, test), and (protocol, side,
    options).
    """
    (validation, test), (protocol, side, options) = scores, how
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
        ridge=solution.ridge if isinstance(solution, SpectralFit) else None,
        r2_validation=validation.r2 if validation else None,
        r2_test=test.r2 if test else None,
        r2_test_column=test.r2_column if test else None,
        mse_test=test.mse if test else None,
        held_out=held_out,
        warnings=warnings,
        centre=options.centre,
        regularise=options.regularise,
        kept=solution.kept if isinstance(solution, SpectralFit) else None,
        whiten=options.whiten,
    )
