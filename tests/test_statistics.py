from math import comb, isnan, sqrt

import numpy as np
import pytest

from contrans_dist.statistics import mcnemar, mean_interval, paired_difference, wilson

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
    low, high = mean_interval(values, seed=1)
    half = Z95 * values.std() / sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval(values, seed=1) == (low, high)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        low, high = mean_interval(rng.exponential(1.0, size=60), seed=seed, resamples=400)
        covered += low <= 1.0 <= high
    assert 170 <= covered <= 199


def test_mean_interval_at_its_edges() -> None:
    assert mean_interval([2.5] * 10) == (2.5, 2.5)
    assert all(isnan(end) for end in mean_interval([1.0]))
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(bad)


def test_paired_difference_sees_what_the_items_share() -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(0, 50, size=300)
    difference, low, high = paired_difference(items + 1 + rng.normal(0, 1, 300), items)
    assert difference == pytest.approx(1.0, abs=0.2)
    assert 0.7 < low < difference < high < 1.3
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 2.0])
