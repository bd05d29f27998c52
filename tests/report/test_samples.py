"""Answers, continuations, tokens and states of a planted run: what is shown must be what was planted."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from contrans_dist.evaluation.analysis import MapSummary, Verdict, judge, read_evaluation, read_run
from contrans_dist.report.answers import answers_table, token_table
from contrans_dist.report.examples import examples_of
from contrans_dist.report.maps import map_view
from contrans_dist.report.parts import Studio, Table
from contrans_dist.report.pictures import concept_states, picture, read_vectors
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import MapHeader
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.runextras import write_examples, write_tokens
from tests.runfolder import BLOCK, CONCEPTS, TARGET, centre, write_activations, write_evaluation, write_run

KEY = "token_acc_negative"
T = TypeVar("T")


def some(value: T | None) -> T:
    assert value is not None
    return value


def texts(table: Table | None) -> list[list[str]]:
    """Its cells, with plain blanks."""
    blanks = str.maketrans("\u202f\u00a0", "  ")
    return [[cell.text.translate(blanks) for cell in row] for row in some(table).rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return read_run(Location.parse(write_run(tmp_path_factory.mktemp("run"))))


def test_answers_are_counted_from_the_results(run) -> None:
    evaluation = run.evaluations[0]
    rows = texts(answers_table(evaluation, some(judge(evaluation, KEY))))
    assert [row[0] for row in rows] == list(CONCEPTS)
    assert rows[2][1:] == ["“the” 95 %, “fear” 5 %", "“fear” 80 %, “the” 20 %"]


def test_examples_and_tokens_at_the_strength_of_the_verdict(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path)
    write_examples(folder)
    write_tokens(folder)
    evaluation = read_evaluation(Location.parse(folder))

    def at(strength: float) -> Verdict:
        return some(judge(evaluation, KEY, strength))

    examples = examples_of(evaluation, at(1.0))
    assert [example.group for example in examples] == [f"{c} · negative" for c in CONCEPTS for _ in range(2)]
    assert examples[0].prompt == "Scenario 0 of anger."
    assert [(said.title, said.text) for said in examples[0].said] == [
        ("No steering", "anger 0 as base at 0 would say it."),
        ("Transplanted vector, 1", "anger 0 as vector at 1 would say it."),
        ("Target's own vector, 2", "anger 0 as self-align at 2 would say it."),
    ]
    rows = texts(token_table(evaluation, at(1.0)))
    assert rows == [[concept, f"␣{concept} 19 · ↵ 3", "the 11"] for concept in CONCEPTS]
    assert some(token_table(evaluation, at(1.0))).rows[0][0].note == "40 prompts"
    # Where the verdict's strength was not counted, the greatest stands in.
    assert texts(token_table(evaluation, at(0.5)))[0][1] == "␣anger 38 · ↵ 6"


def test_vectors_carry_their_share_of_the_residual_norm(run) -> None:
    vectors = read_vectors(run.location / "vectors" / "vector", BLOCK)
    assert sorted(vectors) == list(CONCEPTS)
    fear = vectors["fear"]
    assert fear.share(BLOCK, 2.0) == pytest.approx(2 * np.linalg.norm(fear.at(BLOCK)) / 30.0)
    assert read_vectors(run.location / "vectors" / "vector", 0) == {}


def test_picture_projects_on_the_directions_of_a_full_pca(run) -> None:
    values, labels = some(concept_states(run.harvests["contrast-target"], BLOCK))
    assert values.shape == (90, TARGET["d"])
    vector = read_vectors(run.location / "vectors" / "vector", BLOCK)["fear"]
    shown = picture(values, labels, vector, BLOCK, 2.0)
    both = np.concatenate([values, values + 2.0 * vector.at(BLOCK)]).astype(np.float64)
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
    row = centre(CONCEPTS.index("fear"), TARGET["d"]).astype(np.float32)
    vector = ConceptVector(np.tile(row, (BLOCK + 1, 1)), "fear", "m", "mean", 1, 1)
    shown = picture(values, labels, vector, BLOCK, 0.5)
    centres = {
        c: np.mean([v for v, own in zip(values, labels, strict=True) if own == c], axis=0) for c in CONCEPTS
    }

    def near(shift: float) -> float:
        others = [v + shift * row for v, own in zip(values, labels, strict=True) if own != "fear"]
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


@pytest.mark.parametrize(
    ("criterion", "higher", "head", "best"),
    [
        ("toxic_share", False, "Share of toxic continuations", ["1 → 2", "1", "10.0 %", "chosen"]),
        ("token_acc_negative", True, "Token Acc on negative scenarios", ["0 → 2", "2", "90.0 %", ""]),
        ("loss", True, "loss", ["0 → 2", "2", "0.90", ""]),
    ],
)
def test_pairs_that_were_tried_are_read_by_the_metric_that_chose_them(
    criterion: str, higher: bool, head: str, best: list[str]
) -> None:
    tried: list[dict[str, Any]]
    tried = [{"source": 0, "target": 2, "strength": 2, "score": 0.9},
             {"source": 1, "target": 2, "strength": 1, "score": 0.1}]  # fmt: skip
    pair = {"source": 1, "target": 2, "side": "d", "n_fit": 8, "rank": 4}
    selection = {"criterion": criterion, "higher": higher, "candidates": tried, "chosen": [1, 2],
                 "best": tried[1]}  # fmt: skip
    content = {"protocol": "default", "source_model": "a", "target_model": "b", "n_target_blocks": 4,
               "pairs": [pair], "selection": selection}  # fmt: skip

    def shown() -> Table:
        header = MapHeader.model_validate(content)
        return some(map_view(MapSummary("corpus", header), [], Studio()).candidates)

    assert (shown().head[2], texts(shown())[0]) == (head, best)
    # What is over the budget comes last, whatever its score; so does what no perplexity is known of.
    for perplexity in (13.0, None):
        tried[0]["perplexity"], tried[1]["perplexity"] = perplexity, 11.0
        selection |= {"budget": 1.2, "base_perplexity": 10.0}
        chosen, other = shown().rows
        assert [cell.text for cell in chosen][3:] == ["11.00", "chosen"]
        assert (other[3].note, other[3].kind) == ("over the budget", "warn")
