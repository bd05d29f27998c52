"""The options of a map: regularising, centring and several source blocks, each against its own formula."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrans_dist.cli import stages
from contrans_dist.config import MapSettings
from contrans_dist.config.map_options import MapOptions
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError
from contrans_dist.mapping import distributed_sums, driver
from contrans_dist.mapping import tokens as token_means
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.driver import fit
from contrans_dist.mapping.fit import fit_rows
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, default_split, shuffle_order
from contrans_dist.mapping.linear_map import AffineMap, random_map
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.mapping.tokens import TokenSums, effective_rows, token_groups
from contrans_dist.mapping.transplant import cosine
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.mapping.test_fit import control_of, error, planted
from tests.sets import make_set

PLAIN = MapOptions(centre=True, regularise="none")


def centred(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fit rows of both sides about their means."""
    fitted_on = default_split(len(source)) == FIT
    x, y = source[fitted_on], target[fitted_on]
    return x - x.mean(axis=0), y - y.mean(axis=0)


# ---------------------------------------------------------------- regularise


@pytest.mark.parametrize("n", [400, 70])
@pytest.mark.parametrize("centre", [True, False])
def test_none_is_numpys_pseudo_inverse(n: int, centre: bool) -> None:
    source, target, _ = planted(n, 90, 12, noise=2.0)
    x, y = centred(source, target)
    if not centre:
        fitted_on = default_split(n) == FIT
        x, y = source[fitted_on], target[fitted_on]
    mapping = fit_rows(source, target, MapOptions(centre=centre, regularise="none"))
    assert error(mapping.weight, np.linalg.pinv(x, rcond=1e-12) @ y) < 1e-6
    assert mapping.bias.any() == centre
    assert (mapping.ridge, mapping.regularise, mapping.centre) == (None, "none", centre)


# ---------------------------------------------------------------- centre: token


def test_rows_of_one_token_are_about_their_own_mean() -> None:
    rng = np.random.default_rng(12)
    rows, tokens = rng.standard_normal((60, 3)) + 4, rng.integers(0, 5, 60)
    parts = default_split(60)
    tokens[np.flatnonzero(parts == TEST)[0]] = 99
    group, n_groups = token_groups(tokens, parts)
    about = TokenSums.of(rows, group, n_groups, parts == FIT).about(rows, group)
    for token in range(5):
        same = tokens == token
        np.testing.assert_allclose(about[same], rows[same] - rows[same & (parts == FIT)].mean(axis=0))
    assert n_groups == 5
    assert (group[tokens == 99] == -1).all()


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
    by_token = fit_rows(source, target, tokens=tokens)
    assert error(vector @ by_token.weight, vector @ truth) < 1e-2
    if n == 900:  # in 150 columns the tokens are easily told apart, and hide nothing
        plain = fit_rows(source, target)
        assert error(vector @ plain.weight, vector @ truth) > 5e-2
    assert by_token.r2_test is not None
    assert by_token.r2_test > 0.99
    fitted_on = default_split(n) == FIT
    bias = target[fitted_on].mean(axis=0) - source[fitted_on].mean(axis=0) @ by_token.weight
    np.testing.assert_allclose(by_token.bias, bias, rtol=1e-3, atol=1e-2)
    control = control_of(source, target, by_token, tokens=tokens)
    assert abs(cosine(vector @ control.weight, vector @ truth)) < 0.9
    assert control.centre == "token"


def test_one_token_is_plain_centring() -> None:
    source, target, _ = planted(300, 20, 10, noise=3.0)
    same = fit_rows(source, target, tokens=np.full(300, 7))
    plain = fit_rows(source, target)
    assert error(same.weight, plain.weight) < 1e-6
    assert same.r2_test == pytest.approx(plain.r2_test, abs=1e-6)
    np.testing.assert_allclose(same.bias, plain.bias, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- protocols and contradictions


def test_the_defaults_and_the_papers_options() -> None:
    options = MapOptions()
    assert (options.centring(True), options.centring(False), options.has_ridge) == ("token", True, True)
    for protocol in ("paper", "lcross"):
        papers = MapOptions(protocol)  # type: ignore[arg-type]
        assert (papers.centring(True), papers.has_ridge) == (False, False)
        MapOptions(protocol, centre=False, regularise="none", source_blocks=1)  # type: ignore[arg-type]
    source, target, _ = planted(200, 12, 8, noise=1.0)
    explicit = fit_rows(source, target, MapOptions(centre=True, regularise="ridge"))
    np.testing.assert_array_equal(fit_rows(source, target).weight, explicit.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "paper", "centre": True}, "protocol 'paper' takes no centre"),
        ({"protocol": "paper", "regularise": "ridge"}, "protocol 'paper' takes no regularise"),
        ({"protocol": "paper", "source_blocks": 2}, "protocol 'paper' reads one source block"),
        ({"centre": "word"}, "centre 'word': expected true, false or token"),
        ({"centre": "token"}, "expected tokens, a label for each of 200 rows"),
        ({"regularise": "rank"}, "regularise 'rank': expected one of ridge, none"),
        ({"regularise": "none", "ridges": (1.0,)}, "regularise 'none' has no ridge"),
        ({"source_blocks": 0}, "source_blocks 0: expected a number of blocks"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    source, target, _ = planted(200, 12, 8, noise=1.0)
    with pytest.raises(ValueError, match=said) as caught:
        fit_rows(source, target, MapOptions(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"protocol": "paper", "centre": True}, "protocol 'paper' takes no centre"),
        ({"protocol": "paper", "source_blocks": 2}, "protocol 'paper' reads one source block"),
        ({"whiten": 0.5}, "unknown key 'whiten'"),
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
    settings = validated(MapSettings, {"centre": "token", "source_blocks": 3}, "recipe.yaml")
    assert settings.options() == MapOptions(centre="token", source_blocks=3)
    assert MapSettings(protocol="paper").options() == MapOptions("paper")


@pytest.mark.parametrize("options", [MapOptions(), MapOptions(ridges=(1e-3,)), PLAIN])
@pytest.mark.parametrize("n", [300, 50])
def test_the_shuffled_control_takes_the_options_over(n: int, options: MapOptions) -> None:
    source, target, _ = planted(n, 60, 12, noise=2.0)
    mapping = fit_rows(source, target, options)
    control = control_of(source, target, mapping, options, seed=1)
    for name in ("centre", "regularise", "ridge", "side"):
        assert getattr(control, name) == getattr(mapping, name), name
    assert abs(cosine(mapping.weight.ravel(), control.weight.ravel())) < 0.5


@pytest.mark.parametrize(
    ("n", "options"), [(n, options) for n in (300, 50) for options in (MapOptions(), PLAIN)]
)
def test_the_control_is_the_map_of_the_source_rows_in_another_order(n: int, options: MapOptions) -> None:
    source, target, _ = planted(n, 60, 12, noise=2.0)
    mapping = fit_rows(source, target, options)
    control = control_of(source, target, mapping, options, seed=1)
    order = shuffle_order(default_split(n) == FIT, seed=1)
    ridges = None if mapping.ridge is None else (mapping.ridge,)
    written_out = fit_rows(source[order], target, replace(options, ridges=ridges))
    assert error(control.weight, written_out.weight) < 1e-5


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
    assert MapOptions().blocks_below(5) == [4, 5]
    assert MapOptions(source_blocks=3).blocks_below(5) == [3, 4, 5]
    assert MapOptions(source_blocks=2).blocks_below(0) == [0]
    assert MapOptions("paper").blocks_below(5) == [5]


@pytest.mark.parametrize(("by_sums", "count"), [(False, 1), (False, 2), (False, 3), (True, 2)])
def test_several_blocks_are_their_rows_side_by_side(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray],
    count: int,
    by_sums: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if by_sums:
        request.getfixturevalue("local")
        monkeypatch.setattr(driver, "ROWS_IN_MEMORY", 10)
        monkeypatch.setattr(distributed_sums, "CHUNK_ROWS", 50)
    left, right, source, target = sets
    maps = fit(left, right, "3:2", MapOptions(source_blocks=count), quiet=True)
    blocks = [1, 2, 3][-count:]
    split = join(left, right, "default").split
    rows = np.concatenate([source[b] for b in blocks], axis=1)
    alone = fit_rows(rows, target, split=split, tokens=TOKENS)
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
    maps = fit(sets[0], sets[1], "3:2", MapOptions(source_blocks=2), quiet=True)
    maps.save(Location.parse(tmp_path / "map.safetensors"))
    back = MapSet.load(str(tmp_path / "map.safetensors"))
    assert back.maps[3, 2].source_blocks == [2, 3]
    assert back.maps[3, 2].header() == maps.maps[3, 2].header()
    np.testing.assert_array_equal(back.carry(own_vector()).at(2), maps.carry(own_vector()).at(2))
    with pytest.raises(UserError, match="carries nothing at block 2"):
        back.carry(own_vector((3,)))
    other = replace(back, maps={(3, 2): random_map(back.maps[3, 2])}, shuffled={})
    assert other.carry(own_vector()).blocks == [2]


def test_a_header_of_other_options_is_read() -> None:
    source, target, _ = planted(60, 8, 5, noise=0.5)
    mapping = fit_rows(source, target)
    new = ("centre", "regularise", "source_blocks", "n_effective")
    header = {key: value for key, value in json.loads(json.dumps(mapping.header())).items() if key not in new}
    header |= {"kept": 5, "whiten": 0.5}
    old = AffineMap.from_header(mapping.weight, mapping.bias, header)
    assert (old.centre, old.source_blocks, old.ridge) == (None, None, mapping.ridge)


def test_no_more_blocks_are_read_than_there_are(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray],
) -> None:
    left, right = sets[:2]
    assert fit(left, right, "3:2", quiet=True).maps[3, 2].source_blocks == [2, 3]
    assert fit(left, right, "1:2", quiet=True).maps[1, 2].source_blocks is None
    assert fit(left, right, "3:2", quiet=True, vectors_at=[1, 3]).maps[3, 2].source_blocks is None
    assert fit(left, right, "3:2", MapOptions("paper"), quiet=True).maps[3, 2].source_blocks is None
    with pytest.raises(UserError, match=r"source_blocks 4: expected the source's blocks \[0, 1, 2, 3\]"):
        fit(left, right, "3:2", MapOptions(source_blocks=4), quiet=True)


def test_token_centring_by_the_tokens_of_a_harvest(
    local: None, sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, source, target = sets
    mapping = fit(left, right, "3:2", MapOptions(source_blocks=1), quiet=True).maps[3, 2]
    split = join(left, right, "default").split
    alone = fit_rows(source[3], target, split=split, tokens=TOKENS)
    assert error(mapping.weight, alone.weight) < 1e-6
    assert error(mapping.weight, fit_rows(source[3], target, split=split).weight) > 1e-3
    monkeypatch.setattr(driver, "ROWS_IN_MEMORY", 10)
    monkeypatch.setattr(distributed_sums, "CHUNK_ROWS", 50)
    for count in (1, 2):
        by_sums = fit(left, right, "3:2", MapOptions(source_blocks=count), quiet=True)
        rows = np.concatenate([source[b] for b in (2, 3)][-count:], axis=1)
        alone = fit_rows(rows, target, split=split, tokens=TOKENS)
        found = by_sums.maps[3, 2]
        assert error(found.weight, alone.weight) < 1e-5
        np.testing.assert_allclose(found.bias, alone.bias, rtol=1e-4, atol=1e-4)
        assert (found.centre, found.ridge, found.n_fit) == ("token", alone.ridge, alone.n_fit)
        assert found.r2_test == pytest.approx(alone.r2_test, abs=1e-6)
        assert np.abs(by_sums.shuffled[3, 2]).max() > 0


def rare_tokens(n_alone: int, n_unseen: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [n], parts [n]): of 4 tokens, but for so many fit and validation rows of their own."""
    parts, tokens = default_split(n), np.arange(n) % 4
    for part, count in ((FIT, n_alone), (VALIDATION, n_unseen)):
        alone = np.flatnonzero(parts == part)[:count]
        tokens[alone] = 1000 + alone
    return tokens, parts


@pytest.mark.parametrize("width", [20, 350])  # the primal side, and the dual
def test_rows_that_are_alone_of_their_token_do_not_count(width: int) -> None:
    """Left out altogether, they give the same map: so many fewer rows were fitted on."""
    tokens, parts = rare_tokens(90, 15)
    source, target, _ = planted(400, width, 10, noise=3.0)
    mapping = fit_rows(source, target, split=parts, tokens=tokens)
    shared = tokens < 1000
    without = fit_rows(source[shared], target[shared], split=parts[shared], tokens=tokens[shared])
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
    assert fit_rows(source, target, split=parts).n_effective is None


def test_a_few_rare_tokens_are_no_reason_to_warn() -> None:
    tokens, parts = rare_tokens(80, 10)
    assert effective_rows(token_groups(tokens, parts)[0], parts) == (240, [])
    for tokens, parts in (rare_tokens(81, 10), rare_tokens(80, 11)):
        assert len(effective_rows(token_groups(tokens, parts)[0], parts)[1]) == 1
    tokens, parts = rare_tokens(320, 0)
    with pytest.raises(ValueError, match="no two fit rows are of the same token; expected centre true"):
        effective_rows(token_groups(tokens, parts)[0], parts)


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
    monkeypatch.setattr(driver, "ROWS_IN_MEMORY", 10)
    monkeypatch.setattr(distributed_sums, "CHUNK_ROWS", 50)
    by_sums = fit(left, right, "1:1", quiet=True).maps[1, 1]
    labels, counts = np.unique(tokens[join(left, right, "default").split == FIT], return_counts=True)
    assert len(labels) > 50
    assert by_rows.n_effective == by_sums.n_effective == counts[counts > 1].sum()
    assert by_rows.n_fit == by_sums.n_fit == counts.sum()
    assert by_sums.warnings == by_rows.warnings
    assert "fit rows count" in by_sums.warnings[0]


def test_only_the_commonest_tokens_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_means, "MOST_TOKENS", 2)
    tokens, parts = np.array([5, 5, 5, 9, 9, 1, 5, 8]), np.array([FIT] * 6 + [TEST] * 2)
    group, count = token_groups(tokens, parts)
    assert (group.tolist(), count) == ([0, 0, 0, 1, 1, -1, 0, -1], 2)


def test_the_command_takes_every_option(
    sets: tuple[Any, Any, dict[int, np.ndarray], np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left, right, source, target = sets
    given: dict[str, Any] = {"source": str(left.location), "target": str(right.location), "blocks": "3:2"}
    out = str(tmp_path / "map.safetensors")
    stages.fit(**given, out=out, centre="false", regularise="none", source_blocks=2)
    mapping = MapSet.load(out).maps[3, 2]
    rows = np.concatenate([source[2], source[3]], axis=1)
    split = join(left, right, "default").split
    alone = fit_rows(rows, target, MapOptions(centre=False, regularise="none"), split=split)
    assert error(mapping.weight, alone.weight) < 1e-5
    assert "block 2+3 -> 2" in (told := capsys.readouterr().out)
    assert "ridge" not in told
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"centre": "word"}, "--centre 'word': expected true, false or token"),
        ({"regularise": "rank"}, "--regularise 'rank': expected one of ridge, none"),
        ({"protocol": "paper", "centre": "true"}, "--protocol 'paper' takes no centre"),
    ]
    for wrong, said in contradictions:
        with pytest.raises(UserError, match=said):
            stages.fit(**given, out=out, **wrong)
