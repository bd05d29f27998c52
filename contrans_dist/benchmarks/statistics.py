"""Intervals and tests for what the evaluations count and average, by scipy."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import scipy  # its `stats` loads when first used: an actor that only scores never pays for it

Values = Sequence[float] | np.ndarray


@cache  # scipy takes half a millisecond, and a page has thousands
def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (low, high) for `hits` of `n`. ValueError unless 0 <= hits <= n, n > 0."""
    if not (n > 0 and 0 <= hits <= n):
        raise ValueError(f"expected 0 <= hits <= n and n > 0, got {hits} of {n}")
    interval = scipy.stats.binomtest(int(hits), int(n)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a_hits: Sequence[bool] | np.ndarray, b_hits: Sequence[bool] | np.ndarray) -> float:
    """Two-sided p-value of McNemar's exact test: the same items under conditions a and b, hit or not.

    1.0 when no item differs. ValueError when the lengths differ or there are no items.
    """
    a, b = (hits != 0 for hits in _same_items(a_hits, b_hits))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def wilcoxon(a: Values, b: Values) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test: the same items' values under conditions a and b.

    Items that do not differ are left out; 1.0 when none does. ValueError when the lengths differ, there are
    no items, or a value is not finite.
    """
    left, right = _same_items(a, b)
    if (left == right).all():
        return 1.0
    return float(scipy.stats.wilcoxon(left, right, zero_method="wilcox").pvalue)


def mean_interval(values: Values) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high), 95 %, of the mean of `values` [n]; the same for the same.

    (nan, nan) for a single value, which says nothing about spread. ValueError for no values or NaN.
    """
    return balanced_mean_interval([values])


def balanced_mean_interval(strata: Sequence[Values]) -> tuple[float, float]:
    """`mean_interval` of the mean of the strata's means, each stratum resampled on its own.

    (nan, nan) when a stratum holds a single value. ValueError for no strata, an empty one, or NaN.
    """

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    return _bootstrap([_finite(values) for values in strata], statistic)


def ratio_interval(numerators: Values, denominators: Values) -> tuple[float, float]:
    """Percentile bootstrap interval, 95 %, of sum(numerators) / sum(denominators), items [n] resampled whole.

    (nan, nan) for a single item. ValueError when the lengths differ, there are no items, a value is not
    finite, or a denominator is not positive.
    """
    above, below = _same_items(numerators, denominators)
    if not (below > 0).all():
        raise ValueError("expected positive denominators")

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.sum(axis=axis) / b.sum(axis=axis)

    return _bootstrap([above, below], statistic, paired=True)


def _bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], paired: bool = False
) -> tuple[float, float]:
    if not samples:
        raise ValueError("expected at least one list of finite numbers")
    if min(map(len, samples)) == 1:
        return float("nan"), float("nan")
    interval = scipy.stats.bootstrap(
        samples,
        statistic,
        n_resamples=2000,
        method="percentile",
        vectorized=True,
        batch=max(1, 2_000_000 // max(map(len, samples))),
        rng=np.random.default_rng(0),
        paired=paired,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _finite(values: Values | Sequence[bool]) -> np.ndarray:
    """As float64 [n]. ValueError for none, other dimensions, or NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("expected a non-empty list of finite numbers")
    return array


def _same_items(a: Values | Sequence[bool], b: Values | Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"expected the same items on both sides, got {len(a)} and {len(b)}")
    return _finite(a), _finite(b)
