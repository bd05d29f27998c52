"""Vector and map files: what is in them, that they come back whole, and a vector through a map."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from contrans_dist.config.map_options import MapOptions
from contrans_dist.errors import UserError
from contrans_dist.mapping.fit import fit_rows
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection, BlockTable
from contrans_dist.vectors.concept_vector import ConceptVector

D_SOURCE, D_TARGET, N_TARGET = 6, 4, 5
SOURCE_NORM, TARGET_NORM = 3.0, 11.0


def vector(n_blocks: int = 4, d: int = D_SOURCE, blocks: tuple[int, ...] = (1, 3)) -> ConceptVector:
    values = np.zeros((n_blocks, d), np.float32)
    values[list(blocks)] = np.random.default_rng(3).normal(size=(len(blocks), d))
    return ConceptVector(
        values=values,
        concept="joy",
        model="org/source",
        method="pca",
        n_positive=7,
        n_negative=6,
        norms={1: 2.5, 3: SOURCE_NORM},
        text_hashes=np.array([-5, 9], np.int64),
        steps=("made by hand",),
    )


def fitted(protocol: str = "default") -> MapSet:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(80, D_SOURCE)) + 1
    y = x @ rng.normal(size=(D_SOURCE, D_TARGET)) + 5 + rng.normal(size=(80, D_TARGET))
    maps = {pair: fit_rows(x, y, MapOptions(protocol)) for pair in ((1, 2), (3, 4))}  # type: ignore[arg-type]
    return MapSet(
        source_model="org/source",
        target_model="org/target",
        n_target_blocks=N_TARGET,
        protocol=protocol,
        maps=maps,
        source_norms={1: 2.5, 3: SOURCE_NORM},
        target_norms={2: 7.0, 4: TARGET_NORM},
        shuffled={(3, 4): rng.normal(size=(D_SOURCE, D_TARGET)).astype(np.float32)},
        text_hashes=np.array([1, 2, 3], np.int64),
        r2_table=BlockTable.of([1, 3], [2, 4], np.array([[0.1, np.nan], [0.3, 0.7]])),
        cosines={(3, 4): {"joy": 0.5}},
        selection=BlockSelection(chosen=(3, 4)),
    )


def header_of(path: Path) -> dict:
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["contrans"])


def test_a_vector_file_is_what_the_design_says_and_any_reader_opens_it(tmp_path: Path) -> None:
    made = vector()
    made.save(Location.parse(tmp_path / "joy.safetensors"))
    tensors = load_file(tmp_path / "joy.safetensors")
    assert set(tensors) == {"vector", "text_hashes"}
    assert tensors["vector"].dtype == np.float32
    assert tensors["vector"].shape == (4, D_SOURCE)
    np.testing.assert_array_equal(tensors["vector"], made.values)
    header = header_of(tmp_path / "joy.safetensors")
    assert (header["kind"], header["concept"], header["model"], header["method"]) == (
        "vector", "joy", "org/source", "pca",
    )  # fmt: skip
    assert (header["blocks"], header["absent"]) == ([1, 3], [0, 2])
    assert (header["n_positive"], header["n_negative"]) == (7, 6)
    assert header["norms"] == {"1": 2.5, "3": SOURCE_NORM}


def test_a_vector_comes_back_whole(tmp_path: Path) -> None:
    carried = fitted().carry(vector(), "match", (3, 4))
    for name, made in (("plain", vector()), ("carried", carried)):
        path = tmp_path / f"{name}.safetensors"
        made.save(Location.parse(path))
        back = ConceptVector.load(str(path))
        for attribute in ("values", "text_hashes", "map_text_hashes"):
            np.testing.assert_array_equal(getattr(back, attribute), getattr(made, attribute))
        for attribute in ("concept", "model", "method", "n_positive", "n_negative", "norms", "steps"):
            assert getattr(back, attribute) == getattr(made, attribute), attribute
    assert back.shuffled_map is not None
    assert carried.shuffled_map is not None
    np.testing.assert_array_equal(back.shuffled_map, carried.shuffled_map)


def test_one_block_of_a_vector_and_one_that_it_has_not() -> None:
    alone = vector().only(3)
    assert alone.blocks == [3]
    np.testing.assert_array_equal(alone.at(3), vector().values[3])
    with pytest.raises(UserError, match=r"'joy' carries nothing at block 2; it holds \[1, 3\]"):
        vector().at(2)


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_a_map_file_is_what_the_design_says(tmp_path: Path, protocol: str) -> None:
    maps = fitted(protocol)
    maps.save(Location.parse(tmp_path / "map.safetensors"))
    tensors = load_file(tmp_path / "map.safetensors")
    for source, target in ((1, 2), (3, 4)):
        weight, bias = tensors[f"weight.{source}.{target}"], tensors[f"bias.{source}.{target}"]
        assert (weight.dtype, weight.shape) == (np.float32, (D_SOURCE, D_TARGET))
        assert (bias.dtype, bias.shape) == (np.float32, (D_TARGET,))
        np.testing.assert_array_equal(weight, maps.maps[source, target].weight)
        assert bias.any() == (protocol == "default")
    header = header_of(tmp_path / "map.safetensors")
    assert (header["kind"], header["protocol"]) == ("map", protocol)
    assert (header["source_model"], header["target_model"]) == ("org/source", "org/target")
    pair = header["pairs"][1]
    assert (pair["source"], pair["target"], pair["cosines"]) == (3, 4, {"joy": 0.5})
    assert {"side", "n_fit", "rank", "condition_number", "ridge", "r2_validation", "r2_test"} <= set(pair)
    assert header["r2_table"] == {"source": [1, 3], "target": [2, 4], "r2": [[0.1, None], [0.3, 0.7]]}


@pytest.mark.parametrize("protocol", ["default", "paper", "lcross"])
def test_a_map_comes_back_whole(tmp_path: Path, protocol: str) -> None:
    maps = fitted(protocol)
    maps.save(Location.parse(tmp_path / "map.safetensors"))
    back = MapSet.load(str(tmp_path / "map.safetensors"))
    for pair, mapping in maps.maps.items():
        np.testing.assert_array_equal(back.maps[pair].weight, mapping.weight)
        np.testing.assert_array_equal(back.maps[pair].bias, mapping.bias)
        assert back.maps[pair].header() == mapping.header()
    np.testing.assert_array_equal(back.shuffled[3, 4], maps.shuffled[3, 4])
    assert (3, 4) in back.shuffled
    assert (1, 2) not in back.shuffled
    np.testing.assert_array_equal(back.text_hashes, maps.text_hashes)
    assert (back.source_norms, back.target_norms) == (maps.source_norms, maps.target_norms)
    assert (back.cosines, back.selection) == (maps.cosines, maps.selection)
    assert back.r2_table is not None
    assert back.r2_table.best() == (3, 4)


def test_an_infinite_condition_number_survives(tmp_path: Path) -> None:
    singular = AffineMap(
        weight=np.zeros((2, 2), np.float32), bias=np.zeros(2, np.float32), protocol="paper", side="dual",
        n_fit=3, rank=1, condition_number=float("inf"),
    )  # fmt: skip
    maps = MapSet("a", "b", 3, "paper", {(0, 1): singular}, {}, {})
    maps.save(Location.parse(tmp_path / "map.safetensors"))
    assert MapSet.load(str(tmp_path / "map.safetensors")).maps[0, 1].condition_number == float("inf")


def test_carry_keep_is_the_product_without_the_bias() -> None:
    maps, given = fitted(), vector()
    carried = maps.carry(given, "keep", (3, 4))
    expected = given.values[3].astype(np.float64) @ maps.maps[3, 4].weight.astype(np.float64)
    assert carried.values.shape == (N_TARGET, D_TARGET)
    assert carried.blocks == [4]
    np.testing.assert_allclose(carried.at(4), expected, rtol=1e-6)
    assert maps.maps[3, 4].bias.any()  # else this could not tell
    assert (carried.model, carried.norms) == ("org/target", maps.target_norms)
    np.testing.assert_array_equal(carried.text_hashes, given.text_hashes)
    np.testing.assert_array_equal(carried.map_text_hashes, maps.text_hashes)
    again = maps.carry(replace(vector(), map_text_hashes=np.array([2, 9], np.int64)), pair=(3, 4))
    assert again.map_text_hashes.tolist() == [1, 2, 3, 9]  # of both maps that it went through


def test_a_vector_knows_that_a_map_does_not_say_what_it_was_fitted_on(tmp_path: Path) -> None:
    """`text_hashes` may be absent from a file; nothing found among none is no finding."""
    maps, silent = fitted(), replace(fitted(), text_hashes=np.empty(0, np.int64))
    silent.save(Location.parse(tmp_path / "map.safetensors"))
    silent = MapSet.load(str(tmp_path / "map.safetensors"))
    for first, known in ((maps, True), (silent, False)):
        carried = first.carry(vector(), pair=(3, 4))
        carried.save(Location.parse(tmp_path / "vector.safetensors"))
        assert ConceptVector.load(str(tmp_path / "vector.safetensors")).map_texts_known is known
        twice = fitted().carry(replace(vector(), map_texts_known=known), pair=(3, 4))
        assert twice.map_texts_known is known


def test_carry_match_keeps_the_share_of_the_residual_norm() -> None:
    maps, given = fitted(), vector()
    carried = maps.carry(given, "match", (3, 4))
    raw = given.values[3].astype(np.float64) @ maps.maps[3, 4].weight
    length = np.linalg.norm(given.values[3]) / SOURCE_NORM * TARGET_NORM
    np.testing.assert_allclose(carried.at(4), raw / np.linalg.norm(raw) * length, rtol=1e-5)
    assert carried.shuffled_map is not None
    control = given.values[3].astype(np.float64) @ maps.shuffled[3, 4]
    np.testing.assert_allclose(carried.shuffled_map[4], control / np.linalg.norm(control) * length, rtol=1e-5)
    assert maps.carry(given, "match", (1, 2)).shuffled_map is None


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    maps = fitted()
    for pair, given, said in (
        ((3, 4), vector(d=9), "vector 'joy' is 9 wide, the map takes 6"),
        ((3, 4), vector(blocks=(1,)), "carries nothing at block 3"),
        ((2, 2), vector(), "no pair 2:2; it holds 1:2, 3:4"),
        (None, vector(), "several pairs of blocks (1:2, 3:4); say which with --blocks"),
    ):
        with pytest.raises(UserError) as caught:
            maps.carry(given, "keep", pair)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("this is no safetensors file at all")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    vector().save(Location.parse(tmp_path / "vector.safetensors"))
    for name in ("foreign", "text", "empty"):
        for load in (ConceptVector.load, MapSet.load):
            with pytest.raises(UserError, match=f"{name}.safetensors: expected a vector or map file"):
                load(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(UserError, match=r"vector.safetensors: expected a map file, this is a vector file"):
        MapSet.load(str(tmp_path / "vector.safetensors"))
    with pytest.raises(UserError, match=r"nowhere.safetensors"):
        ConceptVector.load(str(tmp_path / "nowhere.safetensors"))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    vector().save(Location.parse(path))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"joy.safetensors"):
        ConceptVector.load(str(path))
