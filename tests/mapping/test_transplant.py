import numpy as np
import pytest

from contrans_dist.mapping.fit import fit_rows
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.transplant import cosine, random_like, transplant


def planted(seed: int = 0) -> tuple[AffineMap, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((6, 9))
    source = rng.standard_normal((200, 6)) + 4
    return fit_rows(source, source @ truth + 50), truth


def test_the_linear_part_alone_moves_a_vector() -> None:
    mapping, truth = planted()
    vector = np.arange(6.0)
    moved = transplant(vector, mapping)
    assert moved.dtype == np.float32
    assert np.abs(mapping.bias).min() > 30
    np.testing.assert_allclose(moved, vector @ truth, rtol=1e-4, atol=1e-4)


def test_a_difference_of_points_moves_as_the_points_do() -> None:
    mapping, _ = planted(1)
    points = np.random.default_rng(2).standard_normal((2, 6))
    ends = points @ mapping.weight + mapping.bias
    np.testing.assert_allclose(transplant(points[0] - points[1], mapping), ends[0] - ends[1], atol=1e-4)


def test_a_bare_weight_will_do() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(transplant(np.array([0.0, 1.0, 0.0]), weight), weight[1])


def test_match_keeps_the_share_of_the_residual_norm() -> None:
    mapping, _ = planted(3)
    vector = np.random.default_rng(4).standard_normal(6)
    moved = transplant(vector, mapping, norm="match", source_norm=5.0, target_norm=80.0)
    assert np.linalg.norm(moved) / 80.0 == pytest.approx(np.linalg.norm(vector) / 5.0, rel=1e-6)
    assert cosine(moved, transplant(vector, mapping)) == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_moved_is_refused() -> None:
    weight = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="2 numbers does not fit a map of shape"):
        transplant(np.ones(2), weight)
    with pytest.raises(ValueError, match="NaN"):
        transplant(np.array([1.0, np.nan, 0.0]), weight)
    with pytest.raises(ValueError, match="median residual norms"):
        transplant(np.ones(3), weight, norm="match", source_norm=1.0)
    with pytest.raises(ValueError, match="median residual norms"):
        transplant(np.ones(3), weight, norm="match", source_norm=1.0, target_norm=float("nan"))
    with pytest.raises(ValueError, match="to zero"):
        transplant(np.ones(3), np.zeros((3, 4)), norm="match", source_norm=1.0, target_norm=1.0)
    with pytest.raises(ValueError, match="expected one of keep, match"):
        transplant(np.ones(3), weight, norm="unit")
    with pytest.raises(ValueError, match="expected a vector"):
        transplant(np.ones((1, 1, 3)), weight)


def test_random_directions_have_the_norm_and_nothing_else() -> None:
    vector = np.random.default_rng(5).standard_normal(400).astype(np.float32) * 7
    draws = [random_like(vector, seed) for seed in range(30)]
    for draw in draws:
        assert draw.dtype == np.float32
        assert np.linalg.norm(draw) == pytest.approx(np.linalg.norm(vector), rel=1e-6)
        assert abs(cosine(draw, vector)) < 0.25
    assert abs(np.mean([cosine(draw, vector) for draw in draws])) < 0.05
    np.testing.assert_array_equal(random_like(vector, 3), draws[3])
    assert cosine(draws[0], draws[1]) < 0.25


def test_cosine() -> None:
    assert cosine(np.array([1.0, 0.0]), np.array([3.0, 3.0])) == pytest.approx(np.sqrt(0.5))
    assert cosine(np.array([2.0, 1.0]), np.array([-4.0, -2.0])) == pytest.approx(-1.0)
    assert cosine(np.zeros(2), np.ones(2)) == 0.0
    with pytest.raises(ValueError, match="2 and 3"):
        cosine(np.ones(2), np.ones(3))
