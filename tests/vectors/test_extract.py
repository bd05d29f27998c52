from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrans_dist.vectors.extract import concept_vector, one_vs_rest


def rows(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + 2


def test_mean_is_equation_1_written_out() -> None:
    positive, negative = rows(9, 6, 0), rows(9, 6, 1)
    total = np.zeros(6)
    for i in range(9):
        for j in range(6):
            total[j] += (float(positive[i, j]) - float(negative[i, j])) / 9
    vector = concept_vector(positive, negative)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, total, rtol=1e-6)


def test_mean_does_not_mind_pairing_or_order() -> None:
    positive, negative = rows(20, 5, 2), rows(20, 5, 3)
    shuffled = negative[np.random.default_rng(0).permutation(20)]
    paired = concept_vector(positive, negative, paired=True)
    np.testing.assert_allclose(concept_vector(positive, shuffled, paired=False), paired, rtol=1e-6)


def test_mean_of_unequal_sides() -> None:
    positive, negative = rows(7, 5, 4), rows(11, 5, 5)
    expected = positive.astype(float).sum(axis=0) / 7 - negative.astype(float).sum(axis=0) / 11
    np.testing.assert_allclose(concept_vector(positive, negative), expected, rtol=1e-6)


def test_mean_survives_a_large_common_offset() -> None:
    positive, negative = np.full((1000, 1), 20_000.25, np.float32), np.full((1000, 1), 20_000.0, np.float32)
    assert concept_vector(positive, negative)[0] == 0.25


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30)])
def test_pca_is_the_first_right_singular_vector_of_the_centred_differences(n: int, d: int) -> None:
    positive, negative = rows(n, d, 6), rows(n, d, 7)
    differences = positive.astype(float) - negative.astype(float)
    first = np.linalg.svd(differences - differences.mean(axis=0))[2][0]
    vector = concept_vector(positive, negative, method="pca")
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    assert abs(vector @ first) == pytest.approx(1.0, abs=1e-6)
    assert vector @ differences.mean(axis=0) > 0


def test_pca_finds_a_planted_direction_with_its_sign() -> None:
    rng = np.random.default_rng(8)
    direction = rng.standard_normal(40)
    direction /= np.linalg.norm(direction)
    strength = rng.uniform(1, 9, size=60)
    negative = rng.standard_normal((60, 40)) * 0.05
    positive = negative + strength[:, None] * direction + rng.standard_normal((60, 40)) * 0.05
    assert concept_vector(positive, negative, method="pca") @ direction > 0.999
    assert concept_vector(negative, positive, method="pca") @ direction < -0.999


def test_what_cannot_give_a_vector_is_refused() -> None:
    good = rows(4, 3, 9)
    with pytest.raises(ValueError, match="negative: no rows"):
        concept_vector(good, good[:0])
    with pytest.raises(ValueError, match="positive rows have 3 columns, negative 2"):
        concept_vector(good, good[:, :2])
    bad = good.copy()
    bad[2, 0] = np.nan
    with pytest.raises(ValueError, match="positive: row 2"):
        concept_vector(bad, good)
    with pytest.raises(ValueError, match="equal counts: 4 positive, 3 negative"):
        concept_vector(good, good[:3], paired=True)
    with pytest.raises(ValueError, match="equal counts"):
        concept_vector(good, good[:3], method="pca")
    with pytest.raises(ValueError, match="contradicts"):
        concept_vector(good, rows(4, 3, 10), method="pca", paired=False)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        concept_vector(good[:1], good[1:2], method="pca")
    with pytest.raises(ValueError, match="same vector"):
        concept_vector(good + 1.5, good, method="pca")
    with pytest.raises(ValueError, match="'median': expected one of mean, pca"):
        concept_vector(good, good, method="median")


def test_one_vs_rest_is_balanced_and_repeatable() -> None:
    labels = ["fear"] * 20 + ["joy"] * 30 + ["anger"] * 30 + ["disgust"] * 3 + [None] * 10
    positive, negative = one_vs_rest(labels, "fear", seed=3)
    assert positive.tolist() == list(range(20))
    assert len(negative) == len(set(negative.tolist())) == 20
    counts = Counter(labels[row] for row in negative)
    assert counts["disgust"] == 3
    assert sorted([counts["joy"], counts["anger"]]) == [8, 9]
    np.testing.assert_array_equal(one_vs_rest(labels, "fear", seed=3)[1], negative)
    assert one_vs_rest(labels, "fear", seed=4)[1].tolist() != negative.tolist()


def test_one_vs_rest_mixes_the_order_of_the_others() -> None:
    labels = ["a"] * 40 + ["b"] * 40 + ["c"] * 40
    first_half = Counter(labels[row] for row in one_vs_rest(labels, "a", seed=0)[1][:20])
    assert min(first_half["b"], first_half["c"]) >= 4


@given(counts=st.lists(st.integers(0, 12), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_one_vs_rest_takes_as_evenly_as_the_counts_allow(counts: list[int], seed: int) -> None:
    labels = [f"c{i}" for i, count in enumerate(counts) for _ in range(count)]
    if counts[0] == 0 or sum(counts[1:]) == 0:
        with pytest.raises(ValueError, match=r"no row is labelled|nothing to contrast"):
            one_vs_rest(labels, "c0", seed)
        return
    positive, negative = one_vs_rest(labels, "c0", seed)
    assert len(positive) == counts[0]
    assert len(set(negative.tolist())) == len(negative) == min(counts[0], sum(counts[1:]))
    taken = Counter(labels[row] for row in negative)
    # Nobody gives two more than somebody who still had a row to give.
    for i, count in enumerate(counts[1:], start=1):
        if taken[f"c{i}"] < count:
            assert max(taken.values()) <= taken[f"c{i}"] + 1
