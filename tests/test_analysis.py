"""Analysis reads the planted run folder and must find exactly what was planted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
import pytest
from runfolder import (
    BASE_HITS,
    BLOCK,
    CONCEPTS,
    HITS,
    ITEMS,
    PAIR,
    STRENGTHS,
    TARGET,
    centre,
    write_activations,
    write_evaluation,
    write_run,
)

from contrans_dist.analysis import (
    Vector,
    Verdict,
    best_point,
    concept_states,
    frequent_answers,
    grid_table,
    judge,
    main_condition,
    picture,
    read_evaluation,
    read_run,
    read_vectors,
    score_table,
    sentence,
)
from contrans_dist.artifacts import ActivationSet
from contrans_dist.errors import UserError
from contrans_dist.storage import Location

KEY = "token_acc_negative"
T = TypeVar("T")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return read_run(Location.parse(write_run(tmp_path_factory.mktemp("run"))))


def some(value: T | None) -> T:
    assert value is not None
    return value


def judged(folder: Path, hits: Mapping[str, tuple[int, ...]], p: float | None = None) -> Verdict:
    written = write_evaluation(folder, hits=hits, p_vs_vector=p)
    return some(judge(read_evaluation(Location.parse(written)), KEY))


def test_scores_are_the_planted_ones(run) -> None:
    evaluation = run.evaluations[0]
    assert evaluation.concepts == list(CONCEPTS)
    assert evaluation.strengths == list(STRENGTHS)
    assert evaluation.metrics[0] == KEY
    assert evaluation.conditions == ["vector", "self-align", "random", "shuffled-map", "other-concept"]
    assert some(evaluation.base(KEY)).value == pytest.approx(BASE_HITS / ITEMS)
    for condition, counts in HITS.items():
        curve = evaluation.curve(condition, KEY)
        assert [strength for strength, _ in curve] == [0.0, *STRENGTHS]
        assert [score.value * ITEMS for _, score in curve[1:]] == pytest.approx(counts)
        assert {score.n for _, score in curve} == {ITEMS * len(CONCEPTS)}


def test_strength_zero_of_a_condition_stands_in_for_a_missing_base(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path)
    content = json.loads((folder / "metrics.json").read_text())
    content["conditions"][0]["condition"] = "vector"
    (folder / "metrics.json").write_text(json.dumps(content))
    evaluation = read_evaluation(Location.parse(folder))
    assert some(evaluation.base(KEY)).value == pytest.approx(BASE_HITS / ITEMS)
    assert evaluation.strengths == list(STRENGTHS)


def test_score_table_has_every_score_once(run) -> None:
    evaluation = run.evaluations[0]
    table = score_table(evaluation)
    assert table.num_rows == (1 + len(HITS) * len(STRENGTHS)) * 4 * (1 + len(CONCEPTS))
    fear = table.filter(
        pc.and_(
            pc.and_(pc.equal(table["concept"], "fear"), pc.equal(table["metric"], KEY)),
            pc.and_(pc.equal(table["condition"], "vector"), pc.equal(table["strength"], 2.0)),
        )
    )
    assert fear["value"].to_pylist() == [HITS["vector"][-1] / ITEMS]


def test_best_point_is_the_lowest_of_equal_strengths(run) -> None:
    strength, score = some(best_point(run.evaluations[0], "random", KEY))
    assert (strength, score.value) == (0.5, pytest.approx(1 / ITEMS))


def test_verdict_of_a_clear_effect_names_all_numbers(run) -> None:
    verdict = some(judge(run.evaluations[0], KEY))
    assert (verdict.status, verdict.strength, verdict.score.value) == ("clear", 2.0, pytest.approx(0.8))
    text = sentence(verdict, "block 3 → 4").replace("\u202f", " ")
    assert text == (
        "The transplanted vector raises Token Acc on negative scenarios from 5.0 % to 80 % at strength 2 "
        "(block 3 → 4); a random direction reaches 5.0 %, the shuffled map 10 %, "
        "another concept's vector 5.0 %, the target's own vector 100 %."
    )


def test_verdict_when_a_control_does_as_much(tmp_path: Path) -> None:
    verdict = judged(tmp_path, {"vector": (2, 7, 13, 16), "random": (1, 4, 12, 15)})
    assert verdict.status == "shared"
    text = sentence(verdict).replace("\u202f", " ")
    assert text.startswith("Not distinguishable from its controls")
    assert "a random direction reaches 75 % as well" in text


def test_a_control_counts_at_its_own_best_strength(tmp_path: Path) -> None:
    assert judged(tmp_path, {"vector": (2, 7, 13, 16), "random": (1, 16, 2, 0)}).status == "shared"


def test_paired_test_tells_apart_where_intervals_touch(tmp_path: Path) -> None:
    hits = {"vector": (2, 7, 13, 16), "shuffled-map": (1, 4, 12, 14)}
    assert judged(tmp_path / "a", hits, p=None).status == "shared"
    assert judged(tmp_path / "b", hits, p=0.2).status == "shared"
    assert judged(tmp_path / "c", hits, p=0.001).status == "partly"


def test_half_of_the_rise_in_a_control_is_said(tmp_path: Path) -> None:
    verdict = judged(tmp_path, {"vector": (2, 7, 13, 19), "shuffled-map": (1, 4, 8, 11)})
    assert verdict.status == "partly"
    share = (11 - BASE_HITS) / (19 - BASE_HITS)
    assert f"{round(100 * share)}\u202f% of the rise is not the concept's own" in sentence(verdict)


def test_no_effect_and_no_controls(tmp_path: Path) -> None:
    nothing = judged(tmp_path / "a", {"vector": (1, 1, 1, 1), "random": (1, 1, 1, 1)})
    assert nothing.status == "none"
    assert sentence(nothing).startswith("No effect: ")
    alone = judged(tmp_path / "b", {"vector": (2, 7, 13, 16), "self-align": (5, 14, 19, 20)})
    assert alone.status == "unchecked"
    assert "no control was run" in sentence(alone)


def test_a_metric_that_should_fall(tmp_path: Path) -> None:
    def entry(condition: str, strength: float, value: float) -> dict:
        score = {"value": value, "low": value - 0.03, "high": value + 0.03, "n": 500}
        return {"condition": condition, "strength": strength, "metrics": {"toxic_share": score}}

    points = [
        ("base", 0, 0.5),
        ("vector", 1, 0.4),
        ("vector", 2, 0.2),
        ("random", 1, 0.49),
        ("random", 2, 0.47),
    ]
    conditions = [entry(*point) for point in points]
    content = {"benchmark": "toxigen", "model": "m", "conditions": conditions}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    verdict = some(judge(read_evaluation(Location.parse(tmp_path)), "toxic_share"))
    assert (verdict.status, verdict.strength, verdict.controls[0].strength) == ("clear", 2.0, 2.0)
    assert "lowers Share of toxic continuations from 50\u202f% to 20\u202f% at strength 2" in sentence(
        verdict
    )


def test_main_condition_without_a_vector(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, hits={"lcross-own": (2, 7, 13, 16), "random-map": (1, 1, 1, 1)})
    evaluation = read_evaluation(Location.parse(folder))
    assert main_condition(evaluation) == "lcross-own"
    assert sentence(some(judge(evaluation, KEY))).startswith("The L-Cross vector raises")


def test_answers_are_counted_from_the_results(run) -> None:
    answers = frequent_answers(run.evaluations[0], "vector", 2.0)
    assert [found.concept for found in answers] == list(CONCEPTS)
    assert answers[2].before == [("the", 0.95), ("fear", 0.05)]
    assert answers[2].after == [("fear", 0.8), ("the", 0.2)]


def test_map_header(run) -> None:
    found = run.main_map
    assert found.chosen == PAIR
    assert found.pair["r2_test"] == 0.65
    assert found.r2.values[2][3] == pytest.approx(0.5)
    assert found.r2.values[0][0] is None
    assert found.choice.values[found.choice.source.index(3)][found.choice.target.index(4)] == pytest.approx(
        0.8
    )
    table = grid_table(found.r2, "r2")
    assert table.num_rows == 4 * 6
    assert table["r2"].null_count == 1
    assert found.warnings == ["map corpus, block 3 → 4: fewer rows than ten times the width"]


def test_vectors_carry_their_share_of_the_residual_norm(run) -> None:
    vectors = read_vectors(run.location / "vectors" / "vector", BLOCK)
    assert sorted(vectors) == list(CONCEPTS)
    assert vectors["fear"].share(2.0) == pytest.approx(2 * np.linalg.norm(vectors["fear"].values) / 30.0)
    assert read_vectors(run.location / "vectors" / "vector", 0) == {}


def test_picture_projects_on_the_directions_of_a_full_pca(run) -> None:
    values, labels = some(concept_states(run.harvests["contrast-target"], BLOCK))
    assert values.shape == (90, TARGET["d"])
    vector = read_vectors(run.location / "vectors" / "vector", BLOCK)["fear"]
    shown = picture(values, labels, vector, BLOCK, 2.0)
    both = np.concatenate([values, values + 2.0 * vector.values]).astype(np.float64)
    covariance = np.cov(both.T, bias=True)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    expected = (both - both.mean(axis=0)) @ eigenvectors[:, [-1, -2]]
    drawn = np.concatenate([shown.before, shown.after])
    np.testing.assert_allclose(np.abs(drawn), np.abs(expected), atol=1e-5)
    assert shown.explained == pytest.approx(tuple(eigenvalues[[-1, -2]] / eigenvalues.sum()))
    moved = shown.after - shown.before
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-9)
    assert moved[0, 0] > 0


def test_share_of_states_that_came_near_by_brute_force(run) -> None:
    values, labels = some(concept_states(run.harvests["contrast-target"], BLOCK))
    vector = Vector("fear", centre(CONCEPTS.index("fear"), TARGET["d"]).astype(np.float32), None)
    shown = picture(values, labels, vector, BLOCK, 0.5)
    centres = {
        c: np.mean([v for v, own in zip(values, labels, strict=True) if own == c], axis=0) for c in CONCEPTS
    }

    def near(shift: float) -> float:
        others = [v + shift * vector.values for v, own in zip(values, labels, strict=True) if own != "fear"]
        nearest = [min(CONCEPTS, key=lambda c: float(np.linalg.norm(v - centres[c]))) for v in others]
        return nearest.count("fear") / len(nearest)

    assert shown.near_before == pytest.approx(near(0.0))
    assert shown.near_after == pytest.approx(near(0.5))


def test_no_picture_without_concepts_or_block(tmp_path: Path) -> None:
    plain = ActivationSet.open(Location.parse(write_activations(tmp_path / "a", TARGET, "m", concepts=None)))
    assert concept_states(plain, BLOCK) is None
    with_concepts = ActivationSet.open(
        Location.parse(write_activations(tmp_path / "b", TARGET, "m", CONCEPTS))
    )
    assert concept_states(with_concepts, 99) is None


def test_what_is_not_reportable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing to report; expected a run folder"):
        read_run(Location.parse(tmp_path))
    (tmp_path / "metrics.json").write_text('{"benchmark": "emotions", "model": "m", "conditions": [{}]}')
    with pytest.raises(UserError, match=r"metrics\.json: expected benchmark, model and conditions"):
        read_run(Location.parse(tmp_path))


def test_unfinished_parts_are_named_not_fatal(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "activations/corpus-source/manifest.json").unlink()
    (folder / "evaluations/emotions/metrics.json").unlink()
    found = read_run(Location.parse(folder))
    assert "corpus-source" not in found.harvests
    assert len(found.problems) == 2
    assert found.evaluations == []
