"""The options of a map: rank, whitening, centring and several source blocks, each against its own formula."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from contrans_dist.cli import stages
from contrans_dist.config import MapSettings
from contrans_dist.config.map_options import Fitting, blocks_below, fitting
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError
from contrans_dist.mapping import driver as reduce
from contrans_dist.mapping import heldout as splits
from contrans_dist.mapping.driver import fit
from contrans_dist.mapping.fit import AffineMap, fit_map, fit_moments, random_map, shuffled_map
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, about_tokens, default_split, effective_rows
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.mapping.moments import Moments, MomentSums, merge
from contrans_dist.mapping.ridge import SLACK
from contrans_dist.mapping.spectral import rank_grid
from contrans_dist.mapping.transplant import cosine
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.mapping.test_fit import error, planted
from tests.sets import make_set

PLAIN: dict[str, Any] = {"regularise": "none", "whiten": 0}


def centred(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fit rows of both sides about their means."""
    fit_rows = default_split(len(source)) == FIT
    x, y = source[fit_rows], target[fit_rows]
    return x - x.mean(axis=0), y - y.mean(axis=0)


def sums_of(source: np.ndarray, target: np.ndarray) -> list[Moments]:
    parts = default_split(len(source))
    return [Moments.of(source[parts == p], target[parts == p], target=True) for p in (FIT, VALIDATION, TEST)]


def power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    return np.real(scipy.linalg.fractional_matrix_power(matrix, exponent))


# ---------------------------------------------------------------- regularise


@pytest.mark.parametrize("n", [400, 70])
@pytest.mark.parametrize("centre", [True, False])
def test_none_is_numpys_pseudo_inverse(n: int, centre: bool) -> None:
    source, target, _ = planted(n, 90, 12, noise=2.0)
    x, y = centred(source, target)
    if not centre:
        fit_rows = default_split(n) == FIT
        x, y = source[fit_rows], target[fit_rows]
    mapping = fit_map(source, target, centre=centre, **PLAIN)
    assert error(mapping.weight, np.linalg.pinv(x, rcond=1e-12) @ y) < 1e-6
    assert mapping.bias.any() == centre
    assert (mapping.ridge, mapping.kept, mapping.whiten, mapping.centre) == (None, None, 0, centre)


@pytest.mark.parametrize("n", [400, 70])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_a_rank_is_the_truncated_svd_written_out(n: int, rank: int) -> None:
    source, target, _ = planted(n, 90, 12, noise=2.0)
    x, y = centred(source, target)
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    truth = vt[:rank].T @ np.diag(1 / sigma[:rank]) @ u[:, :rank].T @ y
    for mapping in (
        fit_map(source, target, rank=rank, whiten=0),
        fit_moments(*sums_of(source, target), rank=rank, whiten=0),
    ):
        assert error(mapping.weight, truth) < 1e-5
        assert (mapping.kept, mapping.ridge, mapping.regularise) == (rank, None, "rank")


@pytest.mark.parametrize(("n", "d_s"), [(400, 60), (90, 110)])
def test_the_rank_is_the_largest_that_predicts_validation_rows_about_best(n: int, d_s: int) -> None:
    source, target, _ = planted(n, d_s, 12, noise=60.0)
    parts = default_split(n)
    x, y = centred(source, target)
    full = np.linalg.matrix_rank(x)
    mean_x, mean_y = source[parts == FIT].mean(axis=0), target[parts == FIT].mean(axis=0)
    held = source[parts == VALIDATION] - mean_x, target[parts == VALIDATION] - mean_y
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    tried = []
    for rank in rank_grid(full):
        weight = vt[:rank].T / sigma[:rank] @ (u[:, :rank].T @ y)
        tried.append(1 - np.sum((held[1] - held[0] @ weight) ** 2) / np.sum(held[1] ** 2))
    best = max(rank for rank, r2 in zip(rank_grid(full), tried, strict=True) if r2 >= max(tried) - SLACK)
    assert 1 < best < full
    mapping = fit_map(source, target, regularise="rank", whiten=0)
    assert mapping.kept == best
    again = fit_moments(*sums_of(source, target), regularise="rank", whiten=0)
    assert (again.kept, error(again.weight, mapping.weight) < 1e-5) == (best, True)


def test_the_grid_of_ranks_goes_from_one_to_all() -> None:
    assert rank_grid(5).tolist() == [1, 2, 3, 4, 5]
    assert (rank_grid(4000)[0], rank_grid(4000)[-1]) == (1, 4000)
    assert len(rank_grid(4000)) <= 40


# ---------------------------------------------------------------- whiten


@pytest.mark.parametrize("whiten", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("ridge", [1e-9, 1e-2])
def test_whitening_is_the_brute_force_formula(whiten: float, ridge: float) -> None:
    source, target, _ = planted(500, 20, 14, noise=8.0)
    x, y = centred(source, target)
    sxx, syy = x.T @ x, y.T @ y
    regular = sxx + ridge * np.linalg.eigvalsh(sxx)[-1] * np.eye(20)
    white = power(regular, -0.5) @ x.T @ y @ power(syy, -0.5)
    # M (M^T M)^(-w/2): the same singular vectors, singular values to the power 1 - w.
    truth = power(regular, -0.5) @ white @ power(white.T @ white, -whiten / 2) @ power(syy, 0.5)
    for mapping in (
        fit_map(source, target, ridges=[ridge], whiten=whiten),
        fit_moments(*sums_of(source, target), ridges=[ridge], whiten=whiten),
    ):
        assert error(mapping.weight, truth) < 1e-5
        mean_x, mean_y = (a[default_split(500) == FIT].mean(axis=0) for a in (source, target))
        np.testing.assert_allclose(mapping.bias, mean_y - mean_x @ truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("whiten", [0.5, 1.0])
@pytest.mark.parametrize("options", [{"ridges": [1e-3]}, {"rank": 9}, {"regularise": "none"}])
def test_whitening_few_rows_is_whitening_sums(whiten: float, options: dict[str, Any]) -> None:
    source, target, _ = planted(70, 90, 12, noise=4.0)
    rows = fit_map(source, target, whiten=whiten, **options)
    sums = fit_moments(*sums_of(source, target), whiten=whiten, **options)
    assert (rows.side, sums.side) == ("dual", "primal")
    assert error(rows.weight, sums.weight) < 1e-5


def test_fully_whitened_predictions_vary_as_the_target_does() -> None:
    source, target, _ = planted(2000, 25, 10, noise=20.0)
    x, y = centred(source, target)
    weight = fit_map(source, target, whiten=1, regularise="none").weight
    np.testing.assert_allclose(np.cov((x @ weight).T), np.cov(y.T), rtol=2e-2, atol=1e-2 * y.var())
    shrunk = fit_map(source, target, **PLAIN).weight
    assert np.var(x @ shrunk) < 0.9 * np.var(y)


def test_whitening_leaves_a_map_without_noise_as_it_is() -> None:
    source, target, truth = planted(300, 20, 10, noise=0.0)
    for whiten in (0.0, 0.5, 1.0):
        assert error(fit_map(source, target, whiten=whiten).weight, truth) < 1e-4


def test_whitening_turns_up_what_the_fit_shrinks() -> None:
    """One direction shared without noise, one drowned in it: whitened, both come through as they are."""
    rng = np.random.default_rng(11)
    source = rng.standard_normal((4000, 2))
    target = source + rng.standard_normal((4000, 2)) * [0.0, 3.0]
    shrunk, white = (fit_map(source, target, whiten=w, regularise="none").weight for w in (0, 1))
    np.testing.assert_allclose(shrunk, np.eye(2), atol=0.15)
    np.testing.assert_allclose(white, np.diag([1, np.sqrt(10)]), atol=0.15)


def test_sums_without_the_targets_own_are_told_when_whitening_needs_them() -> None:
    source, target, _ = planted(100, 8, 5, noise=1.0)
    with pytest.raises(ValueError, match="whitening needs the target's own sums"):
        fit_moments(Moments.of(source, target), ridges=[1e-3], whiten=0.5)


def test_the_targets_own_sums_merge_as_the_others_do() -> None:
    source, target, _ = planted(90, 8, 5, noise=1.0)
    whole = Moments.of(source, target, target=True)
    parts = [Moments.of(source[a:b], target[a:b], target=True) for a, b in ((0, 20), (20, 90))]
    joined = merge(*parts)
    expected = (target - target.mean(axis=0)).T @ (target - target.mean(axis=0))
    for moments in (whole, joined, Moments.of(source, target, chunk=7, target=True)):
        assert moments.target is not None
        np.testing.assert_allclose(moments.target, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        np.testing.assert_allclose(np.asarray(moments.target_around(0.0)), target.T @ target, rtol=1e-9)
    assert Moments.of(source, target).target is None
    sums = MomentSums(8, 5, target=True)
    with pytest.raises(ValueError, match="with and without the target's own sums"):
        sums.merge(Moments.of(source, target))


# ---------------------------------------------------------------- centre: token


def test_rows_of_one_token_are_about_their_own_mean() -> None:
    rng = np.random.default_rng(12)
    rows, tokens = rng.standard_normal((60, 3)) + 4, rng.integers(0, 5, 60)
    parts = default_split(60)
    tokens[np.flatnonzero(parts == TEST)[0]] = 99
    about = about_tokens(rows, tokens, parts)
    for token in range(5):
        same = tokens == token
        np.testing.assert_allclose(about[same], rows[same] - rows[same & (parts == FIT)].mean(axis=0))
    assert np.isnan(about[tokens == 99]).all()


@pytest.mark.parametrize("n", [900, 130])
def test_token_centring_finds_the_map_that_tokens_hide(n: int) -> None:
    """What a token adds on either side is fitted too where rows are only about the mean of all."""
    rng = np.random.default_rng(13)
    d_s, d_t = (12, 6) if n == 900 else (150, 6)
    truth, tokens = rng.standard_normal((d_s, d_t)), rng.integers(0, 7, n)
    inner = rng.standard_normal((n, min(d_s, 12))) @ rng.standard_normal((min(d_s, 12), d_s))
    source = inner + 6 * rng.standard_normal((7, d_s))[tokens]
    target = inner @ truth + 60 * rng.standard_normal((7, d_t))[tokens]
    vector = inner[0] - inner[1]
    by_token = fit_map(source, target, centre="token", tokens=tokens, whiten=0)
    assert error(vector @ by_token.weight, vector @ truth) < 1e-2
    if n == 900:  # in 150 columns the tokens are easily told apart, and hide nothing
        plain = fit_map(source, target, whiten=0)
        assert error(vector @ plain.weight, vector @ truth) > 5e-2
    assert by_token.r2_test is not None
    assert by_token.r2_test > 0.99
    fit_rows = default_split(n) == FIT
    bias = target[fit_rows].mean(axis=0) - source[fit_rows].mean(axis=0) @ by_token.weight
    np.testing.assert_allclose(by_token.bias, bias, rtol=1e-3, atol=1e-2)
    control = shuffled_map(source, target, by_token, tokens=tokens)
    assert abs(cosine(vector @ control.weight, vector @ truth)) < 0.9
    assert control.centre == "token"


def test_one_token_is_plain_centring() -> None:
    source, target, _ = planted(300, 20, 10, noise=3.0)
    same = fit_map(source, target, centre="token", tokens=np.full(300, 7))
    plain = fit_map(source, target)
    assert error(same.weight, plain.weight) < 1e-6
    assert same.r2_test == pytest.approx(plain.r2_test, abs=1e-6)
    np.testing.assert_allclose(same.bias, plain.bias, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- protocols and contradictions


def test_the_defaults_and_the_papers_options() -> None:
    assert fitting("default") == Fitting(centre="token", regularise="ridge", rank=None, whiten=0.5)
    for protocol in ("paper", "lcross"):
        assert fitting(protocol) == Fitting(centre=False, regularise="none", rank=None, whiten=0.0)
        assert fitting(protocol, False, "none", None, 0.0) == fitting(protocol)
    assert fitting("default", rank=3).regularise == "rank"
    source, target, _ = planted(200, 12, 8, noise=1.0)
    explicit = fit_map(source, target, centre=True, regularise="ridge", whiten=0.5)
    np.testing.assert_array_equal(fit_map(source, target).weight, explicit.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "paper", "centre": True}, "protocol 'paper' takes no centre"),
        ({"protocol": "paper", "regularise": "ridge"}, "protocol 'paper' takes no regularise"),
        ({"protocol": "lcross", "rank": 3}, "protocol 'lcross' takes no rank"),
        ({"protocol": "paper", "whiten": 0.5}, "protocol 'paper' takes no whiten"),
        ({"rank": 3, "regularise": "ridge"}, "rank 3 contradicts regularise 'ridge'"),
        ({"rank": 0}, "rank 0: expected a number of directions"),
        ({"rank": 13}, "rank 13: the source rows have rank 12"),
        ({"whiten": 1.5}, "whiten 1.5: expected a share from 0 to 1"),
        ({"centre": "word"}, "centre 'word': expected true, false or token"),
        ({"centre": "token"}, "expected tokens, a label for each of 200 rows"),
        ({"regularise": "lasso"}, "regularise 'lasso': expected one of ridge, rank, none"),
        ({"regularise": "rank", "ridges": [1.0]}, "regularise 'rank' has no ridge"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    source, target, _ = planted(200, 12, 8, noise=1.0)
    with pytest.raises(ValueError, match=said) as caught:
        fit_map(source, target, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"protocol": "paper", "whiten": 0.5}, "protocol 'paper' takes no whiten"),
        ({"protocol": "paper", "source_blocks": 2}, "protocol 'paper' reads one source block"),
        ({"rank": 3, "regularise": "none"}, "rank 3 contradicts regularise 'none'"),
        ({"whiten": 2}, "whiten: expected less than or equal to 1, found 2"),
        ({"centre": "word"}, "centre: expected"),
        ({"source_blocks": 0}, "source_blocks: expected greater than or equal to 1"),
    ],
)
def test_a_recipe_is_refused_in_one_line(content: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(MapSettings, content, "recipe.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_a_recipe_are_the_options_of_a_fit() -> None:
    settings = validated(MapSettings, {"centre": "token", "rank": 5, "whiten": True}, "recipe.yaml")
    assert settings.fitting() == Fitting(centre="token", regularise="rank", rank=5, whiten=1.0)
    assert MapSettings(protocol="paper").fitting() == fitting("paper")


@pytest.mark.parametrize("options", [{}, {"rank": 6}, {"regularise": "rank", "whiten": 1}, PLAIN])
@pytest.mark.parametrize("n", [300, 50])
def test_the_shuffled_control_takes_the_options_over(n: int, options: dict[str, Any]) -> None:
    source, target, _ = planted(n, 60, 12, noise=2.0)
    mapping = fit_map(source, target, **options)
    control = shuffled_map(source, target, mapping, seed=1)
    for name in ("centre", "regularise", "kept", "ridge", "whiten", "side"):
        assert getattr(control, name) == getattr(mapping, name), name
    assert abs(cosine(mapping.weight.ravel(), control.weight.ravel())) < 0.5


# ---------------------------------------------------------------- several source blocks

N, D_SOURCE, D_TARGET = 240, 6, 5
TOKENS = np.random.default_rng(16).integers(0, 4, N)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[int, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(14)
    source = {b: (rng.standard_normal((N, D_SOURCE)) * (b + 1)).astype(np.float32) for b in (1, 2, 3)}
    plan = rng.standard_normal((3 * D_SOURCE, D_TARGET))
    rows = np.concatenate([source[b] for b in (1, 2, 3)], axis=1)
    target = (rows @ plan + rng.standard_normal((N, D_TARGET))).astype(np.float32)
    folder = tmp_path_factory.mktemp("several")
    return (
        make_set(folder / "source", source, 4, model="org/source"),
        make_set(folder / "target", {2: target}, 3, model="org/target", token_id=TOKENS.tolist()),
        source,
        target,
    )


def own_vector(blocks: tuple[int, ...] = (1, 2, 3)) -> ConceptVector:
    values = np.zeros((4, D_SOURCE), np.float32)
    values[list(blocks)] = np.random.default_rng(15).standard_normal((len(blocks), D_SOURCE))
    return ConceptVector(
        values=values, concept="joy", model="org/source", method="mean", n_positive=1, n_negative=1, norms={}
    )


def test_the_blocks_that_a_map_reads() -> None:
    assert blocks_below(5, "default", None) == [4, 5]
    assert blocks_below(5, "default", 3) == [3, 4, 5]
    assert blocks_below(0, "default", 2) == [0]
    assert blocks_below(5, "paper", None) == [5]


@pytest.mark.parametrize(("streamed", "count"), [(False, 1), (False, 2), (False, 3), (True, 2)])
def test_several_blocks_are_their_rows_side_by_side(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray],
    count: int,
    streamed: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if streamed:
        request.getfixturevalue("local")
        monkeypatch.setattr(reduce, "ROWS_IN_MEMORY", 10)
        monkeypatch.setattr(reduce, "_CHUNK_ROWS", 50)
    left, right, source, target = sets
    maps = fit(left, right, "3:2", source_blocks=count, quiet=True)
    blocks = [1, 2, 3][-count:]
    split = reduce.join(left, right, "default").split
    rows = np.concatenate([source[b] for b in blocks], axis=1)
    alone = fit_map(rows, target, split=split, tokens=TOKENS)
    mapping = maps.maps[3, 2]
    assert error(mapping.weight, alone.weight) < 1e-5
    assert mapping.source_blocks == (blocks if count > 1 else None)
    assert mapping.r2_test == pytest.approx(alone.r2_test, abs=1e-6)
    assert maps.shuffled[3, 2].shape == mapping.weight.shape
    vector = own_vector()
    carried = maps.carry(vector)
    row = np.concatenate([vector.values[b] for b in blocks])
    np.testing.assert_allclose(carried.at(2), row @ mapping.weight, rtol=1e-4, atol=1e-5)
    assert carried.steps[-1].startswith(f"mapped block {'+'.join(map(str, blocks))} -> 2")
    matched = maps.carry(vector, "match")
    share = np.linalg.norm(vector.values[3]) / maps.source_norms[3]
    assert np.linalg.norm(matched.at(2)) / maps.target_norms[2] == pytest.approx(share, rel=1e-5)


def test_several_blocks_survive_the_file(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    maps = fit(sets[0], sets[1], "3:2", source_blocks=2, quiet=True)
    maps.save(Location.parse(tmp_path / "map.safetensors"))
    back = MapSet.load(str(tmp_path / "map.safetensors"))
    assert back.maps[3, 2].source_blocks == [2, 3]
    assert back.maps[3, 2].header() == maps.maps[3, 2].header()
    np.testing.assert_array_equal(back.carry(own_vector()).at(2), maps.carry(own_vector()).at(2))
    with pytest.raises(UserError, match="carries nothing at block 2"):
        back.carry(own_vector((3,)))
    other = replace(back, maps={(3, 2): random_map(back.maps[3, 2])}, shuffled={})
    assert other.carry(own_vector()).blocks == [2]


def test_a_file_from_before_the_options_is_read() -> None:
    source, target, _ = planted(60, 8, 5, noise=0.5)
    mapping = fit_map(source, target)
    new = ("centre", "regularise", "kept", "whiten", "source_blocks", "n_effective")
    header = {key: value for key, value in json.loads(json.dumps(mapping.header())).items() if key not in new}
    old = AffineMap.from_header(mapping.weight, mapping.bias, header)
    assert (old.centre, old.whiten, old.source_blocks, old.ridge) == (None, None, None, mapping.ridge)


def test_no_more_blocks_are_read_than_there_are(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray],
) -> None:
    left, right = sets[:2]
    assert fit(left, right, "3:2", quiet=True).maps[3, 2].source_blocks == [2, 3]
    assert fit(left, right, "1:2", quiet=True).maps[1, 2].source_blocks is None
    assert fit(left, right, "3:2", quiet=True, vectors_at=[1, 3]).maps[3, 2].source_blocks is None
    assert fit(left, right, "3:2", "paper", quiet=True).maps[3, 2].source_blocks is None
    with pytest.raises(UserError, match=r"source_blocks 4: expected the source's blocks \[0, 1, 2, 3\]"):
        fit(left, right, "3:2", source_blocks=4, quiet=True)
    with pytest.raises(UserError, match="protocol 'paper' reads one source block"):
        fit(left, right, "3:2", "paper", source_blocks=2, quiet=True)


def test_token_centring_by_the_tokens_of_a_harvest(
    local: None, sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, source, target = sets
    mapping = fit(left, right, "3:2", source_blocks=1, quiet=True).maps[3, 2]
    split = reduce.join(left, right, "default").split
    alone = fit_map(source[3], target, split=split, centre="token", tokens=TOKENS)
    assert error(mapping.weight, alone.weight) < 1e-6
    assert error(mapping.weight, fit_map(source[3], target, split=split).weight) > 1e-3
    monkeypatch.setattr(reduce, "ROWS_IN_MEMORY", 10)
    monkeypatch.setattr(reduce, "_CHUNK_ROWS", 50)
    for count in (1, 2):
        streamed = fit(left, right, "3:2", source_blocks=count, quiet=True)
        rows = np.concatenate([source[b] for b in (2, 3)][-count:], axis=1)
        alone = fit_map(rows, target, split=split, tokens=TOKENS)
        found = streamed.maps[3, 2]
        assert error(found.weight, alone.weight) < 1e-5
        np.testing.assert_allclose(found.bias, alone.bias, rtol=1e-4, atol=1e-4)
        assert (found.centre, found.ridge, found.n_fit) == ("token", alone.ridge, alone.n_fit)
        assert found.r2_test == pytest.approx(alone.r2_test, abs=1e-6)
        assert np.abs(streamed.shuffled[3, 2]).max() > 0


def rare_tokens(n_alone: int, n_unseen: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [n], parts [n]): of 4 tokens, but for so many fit and validation rows of their own."""
    parts, tokens = default_split(n), np.arange(n) % 4
    for part, count in ((FIT, n_alone), (VALIDATION, n_unseen)):
        own = np.flatnonzero(parts == part)[:count]
        tokens[own] = 1000 + own
    return tokens, parts


@pytest.mark.parametrize("width", [20, 350])  # the primal side, and the dual
def test_rows_that_are_alone_of_their_token_do_not_count(width: int) -> None:
    """Left out altogether, they give the same map: so many fewer rows were fitted on."""
    tokens, parts = rare_tokens(90, 15)
    source, target, _ = planted(400, width, 10, noise=3.0)
    mapping = fit_map(source, target, split=parts, tokens=tokens)
    shared = tokens < 1000
    without = fit_map(source[shared], target[shared], split=parts[shared], tokens=tokens[shared])
    assert error(mapping.weight, without.weight) < 1e-6
    assert (mapping.n_fit, mapping.n_effective) == (320, 230)
    assert (without.n_fit, without.n_effective) == (230, 230)
    assert [line for line in mapping.warnings if "centre" in line] == [
        "centre 'token': 230 of 320 fit rows count; the others are the only ones of their token, or of none "
        "of the 1,024 commonest",
        "centre 'token': 15 of 40 validation rows are left out: no fit row is of their token, or it is "
        "none of the 1,024 commonest",
    ]
    assert not [line for line in without.warnings if "centre" in line]
    assert json.loads(json.dumps(mapping.header()))["n_effective"] == 230
    assert fit_map(source, target, split=parts, centre=True).n_effective is None


def test_a_few_rare_tokens_are_no_reason_to_warn() -> None:
    tokens, parts = rare_tokens(80, 10)
    assert effective_rows(tokens, parts) == (240, [])
    assert len(effective_rows(*rare_tokens(81, 10))[1]) == 1
    assert len(effective_rows(*rare_tokens(80, 11))[1]) == 1
    with pytest.raises(ValueError, match="no two fit rows are of the same token; expected centre true"):
        effective_rows(*rare_tokens(320, 0))


def test_sums_tell_of_rare_tokens_as_rows_do(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, _ = planted(400, 20, 10, noise=3.0)
    tokens, _ = rare_tokens(150, 20)
    left = make_set(tmp_path / "source", {1: source.astype(np.float32)}, 2, model="org/source")
    right = make_set(
        tmp_path / "target", {1: target.astype(np.float32)}, 2, model="org/target", token_id=tokens.tolist()
    )
    by_rows = fit(left, right, "1:1", quiet=True).maps[1, 1]
    monkeypatch.setattr(reduce, "ROWS_IN_MEMORY", 10)
    monkeypatch.setattr(reduce, "_CHUNK_ROWS", 50)
    by_sums = fit(left, right, "1:1", quiet=True).maps[1, 1]
    labels, counts = np.unique(tokens[reduce.join(left, right, "default").split == FIT], return_counts=True)
    assert len(labels) > 50
    assert by_rows.n_effective == by_sums.n_effective == counts[counts > 1].sum()
    assert by_rows.n_fit == by_sums.n_fit == counts.sum()
    assert by_sums.warnings == by_rows.warnings
    assert "fit rows count" in by_sums.warnings[0]


def test_means_that_are_pulled_to_the_mean_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softer centring that `jobs/map_options.py --rows` tries, against its formula row by row."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "jobs"))
    few = importlib.import_module("mapping.few")
    rng = np.random.default_rng(18)
    rows, tokens, parts = rng.standard_normal((200, 5)) + 3, rng.integers(0, 60, 200), default_split(200)
    fit_rows = parts == FIT
    for pull in (0.25, 2.0):
        found = few.about_pulled(rows, tokens, parts, pull)
        for row, token, about in zip(rows, tokens, found, strict=True):
            same = rows[fit_rows & (tokens == token)]
            mean = (same.sum(axis=0) + pull * rows[fit_rows].mean(axis=0)) / (len(same) + pull)
            np.testing.assert_allclose(about, row - mean, atol=1e-12)
    known = np.isin(tokens, tokens[fit_rows])
    hardly = few.about_pulled(rows, tokens, parts, 1e-12)
    np.testing.assert_allclose(hardly[known], about_tokens(rows, tokens, parts)[known], atol=1e-9)


def test_only_the_commonest_tokens_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_TOKENS", 2)
    tokens, parts = np.array([5, 5, 5, 9, 9, 1, 5, 8]), np.array([FIT] * 6 + [TEST] * 2)
    group, count = splits.token_groups(tokens, parts)
    assert (group.tolist(), count) == ([0, 0, 0, 1, 1, -1, 0, -1], 2)


def test_the_command_takes_every_option(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left, right, source, target = sets
    given: dict[str, Any] = {"source": str(left.location), "target": str(right.location), "blocks": "3:2"}
    out = str(tmp_path / "map.safetensors")
    stages.fit(**given, out=out, centre="false", regularise="rank", rank=4, whiten=1.0, source_blocks=2)
    mapping = MapSet.load(out).maps[3, 2]
    rows = np.concatenate([source[2], source[3]], axis=1)
    split = reduce.join(left, right, "default").split
    alone = fit_map(rows, target, split=split, centre=False, rank=4, whiten=1.0)
    assert error(mapping.weight, alone.weight) < 1e-5
    assert "block 2+3 -> 2" in (told := capsys.readouterr().out)
    assert "4 directions kept, whitened 1" in told
    for wrong, said in (
        ({"centre": "word"}, "--centre 'word': expected true, false or token"),
        ({"rank": 3, "regularise": "ridge"}, "--rank 3 contradicts regularise 'ridge'"),
        ({"protocol": "paper", "whiten": 0.5}, "--protocol 'paper' takes no whiten"),
    ):
        with pytest.raises(UserError, match=said):
            stages.fit(**given, out=out, **wrong)
