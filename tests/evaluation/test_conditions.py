"""What is steered how: every condition at every strength, and what `random` is."""

from pathlib import Path

import numpy as np
import pytest

from contrans_dist.config import Recipe
from contrans_dist.engine.scoring import BASE as UNSTEERED
from contrans_dist.errors import UserError
from contrans_dist.evaluation.conditions import (
    BASE,
    CONDITIONS,
    condition_of,
    known,
    reference_of,
    vectors_for,
)
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.evaluation.transfers import Fitted, Material
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.commands import run

STRENGTHS = (0.0, 1.0, 2.0)


def _vector(concept: str, row: list[float], block: int = 2) -> ConceptVector:
    values = np.zeros((4, len(row)), np.float32)
    values[block] = row
    return ConceptVector(
        values, concept, model="tiny", method="mean", n_positive=1, n_negative=1, norms={block: 1.0}
    )


@pytest.fixture
def made() -> Steering:
    vectors = {"joy": _vector("joy", [3, 4, 0, 0, 0, 0]), "fear": _vector("fear", [0, 0, 0, 0, 6, 8])}
    return steering({"vector": vectors}, ["vector", "random", "other-concept"])


def test_the_base_and_every_condition_at_every_strength(made: Steering) -> None:
    found = [(each.name, each.strength) for each in made.interventions("joy", STRENGTHS, ["a", "b"])]
    wanted = [(name, a) for name in ("vector", "random", "other-concept") for a in (1.0, 2.0)]
    assert found == [("base", 0.0), *wanted]


def test_every_item_meets_a_random_direction_of_its_own_and_of_the_same_norm(made: Steering) -> None:
    items = [f"item-{i}" for i in range(40)]
    random = [each for each in made.interventions("joy", STRENGTHS, items) if each.name == "random"]
    rows = np.asarray(random[0].vectors[2])
    assert rows.shape == (40, 6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 5.0, rtol=1e-6)
    assert np.abs(np.corrcoef(rows) - np.eye(40)).max() < 0.9999
    np.testing.assert_array_equal(rows, random[1].vectors[2])  # the same at every strength
    # And whatever else is scored beside it.
    (alone,) = (each for each in made.interventions("joy", [1.0], ["item-7"]) if each.name == "random")
    np.testing.assert_array_equal(alone.vectors[2], rows[7:8])
    (feared,) = (each for each in made.interventions("fear", [1.0], ["item-7"]) if each.name == "random")
    assert not np.allclose(np.asarray(feared.vectors[2]) / 10.0, rows[7:8] / 5.0)


def test_controls_are_as_long_as_what_is_under_test() -> None:
    """L-Cross's vector is under test where the transplanted one is not scored, three times as long."""
    given = {
        "vector": {"joy": _vector("joy", [3, 4, 0, 0])},
        "lcross-own": {"joy": _vector("joy", [0, 0, 15, 0])},
        "random-map": {"joy": _vector("joy", [1, 0, 0, 0])},
        "no-map": {"joy": _vector("joy", [0, 2, 0, 0])},
    }
    found = steering(given, ["lcross-own", "random-map", "no-map", "random"])
    norms = {
        each.name: float(np.linalg.norm(np.asarray(each.vectors[2])))
        for each in found.interventions("joy", [1.0], ["a"])
        if each.strength
    }
    assert norms == pytest.approx({"lcross-own": 15, "random-map": 15, "no-map": 2, "random": 15})
    beside = steering(given, ["lcross-own", "random", "vector"]).interventions("joy", [1.0], ["a"])
    (random,) = (each for each in beside if each.name == "random")
    assert np.linalg.norm(np.asarray(random.vectors[2])) == pytest.approx(5)


def test_what_needs_a_second_concept_is_not_made_of_one() -> None:
    recipe = Recipe.model_validate({
        "name": "r", "source": "s", "target": "t", "corpus": {"texts": "c"}, "concepts": {"texts": "d"},
        "map": {"norm": "keep"}, "evaluations": {"e": {"texts": "f"}},
    })  # fmt: skip
    identity = AffineMap(np.eye(4, dtype=np.float32), np.zeros(4, np.float32), "default", "dual", 4, 4, 1.0)
    maps = MapSet("s", "t", 4, "default", {(2, 2): identity}, {}, {})
    one = {"joy": _vector("joy", [1, 0, 0, 0])}
    fitted = Fitted(None, maps)  # type: ignore[arg-type]
    made = vectors_for(Material(recipe, {"source": one, "target": one}, 2, fitted), ["lcross-unrelated"])
    assert list(made) == ["vector"]


def test_the_other_concept_is_the_next_one(made: Steering) -> None:
    other = next(each for each in made.interventions("joy", STRENGTHS, ["a"]) if each.name == "other-concept")
    assert np.asarray(other.vectors[2]).tolist() == [0, 0, 0, 0, 6, 8]


def test_without_vectors_there_is_the_base_alone() -> None:
    assert Steering().interventions("joy", STRENGTHS, ["a", "b"]) == [UNSTEERED]


def test_the_digest_knows_the_seed_of_the_random_directions() -> None:
    given = {"vector": {"joy": _vector("joy", [1, 0, 0, 0])}}
    assert steering(given, ["random"], seed=0).digest() == steering(given, ["random"], seed=0).digest()
    assert steering(given, ["random"], seed=0).digest() != steering(given, ["random"], seed=1).digest()


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["base", "random", "self-align", "vector"], "vector"),
        (["base", "random", "sum", "orthogonal"], "sum"),
        (["base", "lcross-own", "self-modulation", "no-map", "random-map", "random"], "lcross-own"),
        (["base", "align-training", "from:b", "sum"], "from:b"),
        (["base", "random", "proxy-tuning", "inst-align"], "proxy-tuning"),
        (["base", "random", "shuffled-map", "other-concept"], None),
        (["base"], None),
    ],
)
def test_the_condition_under_test(conditions: list[str], expected: str | None) -> None:
    assert reference_of(conditions) == expected


def test_each_condition_is_made_in_one_way() -> None:
    names = [entry.name for entry in CONDITIONS]
    assert len(set(names)) == len(names)
    assert len({str(entry.look) for entry in [*CONDITIONS, BASE]}) == len(names) + 1
    for entry in CONDITIONS:
        assert [entry.vectors, entry.row, entry.system].count(None) == 2, entry.name
        assert entry.no_vector == (entry.system is not None)
        assert not entry.system or (entry.role == "baseline" and entry.requires)
        assert entry.meaning


def test_no_name_runs_another_condition() -> None:
    with pytest.raises(UserError, match=r"^here: no condition 'lcros-own'; did you mean lcross-own\?$"):
        known("lcros-own", "here")
    for name in (".", "base"):
        with pytest.raises(UserError, match=r"expected one of vector, lcross-own, .*, from:<source>$"):
            known(name, "here")
    assert known("vector", "here") is CONDITIONS[0]
    assert condition_of("from:Llama").title == "From Llama"
    with pytest.raises(UserError, match="condition anything: no vectors were made for it"):
        steering({"vector": {"joy": ConceptVector(np.ones((1, 2), np.float32), "joy", "m")}}, ["anything"])


def test_a_recipe_with_an_unknown_condition_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", "demo", "--out", tmp_path / "run", "--set", "evaluations.emotions.conditions=[vectr]"]
    said = run(capsys, *asked).refused(
        "evaluations.", ".conditions: no condition 'vectr'; did you mean vector?"
    )
    assert said
    assert not (tmp_path / "run").exists()
    plan = ["plan", "demo", "--set", "evaluations.emotions.conditions=[vectr]"]
    run(capsys, *plan).refused("no condition 'vectr'")
