"""A map from rows, or from the sums of rows: what is centred, which solver takes it, and what it is worth."""

from collections.abc import Callable, Sequence

import numpy as np

from contrans_dist.config.map_options import Centre, MapOptions
from contrans_dist.mapping.goodness import Goodness, score_rows, score_sums
from contrans_dist.mapping.heldout import FIT, PARTS, TEST, VALIDATION, parts_of, shuffle_order
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.solver import PseudoInverse, PseudoInverseOfSums, Ridge, Solution
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
        options: How it is fitted.
        split: Str [n] of `split_of`; without it `default_split` is taken, which knows of no identical texts.
        tokens: [n], a label for the token that each row was taken from.

    Raises:
        ValueError: For rows that do not match, NaN or infinity, or a part of the split without rows.
    """
    return SourceRows(source, options, split, tokens).fit(target)


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
        self._sums: SourceSums | None = None
        if self._from_sums:
            return
        self._mean = np.zeros(self._x.shape[1])
        if self._centre:
            self._mean = self._x[self._parts == FIT].mean(axis=0, dtype=np.float64)
        self._of_part = {part: self._x[self._parts == part] - self._mean for part in PARTS}
        fit = self._of_part[FIT]
        self._solver: Ridge | PseudoInverse
        if options.has_ridge:
            self._held = fit @ self._of_part[VALIDATION].T
            self._solver = Ridge(fit @ fit.T, self._held, rows=fit)
        else:
            self._solver = PseudoInverse(fit)

    def _about_tokens(self, tokens: np.ndarray) -> None:
        group, n_groups = token_groups(tokens, self._parts)
        self._n_effective, self._lost = effective_rows(group, self._parts)
        fit = self._parts == FIT
        sums = TokenSums.of(self._x, group, n_groups, fit)
        self._x, self._overall = sums.about(self._x, group), sums.overall()
        self._parts = np.where(group >= 0, self._parts, "")
        self._by_token = group, n_groups, fit

    def fit(self, target: np.ndarray) -> AffineMap:
        """The map to target rows [n, d_t]."""
        return self._fit(target, self._options.ridges)

    def control(self, target: np.ndarray, mapping: AffineMap, seed: int = 0) -> AffineMap:
        """The shuffled-map control of a map to these rows: the fit rows permuted (seeded)."""
        # Source rows in an order against the target's are the source's as they are, whose factors serve
        # again, against the target's in the opposite order.
        order = np.argsort(shuffle_order(self._parts == FIT, seed))
        return self._fit(target, ridge_of(mapping), order)

    def _fit(
        self, target: np.ndarray, ridges: Sequence[float] | None, order: np.ndarray | None = None
    ) -> AffineMap:
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
            return self._solve_rows(y, ridges, token_centre)
        parts: SumsByPart = {}
        for part in PARTS:
            rows = self._parts == part
            parts[part] = Sums.of(self._x[rows], y[rows], cross_only=self._sums is not None)
        if self._sums is None:
            self._sums = SourceSums(parts, self._options, self._centre)
        return self._sums.fit(parts, ridges, token_centre)

    def _solve_rows(
        self, y: np.ndarray, ridges: Sequence[float] | None, token_centre: TokenCentre | None
    ) -> AffineMap:
        rows = {part: y[self._parts == part].astype(np.float64) for part in PARTS}
        fit_mean = rows[FIT].mean(axis=0)
        mean_y = fit_mean if self._centre else np.zeros(y.shape[1])
        about = {part: rows[part] - mean_y for part in PARTS}
        x = self._of_part
        if isinstance(self._solver, Ridge):
            held = self._held @ about[VALIDATION], float(np.sum(about[VALIDATION] ** 2))
            solution = self._solver.solve(about[FIT], held, ridges)
        else:
            solution = self._solver.solve(about[FIT])

        def score(part: str) -> Goodness | None:
            return score_rows(x[part], about[part], solution.weight, fit_mean - mean_y)

        means = self._mean, mean_y
        return _assemble(solution, means, score, self._options, self._centre, len(rows[FIT]), token_centre)


class SourceSums:
    """The source's side of fits from sums: X^T X of every part, factored once, for the sums of any target.

    For any number of rows; always the primal side. Without a ridge the sums square the condition number: see
    `solver.PseudoInverseOfSums` for the cut-off, and the map's warnings for what it cost.

    Args:
        parts: The sums of "fit", "validation" and "test" rows; the latter two are needed for a choice of the
            ridge and for figures alone.
        options: How it is fitted.
        centre: What the rows are centred about; with "token" the sums are about the tokens' means already.

    Raises:
        ValueError: Without rows to fit on.
    """

    def __init__(self, parts: SumsByPart, options: MapOptions, centre: Centre) -> None:
        fit = parts[FIT]
        if fit.n == 0:
            raise ValueError("no rows to fit on")
        self._options, self._centre = options, centre
        self._mean = fit.mean_x if centre else np.zeros(len(fit.mean_x))
        self._parts = {part: sums for part, sums in parts.items() if sums.n}
        self._solver: Ridge | PseudoInverseOfSums
        if options.has_ridge:
            held = self._xx(VALIDATION) if VALIDATION in self._parts else None
            self._solver = Ridge(self._xx(FIT), held)
        else:
            self._solver = PseudoInverseOfSums(self._xx(FIT), fit.n - bool(centre))

    def _xx(self, part: str) -> np.ndarray:
        return self._parts[part].source_around(self._mean)

    def fit(
        self,
        parts: SumsByPart,
        ridges: Sequence[float] | None = None,
        token_centre: TokenCentre | None = None,
    ) -> AffineMap:
        """The map to the target that these sums are over.

        Args:
            parts: The sums of each part over the same source rows, the source's own needed no more.
            ridges: Those that are tried; None is `solver.RIDGES`.
            token_centre: What is known of the tokens' means, where the sums are about those.
        """
        fit = parts[FIT]
        means = self._mean, fit.mean_y if self._centre else np.zeros(len(fit.mean_y))
        xy, _ = fit.around(*means)
        if isinstance(self._solver, Ridge):
            held = None
            if VALIDATION in self._parts and VALIDATION in parts:
                held_xy, held_yy = parts[VALIDATION].around(*means)
                held = held_xy, float(held_yy.sum())
            solution = self._solver.solve(xy, held, ridges)
        else:
            solution = self._solver.solve(xy)

        def score(part: str) -> Goodness | None:
            if part not in self._parts or part not in parts:
                return None
            return score_sums(parts[part], self._xx(part), solution.weight, means, fit.mean_y)

        return _assemble(solution, means, score, self._options, self._centre, fit.n, token_centre)


def ridge_of(mapping: AffineMap) -> tuple[float, ...] | None:
    """The ridges that the control of a map tries: the map's own alone.

    Choosing a ridge anew would find that nothing can be predicted, take the largest, and leave a control of
    nearly nothing, which controls for nothing.
    """
    return None if mapping.ridge is None else (mapping.ridge,)


def _assemble(
    solution: Solution,
    means: tuple[np.ndarray, np.ndarray],
    score: Callable[[str], Goodness | None],
    options: MapOptions,
    centre: Centre,
    n_fit: int,
    token_centre: TokenCentre | None,
) -> AffineMap:
    """The map as it is stored; `score` is how well it predicts a part of the rows."""
    held_out = options.protocol != "lcross"
    validation, judged = score(VALIDATION), score(TEST if held_out else FIT)
    warnings = [*(token_centre.warnings if token_centre else ()), *solution.warnings]
    if not held_out:
        warnings.append("R2 is in-sample: every row was fitted on")
    elif judged is not None and judged.r2 < 0:
        warnings.append(f"R2 on held-out rows is {judged.r2:.2f}: worse than predicting the mean")
    if token_centre is not None:
        means = token_centre.mean_x, token_centre.mean_y
    bias = means[1] - means[0] @ solution.weight if centre else np.zeros(solution.weight.shape[1])
    return AffineMap(
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
        n_effective=token_centre.n_effective if token_centre else None,
    )
