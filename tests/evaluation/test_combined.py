"""What transplanted vectors are compared with: combinations of vectors, further sources, other systems."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.config import ModelSettings, Recipe
from contrans_dist.errors import UserError
from contrans_dist.evaluation.combined import mean_of, orthogonalised, sum_of
from contrans_dist.evaluation.conditions import further_sources, systems_of
from contrans_dist.evaluation.sides import Sides
from contrans_dist.evaluation.sources import Further, brought
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.sets import make_set

BLOCK, D = 2, 6


def vector(concept: str, seed: int, **changes: Any) -> ConceptVector:
    values = np.zeros((4, D), np.float32)
    values[BLOCK] = np.random.default_rng(seed).standard_normal(D) * (1 + seed)
    hashes = np.array([seed], np.int64)
    return ConceptVector(values, concept, "target", text_hashes=hashes, map_text_hashes=hashes, **changes)


def recipe(conditions: tuple[str, ...], **changes: Any) -> Recipe:
    content = {
        "name": "r", "source": "a", "target": "b", "corpus": {"texts": "c"}, "concepts": {"texts": "d"},
        "evaluations": {"e": {"texts": "f", "conditions": conditions}}, **changes,
    }  # fmt: skip
    return Recipe.model_validate(content)


def test_orthogonalised_is_the_nearest_orthogonal_set_of_the_same_lengths() -> None:
    given = [vector(name, seed) for seed, name in enumerate("abc")]
    made = np.stack([each.at(BLOCK) for each in orthogonalised(given)]).astype(np.float64)
    rows = np.stack([each.at(BLOCK) for each in given]).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    gram = made @ made.T
    np.testing.assert_allclose(gram, np.diag(lengths**2), atol=1e-4)
    # The polar factor is the nearest matrix with orthonormal rows.
    unitary, _ = scipy.linalg.polar(rows / lengths[:, None], side="left")
    np.testing.assert_allclose(made, lengths[:, None] * unitary, atol=1e-4)


def test_vectors_that_are_orthogonal_stay_as_they_are() -> None:
    values = np.zeros((2, 4, D), np.float32)
    values[0, BLOCK, 0], values[1, BLOCK, 3] = 2.0, 5.0
    given = [ConceptVector(each, name, "m") for each, name in zip(values, "ab", strict=True)]
    for before, after in zip(given, orthogonalised(given), strict=True):
        np.testing.assert_allclose(after.values, before.values, atol=1e-6)


def test_sums_and_means_are_written_out() -> None:
    main = {"a": vector("a", 1), "b": vector("b", 2)}
    other = {"a": vector("a", 3), "b": vector("b", 4)}
    made = {"sum": sum_of(main), "averaged": mean_of([main, other])}
    wanted = main["a"].values + main["b"].values
    for concept in "ab":
        np.testing.assert_allclose(made["sum"][concept].values, wanted, atol=1e-6)
        assert made["sum"][concept].concept == concept
        mean = (main[concept].values + other[concept].values) / 2
        np.testing.assert_allclose(made["averaged"][concept].values, mean, atol=1e-6)
    # What any part has seen, the whole has seen.
    assert made["averaged"]["a"].text_hashes.tolist() == [1, 3]
    assert made["sum"]["a"].map_text_hashes.tolist() == [1, 2]
    silent = {**other, "a": replace(other["a"], map_texts_known=False)}
    assert [mean_of([main, silent])[concept].map_texts_known for concept in "ab"] == [False, True]


def test_only_sources_that_a_condition_needs_are_harvested() -> None:
    sources = {"x": {"id": "m"}, "y": {"id": "n", "map": False}, "z": {"id": "o"}}
    some = recipe(("vector", "from:y"), sources=sources)
    assert {name: mapped for name, (_, mapped) in further_sources(some).items()} == {"y": False}
    mean = recipe(("vector", "averaged"), sources=sources)
    assert list(further_sources(mean)) == ["x", "z"]
    own = recipe(("vector", "self-align"), target_instruct="t")
    assert further_sources(own) == {"target-instruct": (ModelSettings(id="t"), False)}
    assert further_sources(recipe(("vector", "self-align"))) == {}
    with pytest.raises(UserError, match="condition from:q: no such entry under `sources`; there are x, y, z"):
        further_sources(recipe(("from:q",), sources=sources))


def test_a_further_source_is_mapped_to_the_block_that_was_chosen_by_trial(tmp_path: Path) -> None:
    """Block 2 of 5, which trials may choose, lies below the third in which R2 chooses its source block."""
    rng = np.random.default_rng(0)
    rows, plan = rng.standard_normal((400, D)), rng.standard_normal((D, D))
    noise = {0: 0.0, 1: 0.0, 2: 0.5, 3: 0.01}  # the first blocks predict best, and are not to be taken
    source = {block: rows + by * rng.standard_normal((400, D)) for block, by in noise.items()}
    corpus = make_set(tmp_path / "corpus", source, 4)
    target = make_set(tmp_path / "target", dict.fromkeys(range(5), rows @ plan), 5)
    groups: dict[str, Any] = {"concept": ["a", "a"], "label": ["positive", "negative"]}
    states = {block: rng.standard_normal((2, D)).astype(np.float32) for block in noise}
    contrast = make_set(tmp_path / "contrast", states, 4, **groups)
    options = {"blocks": "best", "source_blocks": 1, "norm": "keep"}
    some = recipe(("from:x",), sources={"x": {"id": "m"}}, map=options)
    identity = AffineMap(np.eye(D, dtype=np.float32), np.zeros(D, np.float32), "default", "dual", 1, 1, 1.0)
    maps = MapSet("s", "t", 5, "default", {(3, 2): identity}, {}, {})
    made = brought(some, Sides(corpus, target, contrast, contrast), maps, "x", Further(contrast, corpus))
    np.testing.assert_allclose(made["a"].at(2), (states[3][0] - states[3][1]) @ plan, rtol=0.02, atol=0.02)


def test_systems_and_what_they_lack() -> None:
    names = ("align-training", "inst-align", "proxy-tuning")
    full = recipe(names, target_instruct="t", source_base="s")
    settings = EmotionEvaluation(texts="f", conditions=names, instruction="Be calm.")
    align, instructed, proxy = systems_of(full, settings)
    assert (align.model.id, instructed.model.id, instructed.instruction) == ("t", "b", "Be calm.")
    assert [model.id for model in proxy.models] == ["b", "a", "s"]
    bare = recipe(names)
    for name, lacking in zip(names, ("target_instruct", "instruction", "source_base"), strict=True):
        with pytest.raises(UserError, match=f"condition {name}: it needs .*`{lacking}`"):
            systems_of(bare, EmotionEvaluation(texts="f", conditions=(name,)))
