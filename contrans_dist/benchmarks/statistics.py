"""Intervals and tests for what the evaluations count and average."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy  # its `stats` loads when first used: an actor that only scores never pays for it


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) for `hits` of `n`. ValueError unless 0 <= hits <= n and n > 0."""
    if not (n > 0 and 0 <= hits <= n):
        raise ValueError(f"expected 0 <= hits <= n and n > 0, got {hits} of {n}")
    interval = scipy.stats.binomtest(int(hits), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a_hits: Sequence[bool] | np.ndarray, b_hits: Sequence[bool] | np.ndarray) -> float:
    """Two-sided p-value of McNemar's exact test: the same items under conditions a and b, hit or not.

    1.0 when no item differs. ValueError when the lengths differ or there are no items.
    """
    a, b = np.asarray(a_hits, dtype=bool), np.asarray(b_hits, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"expected the same items under both conditions, got shapes {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def mean_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values` [n], fixed by the seed.

    (nan, nan) for a single value, which says nothing about spread. ValueError for no values or NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("expected a non-empty list of finite numbers")
    return _bootstrap((array,), np.mean, level, seed, resamples)


def balanced_mean_interval(
    strata: Sequence[Sequence[float] | np.ndarray], level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of the strata's means, each stratum resampled on its own.

    (nan, nan) when a stratum holds a single value. ValueError for no strata, an empty one, or NaN.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in strata]
    if not arrays or any(a.ndim != 1 or a.size == 0 or not np.isfinite(a).all() for a in arrays):
        raise ValueError("expected non-empty lists of finite numbers")

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    return _bootstrap(tuple(arrays), statistic, level, seed, resamples)


def ratio_interval(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(numerators) / sum(denominators), items [n] resampled whole.

    (nan, nan) for a single item. ValueError when the lengths differ, there are no items, a value is not
    finite, or a denominator is not positive.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape or above.size == 0:
        raise ValueError(f"expected one denominator for each item, got shapes {above.shape}, {below.shape}")
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below > 0).all()):
        raise ValueError("expected finite numbers and positive denominators")

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.sum(axis=axis) / b.sum(axis=axis)

    return _bootstrap((above, below), statistic, level, seed, resamples, paired=True)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    level: float,
    seed: int,
    resamples: int,
    paired: bool = False,
) -> tuple[float, float]:
    if min(map(len, samples)) == 1:
        return float("nan"), float("nan")
    result = scipy.stats.bootstrap(
        samples,
        statistic,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        paired=paired,
        vectorized=True,
        batch=max(1, 2_000_000 // max(map(len, samples))),
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def wilcoxon(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test: the same items' values under conditions a and b.

    Items that do not differ are left out; 1.0 when none does. ValueError when the lengths differ, there are
    no items, or a value is not finite.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or left.size == 0:
        raise ValueError(
            f"expected the same items under both conditions, got shapes {left.shape} and {right.shape}"
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("expected finite numbers")
    if (left == right).all():
        return 1.0
    return float(scipy.stats.wilcoxon(left, right, zero_method="wilcox").pvalue)
