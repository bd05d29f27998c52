"""Which condition is under test, what it is tested against, and at which strength each one is read."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from contrans_dist.benchmarks import metric_of
from contrans_dist.evaluation.analysis import (
    best_point,
    judge,
    main_condition,
    read_evaluation,
    read_in_run,
    read_run,
    score_table,
    sentence,
)
from contrans_dist.store.location import Location
from tests.evaluation.test_analysis import KEY, some
from tests.runextras import write_scores
from tests.runfolder import write_evaluation


def with_tests(folder: Path, cell: tuple[str, float], **p_values: float) -> Path:
    """An evaluation whose file says that `cell` was tested against others in its heading metric."""
    content = json.loads((folder / "metrics.json").read_text())
    content["reference"] = cell[0]
    for entry in content["conditions"]:
        if (entry["condition"], entry["strength"]) == cell:
            name = next(iter(entry["metrics"]))
            entry["p_vs"] = {other.replace("_", "-"): {name: p} for other, p in p_values.items()}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_tests_are_read_in_the_row_of_the_condition_under_test(tmp_path: Path) -> None:
    # Intervals touch everywhere; only the tests at strength 2, where the effect is best, can tell apart.
    scores = {
        ("base", 0.0): {"mc1": 0.30}, ("lcross-own", 1.0): {"mc1": 0.52}, ("lcross-own", 2.0): {"mc1": 0.56},
        ("random", 4.0): {"mc1": 0.49}, ("no-map", 2.0): {"mc1": 0.50}, ("inst-align", 1.0): {"mc1": 0.51},
    }  # fmt: skip
    folder = write_scores(tmp_path, "truthfulqa", scores)
    with_tests(folder, ("lcross-own", 1.0), random=0.9, no_map=0.9, inst_align=0.9)
    first = some(judge(read_evaluation(Location.parse(folder)), "mc1"))
    assert first.status == "shared"
    assert {rival.p for rival in [*first.controls, *first.references]} == {None}
    with_tests(folder, ("lcross-own", 2.0), random=0.01, no_map=0.02, inst_align=0.03)
    verdict = some(judge(read_evaluation(Location.parse(folder)), "mc1"))
    assert (verdict.effect.name, verdict.strength, verdict.status) == ("lcross-own", 2.0, "partly")
    assert {rival.condition.name: rival.p for rival in [*verdict.controls, *verdict.references]} == {
        "random": 0.01, "no-map": 0.02, "inst-align": 0.03,
    }  # fmt: skip


def test_a_control_is_tested_where_it_is_read(tmp_path: Path) -> None:
    """A random direction does as much at strength 1 and breaks the model at 2, where the vector is best."""
    scores = {
        ("base", 0.0): {"mc1": 0.30}, ("vector", 1.0): {"mc1": 0.55}, ("vector", 2.0): {"mc1": 0.56},
        ("random", 1.0): {"mc1": 0.545}, ("random", 2.0): {"mc1": 0.10},
    }  # fmt: skip
    folder = with_tests(write_scores(tmp_path, "truthfulqa", scores), ("vector", 2.0), random=1e-9)
    content = json.loads((folder / "metrics.json").read_text())
    content["conditions"][2]["p_vs_elsewhere"] = {"random": {"1": {"mc1": 0.8}}}
    (folder / "metrics.json").write_text(json.dumps(content))
    verdict = some(judge(read_evaluation(Location.parse(folder)), "mc1"))
    (rival,) = verdict.controls
    assert (verdict.strength, rival.strength, rival.p, rival.told_apart) == (2.0, 1.0, 0.8, False)
    assert verdict.status == "shared"


def test_the_condition_under_test_is_the_one_that_the_file_names(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path)
    assert main_condition(read_evaluation(Location.parse(folder))) == "vector"
    content = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**content, "reference": "self-align"}))
    evaluation = read_evaluation(Location.parse(folder))
    assert main_condition(evaluation) == "self-align"
    assert some(judge(evaluation, KEY)).effect.name == "self-align"


def write_costed(folder: Path, chosen: Mapping[str, float] | None = None) -> Path:
    """Two evaluations and the perplexity under both: 12, and the strength more under every condition."""
    scores = {
        ("base", 0.0): {"mc1": 0.2}, ("vector", 1.0): {"mc1": 0.4}, ("vector", 2.0): {"mc1": 0.5},
        ("vector", 3.0): {"mc1": 0.3}, ("self-align", 1.0): {"mc1": 0.6}, ("self-align", 3.0): {"mc1": 0.5},
        ("random", 5.0): {"mc1": 0.2}, ("inst-align", 1.0): {"mc1": 0.3},
    }  # fmt: skip
    if chosen:
        scores = {cell: score for cell, score in scores.items() if chosen.get(cell[0], cell[1]) == cell[1]}
    swept = ("vector", "self-align", "random", "sum", "averaged")
    costs = {(name, at): {"perplexity": 12 + at} for name in swept for at in (1.0, 2.0, 3.0)}
    costs |= {("base", 0.0): {"perplexity": 12.0}, ("inst-align", 1.0): {"perplexity": 11.0}}
    later = {("base", 0.0): {"mc1": 0.2}, ("vector", 3.0): {"mc1": 0.9}, ("sum", 2.0): {"mc1": 0.3}}
    write_scores(folder / "evaluations/perplexity", "perplexity", costs)
    write_scores(folder / "evaluations/main", "truthfulqa", scores)
    write_scores(folder / "evaluations/later", "truthfulqa", later)
    (folder / "recipe.yaml").write_text("evaluations: {perplexity: {}, main: {}, later: {}}")
    if chosen:
        search = {"criterion": "mc1", "higher": True, "candidates": [], "chosen": chosen}
        (folder / "evaluations/main/search.json").write_text(json.dumps(search))
    return folder


@pytest.mark.parametrize("chosen", [None, {"vector": 3.0, "self-align": 1.0, "random": 3.0}])
def test_a_cost_is_read_where_the_runs_main_evaluation_reports_each_condition(
    tmp_path: Path, chosen: dict[str, float] | None
) -> None:
    folder = write_costed(tmp_path, chosen)
    cost = read_run(Location.parse(folder)).evaluations[0]
    assert cost.name == "perplexity"
    vector = 3.0 if chosen else 2.0
    expected = {
        "vector": vector, "self-align": 1.0,
        "random": 3.0,  # 5, or 3 where chosen: only the latter was scored here, and is the greatest too
        "sum": 2.0,  # of the first evaluation that has it
        "averaged": 3.0,  # in none: the greatest
        "inst-align": 1.0,
    }  # fmt: skip
    points = {name: some(best_point(cost, name, "perplexity")) for name in expected}
    assert {name: point.strength for name, point in points.items()} == expected
    assert points["inst-align"][1].value == 11.0
    assert {name: points[name].way for name in ("vector", "sum", "averaged")} == {
        "vector": "reported", "sum": "reported", "averaged": "greatest",
    }  # fmt: skip
    verdict = some(judge(cost, "perplexity"))
    assert (verdict.status, verdict.strength, verdict.reported_by) == ("cost", vector, "main")
    text = sentence(verdict, "block 3 → 4")
    assert text.startswith(
        f"Under the transplanted vector at strength {vector:g} (block 3 → 4), as main reports it, Perplexity "
        f"goes from 12.00 to {12 + vector:.2f}"
    )
    assert "; the target's own vector at 1: 13.00, 1.08 times" in text
    assert "; the instruction: 11.00, 0.92 times" in text
    # The folder of the evaluation is read as its run reads it; without a run there is nothing to go by.
    place = Location.parse(folder / "evaluations/perplexity")
    assert some(judge(read_in_run(place), "perplexity")) == verdict
    assert some(judge(read_evaluation(place), "perplexity")).strength == 3.0


def test_a_cost_goes_with_the_evaluation_that_steers_the_same_concepts(tmp_path: Path) -> None:
    folder = write_costed(tmp_path)  # `main` reports 2, `later` 3
    (folder / "recipe.yaml").write_text(
        "evaluations: {perplexity: {concepts: [kind]}, main: {concepts: [truth]}, later: {concepts: [kind]}}"
    )
    cost = read_run(Location.parse(folder)).evaluations[0]
    assert some(best_point(cost, "vector", "perplexity")).strength == 3.0
    # What only the other one has is still read there.
    assert some(best_point(cost, "self-align", "perplexity")).strength == 1.0


@pytest.mark.parametrize("ends", [(None, None), (0.5, 0.5)])
def test_without_an_interval_nothing_is_told_apart(tmp_path: Path, ends: tuple[float | None, ...]) -> None:
    folder = write_scores(
        tmp_path, "truthfulqa",
        {("base", 0.0): {"mc1": 0.1}, ("vector", 1.0): {"mc1": 0.9}, ("random", 1.0): {"mc1": 0.2}},
    )  # fmt: skip
    content = json.loads((folder / "metrics.json").read_text())
    for entry in content["conditions"]:
        entry["metrics"]["mc1"] |= {"low": ends[0], "high": ends[1], "n": 1}
    (folder / "metrics.json").write_text(json.dumps(content))
    evaluation = read_evaluation(Location.parse(folder))
    score = some(evaluation.score("vector", 1.0, "mc1"))
    assert (score.interval, score.holds(0.9), score.top) == (None, None, 0.9)
    assert score_table(evaluation)["low"].null_count == 3
    verdict = some(judge(evaluation, "mc1"))
    assert (verdict.status, verdict.controls[0].told_apart) == ("untested", False)
    assert sentence(verdict).startswith("With neither interval nor test, nothing can be told apart: ")
    # A test is all that there is to go by.
    content["conditions"][1] |= {"p_vs_base": {"mc1": 0.01}, "p_vs": {"random": {"mc1": 0.2}}}
    (folder / "metrics.json").write_text(json.dumps(content))
    assert some(judge(read_evaluation(Location.parse(folder)), "mc1")).status == "shared"


def test_a_task_of_the_harness_says_which_way_is_better(tmp_path: Path) -> None:
    scores = {
        ("base", 0.0): {"loss": 2.0, "acc": 0.5, "t/loss": 2.0, "u/loss": 2.0},
        ("vector", 1.0): {"loss": 1.0, "acc": 0.6, "t/loss": 1.0, "u/loss": 3.0},
        ("vector", 2.0): {"loss": 4.0, "acc": 0.9, "t/loss": 4.0, "u/loss": 1.0},
        ("random", 1.0): {"loss": 1.9, "acc": 0.5, "t/loss": 1.9, "u/loss": 1.9},
    }
    tasks = {
        "t": {"higher_is_better": {"loss": False, "acc": True, "perplexity": False}},
        "u": {"higher_is_better": {"loss": True}},
        "g": {"higher_is_better": None},
    }
    folder = write_scores(tmp_path, "lm-eval", scores, tasks=tasks)
    evaluation = read_evaluation(Location.parse(folder))
    assert evaluation.metrics == ["loss", "acc"]  # as the task lists them
    directions = {key: evaluation.metric(key).higher for key in ("loss", "acc", "t/loss", "fear/u/loss")}
    assert directions == {"loss": False, "acc": True, "t/loss": False, "fear/u/loss": True}
    assert some(best_point(evaluation, "vector", "loss")).strength == 1.0
    assert some(best_point(evaluation, "vector", "u/loss")).strength == 1.0
    assert some(best_point(evaluation, "vector", "acc")).strength == 2.0
    assert "lowers loss from 2.00 to 1.00 at strength 1" in sentence(some(judge(evaluation, "loss")))
    perplexity = evaluation.metric("perplexity,filter")
    assert (perplexity.higher, perplexity.cost) == (False, False)
    assert metric_of("perplexity").cost


def test_a_value_at_its_end_says_that_it_cannot_rise(tmp_path: Path) -> None:
    scores = {("base", 0.0): {"mc1": 1.0}, ("vector", 1.0): {"mc1": 0.98}, ("random", 1.0): {"mc1": 1.0}}
    verdict = some(
        judge(read_evaluation(Location.parse(write_scores(tmp_path, "truthfulqa", scores))), "mc1")
    )
    assert verdict.status == "none"
    assert "without steering it is 100\u202f% and cannot rise." in sentence(verdict)


def test_a_map_of_the_concepts_own_prompts_is_no_transfer(tmp_path: Path) -> None:
    for condition, told in (("lcross-own", True), ("vector", False)):
        scores = {
            ("base", 0.0): {"mc1": 0.1}, (condition, 1.0): {"mc1": 0.9}, ("random", 1.0): {"mc1": 0.1},
        }  # fmt: skip
        folder = write_scores(tmp_path / condition, "truthfulqa", scores)
        verdict = some(judge(read_evaluation(Location.parse(folder)), "mc1"))
        assert verdict.status == "clear"
        assert sentence(verdict).endswith("no transfer.") == told
