"""Analysis reads the planted run folder and must find exactly what was planted."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pyarrow.compute as pc
import pytest
import yaml

from contrans_dist.benchmarks import about, metric_of
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import (
    Run,
    Verdict,
    beside,
    best_point,
    block_rows,
    companion_scores,
    companions_of,
    judge,
    main_condition,
    read_evaluation,
    read_run,
    score_table,
    sentence,
    sweep_of,
)
from contrans_dist.evaluation.analysis.published import Published, published_for
from contrans_dist.store.location import Location
from contrans_dist.store.run_recipe import RunRecipe
from tests.runextras import (
    CHOSEN,
    write_perplexity,
    write_scores,
    write_toxigen,
    write_whole_run,
)
from tests.runfolder import (
    BASE_HITS,
    CONCEPTS,
    HITS,
    ITEMS,
    PAIR,
    STRENGTHS,
    write_evaluation,
    write_run,
)

KEY = "token_acc_negative"
T = TypeVar("T")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return read_run(Location.parse(write_run(tmp_path_factory.mktemp("run"))))


def some(value: T | None) -> T:
    assert value is not None
    return value


def judged(folder: Path, hits: Mapping[str, tuple[int, ...]], p: float | None = None) -> Verdict:
    written = write_evaluation(folder, hits=hits, p_value=p)
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
    strength, score, _ = some(best_point(run.evaluations[0], "random", KEY))
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


def test_map_header(run) -> None:
    found = run.main_map
    choice = some(found.choice)
    assert found.chosen == PAIR
    assert found.pair.r2_test == 0.65
    assert found.r2.values[2][3] == pytest.approx(0.5)
    assert found.r2.values[0][0] is None
    assert choice.values[choice.source.index(3)][choice.target.index(4)] == pytest.approx(0.8)
    table = block_rows(found.r2, "r2")
    assert table.num_rows == 4 * 6
    assert table["r2"].null_count == 1
    assert found.warnings == ["map corpus, block 3 → 4: fewer rows than ten times the width"]


def test_what_is_not_reportable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing to report; expected a run folder"):
        read_run(Location.parse(tmp_path))
    (tmp_path / "metrics.json").write_text('{"benchmark": "emotions", "model": "m", "conditions": [{}]}')
    with pytest.raises(UserError, match=r"metrics\.json: missing key .conditions.0.condition"):
        read_run(Location.parse(tmp_path))


def test_unfinished_parts_are_named_not_fatal(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "activations/corpus-source/manifest.json").unlink()
    (folder / "evaluations/emotions/metrics.json").unlink()
    found = read_run(Location.parse(folder))
    assert "corpus-source" not in found.harvests
    assert len(found.problems) == 2
    assert found.evaluations == []


def test_what_an_earlier_recipe_left_is_told_and_not_shown(tmp_path: Path) -> None:
    folder = write_whole_run(tmp_path)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    del recipe["evaluations"]["emotions"], recipe["evaluations"]["perplexity"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    found = read_run(Location.parse(folder))
    assert [evaluation.name for evaluation in found.evaluations] == ["truthfulqa", "toxigen"]
    assert found.evaluations[1].reported["vector"].evaluation == "truthfulqa"
    assert found.problems == [
        f"{Location.parse(folder / 'evaluations' / name)}: left out, the recipe does not name it"
        for name in ("emotions", "perplexity")
    ]
    # Put together by hand, without a recipe, all of it is shown.
    (folder / "recipe.yaml").unlink()
    found = read_run(Location.parse(folder))
    assert (len(found.evaluations), found.problems) == (4, [])


ROLES = {
    "self-modulation": "yardstick", "align-training": "baseline", "inst-align": "baseline",
    "proxy-tuning": "baseline", "self-align": "yardstick", "sum": "variant", "orthogonal": "variant",
    "averaged": "variant", "from:base": "variant", "anything": "variant",
}  # fmt: skip


def test_variants_and_references_never_decide_the_verdict(tmp_path: Path) -> None:
    others = dict.fromkeys(ROLES, (20, 20, 20, 20))
    folder = write_evaluation(tmp_path, hits={"vector": (2, 7, 13, 16), "random": (1, 1, 1, 1), **others})
    verdict = some(judge(read_evaluation(Location.parse(folder)), KEY))
    assert verdict.status == "clear"
    assert {rival.condition.name for rival in verdict.references} == set(ROLES)


METRICS = {
    "emotions": ["logit_acc_positive", "token_acc_negative", "logit_acc_negative"],
    "truthfulqa": ["mc2_sum", "mc2", "mc1_per_token", "mc1_sum", "mc1", "mc2_per_character"],
    "behaviours": ["letter_mass", "match_probability_plain", "match_probability_A", "match_probability"],
    "toxigen": ["empty_share", "validation_toxic_share", "toxic_share", "repetition"],
    "perplexity": ["perplexity"],
}


@pytest.mark.parametrize("benchmark", METRICS)
def test_the_headline_stands_before_the_other_metrics(tmp_path: Path, benchmark: str) -> None:
    scores = {("base", 0.0): dict.fromkeys(METRICS[benchmark], 0.5)}
    evaluation = read_evaluation(Location.parse(write_scores(tmp_path, benchmark, scores)))
    heading = about(benchmark).headline()
    others = [name for name in METRICS[benchmark] if name != heading]
    assert evaluation.metrics == [heading, *others]
    assert evaluation.metric(heading).higher == (benchmark not in ("toxigen", "perplexity"))
    for name in METRICS[benchmark]:
        assert metric_of(name).title != name


def test_metrics_of_other_tools_keep_their_names() -> None:
    assert metric_of("acc").title == "Accuracy"
    assert metric_of("gsm8k/exact_match,strict-match").title == "Exact match (strict-match)"
    assert metric_of("match_probability_C").title.endswith("where it is C")
    assert (metric_of("mystery").title, metric_of("mystery").percent) == ("mystery", False)


def test_a_cost_is_read_at_the_greatest_strength(tmp_path: Path) -> None:
    evaluation = read_evaluation(Location.parse(write_perplexity(tmp_path)))
    verdict = some(judge(evaluation, "perplexity"))
    assert (verdict.status, verdict.strength, verdict.score.value) == ("cost", 3.0, 15.0)
    assert sentence(verdict) == (
        "Under the transplanted vector at strength 3, Perplexity goes from 12.00 to 15.00, 1.25 times; "
        "a random direction: 12.30, 1.03 times; the target's own vector: 13.50, 1.12 times."
    )


def test_systems_do_not_add_to_the_strengths(tmp_path: Path) -> None:
    scores = {("base", 0.0): {"mc1": 0.2}, ("vector", 2.0): {"mc1": 0.4}, ("inst-align", 1.0): {"mc1": 0.3}}
    evaluation = read_evaluation(Location.parse(write_scores(tmp_path, "truthfulqa", scores)))
    assert evaluation.strengths == [2.0]
    assert not evaluation.is_sweep
    assert [at for at, _ in evaluation.curve("inst-align", "mc1")] == [0.0, 1.0]


def test_search_and_its_sweeps(tmp_path: Path) -> None:
    evaluation = read_evaluation(Location.parse(write_toxigen(tmp_path)))
    search = some(evaluation.search)
    assert (search.chosen, search.limit) == (CHOSEN, pytest.approx(13.2))
    assert len(search.candidates) == 6
    validation = some(sweep_of(evaluation, "validation"))
    assert some(validation.score("vector", 1.0, "validation_toxic_share")).value == 0.6
    run = Run(evaluation.location, evaluations=[evaluation])
    companions = companions_of(run, evaluation)
    points = {"base": 0.0, "vector": 1.5, "self-align": 1.0, "align-training": 1.0}
    found = {name: score.value for name, score in companion_scores(companions, points).items()}
    assert found == {"base": 12.0, "vector": 13.0, "self-align": 12.2}
    # Another text on which more of them were measured stands for all: values of two texts do not compare.
    other = {
        ("base", 0.0): 20.0,
        ("vector", 1.5): 21.0,
        ("self-align", 1.0): 22.0,
        ("align-training", 1.0): 23.0,
    }
    folder = write_scores(
        tmp_path / "more", "perplexity", {cell: {"perplexity": value} for cell, value in other.items()}
    )
    more = read_evaluation(Location.parse(folder))
    found = {name: score.value for name, score in companion_scores([*companions, more], points).items()}
    assert found == {name: value for (name, _), value in other.items()}
    assert companion_scores([], points) == {}
    (tmp_path / "search.json").write_text('{"criterion": 1}')
    with pytest.raises(UserError, match=r"search\.json: criterion: expected a valid string"):
        read_evaluation(Location.parse(tmp_path))


def published_of(content: dict, run: str) -> Published | None:
    return published_for(RunRecipe.model_validate({"published": content}), run)


def test_published_beside_ours_at_the_best_strength_over_all_groups(tmp_path: Path) -> None:
    scores = {
        ("base", 0.0): {"mc1": 0.2, "g/mc1": 0.1},
        ("vector", 1.0): {"mc1": 0.5, "g/mc1": 0.3},
        ("vector", 2.0): {"mc1": 0.4, "g/mc1": 0.9},
    }
    evaluation = read_evaluation(Location.parse(write_scores(tmp_path / "e", "truthfulqa", scores)))
    values = {"e": {"vector": {"mc1": 0.47, "g/mc1": 0.2}, "base": {"g/mc1": 0.12}, "sum": {"mc1": 1.0}}}
    published = some(published_of({"source": "s", "values": {"run": values}}, "run"))
    figures = some(published.figures("e"))
    rows = {(row.condition, row.metric): row for row in beside(figures, evaluation)}
    ours = {key: some(row.ours) for key, row in rows.items() if row.ours}
    assert (ours["vector", "mc1"].strength, rows["vector", "mc1"].agrees) == (1.0, True)
    assert ours["vector", "g/mc1"].score.value == 0.3
    assert rows["vector", "g/mc1"].agrees is False
    assert (ours["base", "g/mc1"].strength, rows["base", "g/mc1"].agrees) == (0.0, True)
    assert (rows["sum", "mc1"].ours, rows["sum", "mc1"].agrees) == (None, None)
    assert published_for(RunRecipe(), "run") is None


def test_figures_of_another_run_stand_in_where_a_run_has_none_of_its_own() -> None:
    values = {
        "one": {"other": {"vector": {"mc1": 0.1}}},
        "two": {"e": {"vector": {"mc1": 0.2}}},
        "three": {"e": {"vector": {"mc1": 0.3}}, "f": {}},
    }
    found = {
        run: some(published_of({"source": "s", "values": values}, run)) for run in ("all", "one", "three")
    }
    stand_in = some(found["all"].figures("e"))
    assert (stand_in.run, stand_in.of_this_run, stand_in.title) == ("two", False, "Paper (two)")
    assert stand_in.values == {"vector": {"mc1": 0.2}}
    own = some(found["three"].figures("e"))
    assert (own.run, own.of_this_run, own.title, own.values) == (
        "three",
        True,
        "Paper",
        {"vector": {"mc1": 0.3}},
    )
    assert found["one"].figures("e") is None  # it has figures of its own, but not of this evaluation
    assert found["three"].figures("f") is None
    assert found["all"].figures("g") is None


def test_reading_and_reporting_load_no_torch() -> None:
    code = (
        "import contrans_dist.evaluation.analysis, contrans_dist.report, sys\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
