from itertools import product
from math import comb, isnan, sqrt

import numpy as np
import pytest

from contrans_dist.benchmarks.statistics import (
    balanced_mean_interval,
    mcnemar,
    mean_interval,
    ratio_interval,
    wilcoxon,
    wilson,
)

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (120, 200), (1, 1), (199, 1200)])
def test_wilson_is_the_formula(hits: int, n: int) -> None:
    share = hits / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    low, high = wilson(hits, n)
    assert low == pytest.approx(max(centre - half, 0.0), abs=1e-9)
    assert high == pytest.approx(min(centre + half, 1.0), abs=1e-9)


def test_wilson_refuses_what_is_no_proportion() -> None:
    for hits, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="0 <= hits <= n"):
            wilson(hits, n)


def test_mcnemar_is_the_binomial_sum_over_the_items_that_differ() -> None:
    a = [True] * 12 + [False] * 3 + [True] * 40 + [False] * 20
    b = [False] * 12 + [True] * 3 + [True] * 40 + [False] * 20
    tail = sum(comb(15, k) for k in range(12, 16)) / 2**15
    assert mcnemar(a, b) == pytest.approx(2 * tail)
    assert mcnemar(b, a) == pytest.approx(2 * tail)


def test_mcnemar_without_a_difference() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="same items"):
        mcnemar([], [])


def test_mean_interval_agrees_with_the_normal_one_on_much_data() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    low, high = mean_interval(values)
    half = Z95 * values.std() / sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval(values) == (low, high)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = mean_interval(rng.exponential(1.0, size=60))
        covered += low <= 1.0 <= high
    assert 170 <= covered <= 199


def test_mean_interval_at_its_edges() -> None:
    assert mean_interval([2.5] * 10) == (2.5, 2.5)
    assert all(isnan(end) for end in mean_interval([1.0]))
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(bad)


def test_balanced_mean_interval_resamples_each_stratum_alone() -> None:
    """The variance of the mean of two means is a quarter of the sum of their variances."""
    rng = np.random.default_rng(4)
    few, many = rng.normal(1, 1, 400), rng.normal(5, 3, 3000)
    low, high = balanced_mean_interval([few, many])
    middle = (few.mean() + many.mean()) / 2
    half = Z95 * sqrt(few.var() / len(few) + many.var() / len(many)) / 2
    assert low == pytest.approx(middle - half, abs=0.1 * half)
    assert high == pytest.approx(middle + half, abs=0.1 * half)
    assert balanced_mean_interval([few, many]) == (low, high)
    assert balanced_mean_interval([many]) == mean_interval(many)
    assert all(isnan(end) for end in balanced_mean_interval([[1.0, 2.0], [1.0]]))
    for bad in ([], [[1.0], []], [[float("inf"), 1.0]]):
        with pytest.raises(ValueError, match="finite"):
            balanced_mean_interval(bad)


def test_ratio_interval_agrees_with_the_delta_method_on_much_data() -> None:
    rng = np.random.default_rng(5)
    below = rng.integers(20, 200, 3000).astype(float)
    above = below * rng.normal(3, 0.5, 3000)
    ratio = above.sum() / below.sum()
    half = Z95 * (above - ratio * below).std() / below.mean() / sqrt(3000)
    low, high = ratio_interval(above, below)
    assert low == pytest.approx(ratio - half, abs=0.1 * half)
    assert high == pytest.approx(ratio + half, abs=0.1 * half)
    assert all(isnan(end) for end in ratio_interval([1.0], [2.0]))
    for bad in (([1.0], [1.0, 2.0]), ([], []), ([1.0, 2.0], [1.0, 0.0]), ([float("nan"), 1.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="expected"):
            ratio_interval(*bad)


def test_wilcoxon_counts_all_signs_of_the_ranks() -> None:
    """Exact for few items: of all signs of the ranks, those with a rank sum as far from the middle."""
    a = [3.1, 2.0, 5.5, 4.0, 9.0, 1.0, 2.5, 7.0]
    b = [2.0, 2.3, 3.0, 4.0, 5.0, 1.9, 0.4, 2.2]
    differences = [x - y for x, y in zip(a, b, strict=True) if x != y]
    order = sorted(range(len(differences)), key=lambda i: abs(differences[i]))
    ranks = {i: rank for rank, i in enumerate(order, 1)}
    middle = sum(ranks.values()) / 2
    rank_sum = sum(ranks[i] for i, d in enumerate(differences) if d > 0)
    sums = [
        sum(r for r, s in zip(ranks.values(), signs, strict=True) if s) for signs in product((0, 1), repeat=7)
    ]
    p = np.mean([abs(total - middle) >= abs(rank_sum - middle) for total in sums])
    assert wilcoxon(a, b) == pytest.approx(p)
    assert wilcoxon(b, a) == pytest.approx(p)


def test_wilcoxon_at_its_edges() -> None:
    assert wilcoxon([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert wilcoxon(np.arange(60.0), np.arange(60.0) - 0.5) < 1e-6
    with pytest.raises(ValueError, match="same items"):
        wilcoxon([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="same items"):
        wilcoxon([], [])
    with pytest.raises(ValueError, match="finite"):
        wilcoxon([1.0, float("nan")], [1.0, 2.0])
