"""Intervals and tests for what the evaluations count and average."""

from collections.abc import Sequence

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
    if array.size == 1:
        return float("nan"), float("nan")
    result = scipy.stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, 2_000_000 // array.size),
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b over the same items, with its bootstrap interval: (difference, low, high).

    ValueError when the lengths differ, there are no items, or a value is not finite.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(
            f"expected the same items under both conditions, got shapes {left.shape} and {right.shape}"
        )
    difference = left - right
    low, high = mean_interval(difference, level, seed)
    return float(difference.mean()), low, high
