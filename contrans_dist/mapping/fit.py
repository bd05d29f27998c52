"""A map from rows, or from the sums of rows: what is centred, which solver takes it, and what it is worth."""

from dataclasses import replace

import numpy as np

from contrans_dist.config.map_options import Centre, MapOptions
from contrans_dist.mapping.goodness import Goodness, score_rows, score_sums
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, parts_of, shuffle_order
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.solver import (
    PseudoInverse,
    Solution,
    Spectrum,
    check_ridges,
    pseudo_inverse_from_sums,
    ridge_from_rows,
    ridge_from_sums,
)
from contrans_dist.mapping.sums import Sums, check_same_length
from contrans_dist.mapping.tokens import TokenCentre, TokenSums, effective_rows, token_groups
from contrans_dist.vectors.row_checks import check_finite

SumsByPart = dict[str, Sums]
"""The sums of each part of the split."""
_DEFAULT = MapOptions()


def fit_rows(
    source: np.ndarray,
    target: np.ndarray,
    options: MapOptions = _DEFAULT,
    *,
    split: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> AffineMap:
    """The map from source rows [n, d_s] to target rows [n, d_t], row i of both from the same text.

    - "default": centred; fitted on the "fit" rows with the smallest ridge that is about as good as the best
      on the "validation" rows (`solver.choose_ridge`); R2 on the "test" rows.
    - "paper": equation 2, V diag(1/sigma) U^T Y over the first 80 % of the rows, no centring, no bias; R2 and
      mean squared error on the last 10 %.
    - "lcross": the same (the pseudo-inverse) over all rows, as L-Cross Modulation fits on a concept's own
      prompts; its figures are in-sample, and it says so.

    Args:
        source: [n, d_s], any real dtype; several source blocks are side by side.
        target: [n, d_t].
        options: how it is fitted.
        split: str [n] of `split_of`; without it `default_split` is taken, which knows of no identical texts.
        tokens: [n], a label for the token that each row was taken from.

    Raises:
        ValueError: for rows that do not match, NaN or infinity, or a part of the split without rows.
    """
    return SourceRows(source, options, split, tokens).fit(target)


def control_options(mapping: AffineMap) -> MapOptions:
    """The options that a map was fitted with, its ridge the only one to be tried.

    Choosing a ridge anew would find that nothing can be predicted, take the largest, and leave a control of
    nearly nothing, which controls for nothing.
    """
    ridges = None if mapping.ridge is None else (mapping.ridge,)
    return MapOptions(mapping.protocol, mapping.centre, mapping.regularise, ridges=ridges)  # type: ignore[arg-type]


class SourceRows:
    """The source's side of fits from rows: checked, split, centred and factored once, for any target rows.

    With fewer fit rows than columns the ridge is solved for one unknown a row; otherwise from sums, which
    turn rows to float64 chunk by chunk, so that many rows are never copied whole.
    """

    def __init__(
        self,
        source: np.ndarray,
        options: MapOptions = _DEFAULT,
        split: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
    ) -> None:
        self._x = check_finite(source, "source")
        self._options, self._centre = options, options.centring(tokens is not None)
        self._parts = parts_of(len(self._x), options.protocol, split)
        self._by_token: tuple[np.ndarray, int, np.ndarray] | None = None
        if self._centre == "token":
            if tokens is None or np.shape(tokens) != (len(self._x),):
                raise ValueError(f"centre 'token': expected tokens, a label for each of {len(self._x)} rows")
            self._about_tokens(np.asarray(tokens))
        n_fit = int(np.sum(self._parts == FIT))
        self._from_sums = options.has_ridge and n_fit >= self._x.shape[1]
        self._mean = np.zeros(self._x.shape[1])
        self._spectrum: Spectrum | None = None
        self._pseudo_inverse: PseudoInverse | None = None
        if self._from_sums:
            return
        if self._centre:
            self._mean = self._x[self._parts == FIT].mean(axis=0, dtype=np.float64)
        self._of_part = {p: self._x[self._parts == p] - self._mean for p in (FIT, VALIDATION, TEST)}
        fit = self._of_part[FIT]
        if options.has_ridge:
            self._spectrum = Spectrum.of(fit @ fit.T)
        else:
            self._pseudo_inverse = PseudoInverse(fit)

    def _about_tokens(self, tokens: np.ndarray) -> None:
        self._n_effective, self._lost = effective_rows(tokens, self._parts)
        group, n_groups = token_groups(tokens, self._parts)
        fit = self._parts == FIT
        sums = TokenSums.of(self._x, group, n_groups, fit)
        self._x, self._overall = sums.about(self._x, group), sums.overall()
        self._parts = np.where(group >= 0, self._parts, "")
        self._by_token = group, n_groups, fit

    def fit(self, target: np.ndarray) -> AffineMap:
        """The map to target rows [n, d_t]."""
        return self._fit(target, self._options)

    def control(self, target: np.ndarray, mapping: AffineMap, seed: int = 0) -> AffineMap:
        """The shuffled-map control of a map to these rows: the fit rows permuted (seeded)."""
        # Source rows in an order against the target's are the source's as they are, whose factors serve
        # again, against the target's in the opposite order.
        order = np.argsort(shuffle_order(self._parts == FIT, seed))
        return self._fit(target, control_options(mapping), order)

    def _fit(self, target: np.ndarray, options: MapOptions, order: np.ndarray | None = None) -> AffineMap:
        y, token_centre = check_finite(target, "target"), None
        check_same_length(self._x, y)
        if self._by_token is not None:
            group, n_groups, fit = self._by_token
            sums = TokenSums.of(y, group, n_groups, fit)
            y = sums.about(y, group)
            token_centre = TokenCentre(self._overall, sums.overall(), self._n_effective, self._lost)
        if order is not None:
            y = y[order]
        if not self._from_sums:
            return self._solve_rows(y, options, token_centre)
        parts: SumsByPart = {}
        for part in (FIT, VALIDATION, TEST):
            rows = self._parts == part
            parts[part] = Sums.of(self._x[rows], y[rows])
        if self._spectrum is None:
            fitted_on = parts[FIT]
            self._spectrum = Spectrum.of(fitted_on.sxx if self._centre else fitted_on.around(0.0, 0.0)[0])
        return fit_sums(parts, options, self._centre, token_centre, self._spectrum)

    def _solve_rows(self, y: np.ndarray, options: MapOptions, token_centre: TokenCentre | None) -> AffineMap:
        rows = {p: y[self._parts == p].astype(np.float64) for p in (FIT, VALIDATION, TEST)}
        fit_mean = rows[FIT].mean(axis=0)
        mean_y = fit_mean if self._centre else np.zeros(y.shape[1])
        held = {part: (self._of_part[part], rows[part] - mean_y) for part in rows}
        if self._pseudo_inverse is not None:
            solution = self._pseudo_inverse.solve(held[FIT][1])
        else:
            assert self._spectrum is not None  # one of them was made beside `_of_part`
            ridges = check_ridges(options.ridges)
            solution = ridge_from_rows(self._spectrum, held[FIT], held[VALIDATION], ridges)
        judged = FIT if options.protocol == "lcross" else TEST
        scores = [score_rows(*held[p], solution.weight, fit_mean - mean_y) for p in (VALIDATION, judged)]
        means = self._mean, mean_y
        return _assemble(solution, means, scores, options, self._centre, len(rows[FIT]), token_centre)


def fit_sums(
    parts: SumsByPart,
    options: MapOptions,
    centre: Centre,
    token_centre: TokenCentre | None = None,
    spectrum: Spectrum | None = None,
) -> AffineMap:
    """`fit_rows` from the sums of its parts alone, so for any number of rows; always the primal side.

    Without a ridge the sums square the condition number: see `solver.pseudo_inverse_from_sums` for the
    cut-off, and the map's warnings for what it cost.

    Args:
        parts: the sums of "fit", "validation" and "test"; the latter two are needed for a choice of the ridge
            and for figures alone.
        options: how it is fitted.
        centre: what the rows are centred about; with "token" the sums are about the tokens' means already.
        token_centre: what is known of those.
        spectrum: that of the source's sums over the fit rows, where it is known.

    Raises:
        ValueError: for parts without rows.
    """
    fit, validation, test = parts[FIT], parts.get(VALIDATION), parts.get(TEST)
    if fit.n == 0:
        raise ValueError("no rows to fit on")
    means = fit.mean_x, fit.mean_y
    if not centre:
        means = np.zeros(len(fit.mean_x)), np.zeros(len(fit.mean_y))
    xx, xy, _ = fit.around(*means)
    if options.has_ridge:
        held = None
        if validation is not None and validation.n:
            held_xx, held_xy, held_yy = validation.around(*means)
            held = held_xx, held_xy, float(held_yy.sum())
        spectrum = spectrum or Spectrum.of(xx)
        solution = ridge_from_sums(spectrum, xy, held, check_ridges(options.ridges))
    else:
        solution = pseudo_inverse_from_sums(xx, xy, fit.n - bool(centre))
    judged = (None, fit) if options.protocol == "lcross" else (validation, test)
    scores = [score_sums(part, solution.weight, means, fit.mean_y) for part in judged]
    return _assemble(solution, means, scores, options, centre, fit.n, token_centre)


def _assemble(
    solution: Solution,
    means: tuple[np.ndarray, np.ndarray],
    scores: list[Goodness | None],
    options: MapOptions,
    centre: Centre,
    n_fit: int,
    token_centre: TokenCentre | None,
) -> AffineMap:
    """The map as it is stored; `scores` are those of the validation rows and of those that judge it."""
    validation, judged = scores
    warnings = list(solution.warnings)
    held_out = options.protocol != "lcross"
    if not held_out:
        warnings.append("R2 is in-sample: every row was fitted on")
    elif judged is not None and judged.r2 < 0:
        warnings.append(f"R2 on held-out rows is {judged.r2:.2f}: worse than predicting the mean")
    if token_centre is not None:
        means = token_centre.mean_x, token_centre.mean_y
    bias = means[1] - means[0] @ solution.weight if centre else np.zeros(solution.weight.shape[1])
    mapping = AffineMap(
        weight=solution.weight.astype(np.float32),
        bias=bias.astype(np.float32),
        protocol=options.protocol,
        side=solution.side,
        n_fit=n_fit,
        rank=solution.rank,
        condition_number=solution.condition_number,
        ridge=solution.ridge,
        r2_validation=validation.r2 if validation else None,
        r2_test=judged.r2 if judged else None,
        r2_test_column=judged.r2_column if judged else None,
        mse_test=judged.mse if judged else None,
        held_out=held_out,
        warnings=warnings,
        centre=centre,
        regularise="ridge" if options.has_ridge else "none",
    )
    if token_centre is None:
        return mapping
    warnings = [*token_centre.warnings, *warnings]
    return replace(mapping, n_effective=token_centre.n_effective, warnings=warnings)
