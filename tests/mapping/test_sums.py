"""Sums over rows against the same sums in extended precision, however the rows are cut and merged."""

import copy
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrans_dist.mapping.sums import Sums, merge

D_SOURCE, D_TARGET = 7, 5


def outlier_rows(n: int, d: int, seed: int) -> np.ndarray:
    """Rows like a residual stream's: one column 100 times the rest, and means far from zero."""
    rng = np.random.default_rng(seed)
    scale = np.ones(d)
    scale[d // 2] = 100.0
    return (rng.standard_normal((n, d)) * scale + rng.standard_normal(d) * scale * 30).astype(np.float32)


def exact_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The centred sums written out in extended precision."""
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return x.T @ x, x.T @ y, (y * y).sum(axis=0)


def assert_same(actual: Sums, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray, tolerance: float) -> None:
    # An entry's own size may be anything down to zero; its columns' lengths are what rounding is relative to.
    long_x, long_y = np.sqrt(np.diag(xx)), np.sqrt(yy)
    assert np.max(np.abs(actual.sxx - xx) / np.outer(long_x, long_x)) <= tolerance
    assert np.max(np.abs(actual.sxy - xy) / np.outer(long_x, long_y)) <= tolerance
    assert np.max(np.abs(actual.syy - yy) / yy) <= tolerance


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(3, 200), seed=st.integers(0, 10_000))
def test_any_split_and_order_gives_the_same_sums(data: st.DataObject, n: int, seed: int) -> None:
    x, y = outlier_rows(n, D_SOURCE, seed), outlier_rows(n, D_TARGET, seed + 1)
    order = np.random.default_rng(seed).permutation(n)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=9)))
    pieces = [Sums.of(x[rows], y[rows], chunk=1 + seed % 50) for rows in np.split(order, cuts)]
    in_a_row = reduce(merge, pieces)
    truth = exact_sums(x, y)
    for merged in (in_a_row, reduce(merge, pieces[::-1]), Sums.of(x, y)):
        assert merged.n == n
        assert_same(merged, *truth, tolerance=1e-12)
        np.testing.assert_allclose(
            merged.mean_x, x.astype(np.longdouble).mean(axis=0).astype(float), rtol=1e-12
        )
        np.testing.assert_allclose(
            merged.mean_y, y.astype(np.longdouble).mean(axis=0).astype(float), rtol=1e-12
        )


def test_no_cancellation_where_the_naive_sums_lose_everything() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5000, 4)) + 1e6
    y = rng.standard_normal((5000, 3)) - 1e6
    truth = exact_sums(x, y)
    naive = x.T @ x - len(x) * np.outer(x.mean(axis=0), x.mean(axis=0))
    assert np.max(np.abs(naive - truth[0])) / truth[0][0, 0] > 1e-8
    assert_same(Sums.of(x, y, chunk=128), *truth, tolerance=1e-10)


def test_uncentred_sums_come_back() -> None:
    x, y = outlier_rows(50, D_SOURCE, 1), outlier_rows(50, D_TARGET, 2)
    sums = Sums.of(x, y)
    xx, (xy, yy) = sums.source_around(0.0), sums.around(0.0, 0.0)
    x, y = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(xx, x.T @ x, rtol=1e-11)
    np.testing.assert_allclose(xy, x.T @ y, rtol=1e-11)
    np.testing.assert_allclose(yy, (y * y).sum(axis=0), rtol=1e-11)


def test_sums_about_any_point() -> None:
    x, y = outlier_rows(40, D_SOURCE, 3).astype(float), outlier_rows(40, D_TARGET, 4).astype(float)
    at_x, at_y = np.linspace(-3, 3, D_SOURCE), np.linspace(2, 8, D_TARGET)
    sums = Sums.of(x, y)
    xx, (xy, yy) = sums.source_around(at_x), sums.around(at_x, at_y)
    np.testing.assert_allclose(xx, (x - at_x).T @ (x - at_x), rtol=1e-11)
    np.testing.assert_allclose(xy, (x - at_x).T @ (y - at_y), rtol=1e-11)
    np.testing.assert_allclose(yy, ((y - at_y) ** 2).sum(axis=0), rtol=1e-11)


def test_merging_leaves_its_parts_alone_and_nothing_is_neutral() -> None:
    x, y = outlier_rows(20, D_SOURCE, 5), outlier_rows(20, D_TARGET, 6)
    part, other = Sums.of(x[:12], y[:12]), Sums.of(x[12:], y[12:])
    before = copy.deepcopy(part.__dict__)
    merge(part, other)
    merge(other, part)
    empty = Sums(D_SOURCE, D_TARGET)
    for merged in (part, merge(part, empty), merge(empty, part)):
        for name, value in merged.__dict__.items():
            np.testing.assert_array_equal(value, before[name])
    assert merge(empty, empty).n == 0


def test_cross_sums_alone_are_those_of_the_whole() -> None:
    x, y = outlier_rows(60, D_SOURCE, 7), outlier_rows(60, D_TARGET, 8)
    pieces = [Sums.of(x[rows], y[rows], chunk=9, cross_only=True) for rows in np.split(np.arange(60), [20])]
    alone, whole = merge(*pieces), Sums.of(x, y)
    assert alone.sxx is None
    for name in ("sxy", "syy", "mean_x", "mean_y"):
        np.testing.assert_allclose(getattr(alone, name), getattr(whole, name), rtol=1e-10)


def test_rows_are_left_as_they_were() -> None:
    x, y = np.ones((4, 2)) * 3, np.ones((4, 3))
    Sums.of(x, y)
    assert (x == 3).all()
    assert (y == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(bad: float) -> None:
    x = np.ones((6, 3), dtype=np.float32)
    x[4, 1] = bad
    with pytest.raises(ValueError, match=r"source: row 4 holds NaN or infinity"):
        Sums.of(x, np.ones((6, 2)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="source has 3 rows, target 4"):
        Sums.of(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="cannot merge"):
        merge(Sums(2, 3), Sums(3, 2))
    with pytest.raises(ValueError, match="expected an array"):
        Sums.of(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="real numbers"):
        Sums.of(np.ones((2, 2), dtype=complex), np.ones((2, 2)))


def test_adding_chunks_by_hand_is_the_same_as_all_at_once() -> None:
    x, y = outlier_rows(33, D_SOURCE, 9), outlier_rows(33, D_TARGET, 10)
    sums = Sums(D_SOURCE, D_TARGET)
    for start in range(0, 33, 4):
        sums.add(x[start : start + 4], y[start : start + 4])
    sums.add(x[:0], y[:0])
    assert_same(sums, *exact_sums(x, y), tolerance=1e-12)
