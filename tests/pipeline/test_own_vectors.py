"""A recipe without source and corpus: a bundled model's own vectors, from their texts to the page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from contrans_dist import demo
from contrans_dist.config import Recipe
from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.evaluation.conditions import systems_of
from contrans_dist.evaluation.transfers import Material
from contrans_dist.pipeline.analyses import write_analyses
from contrans_dist.pipeline.inputs import harvested
from contrans_dist.pipeline.runs import run_recipe
from contrans_dist.report import write_report
from contrans_dist.store.location import Location
from tests import commands
from tests.commands import Ended
from tests.runfolder import write_map
from tests.sets import make_set, write_lines

Contrans = Callable[..., Ended]
SCENE = "Scenario: {text}\nThe emotion of the above scenario is"
SIDES = {"happiness": ("happiness", "sadness"), "fear": ("fear", "anger")}
"""Concept to the emotions of its positive and negative texts."""


def _scenes(folder: Path, name: str, emotion: str, most: int) -> list[dict[str, str]]:
    rows = map(json.loads, (folder / name).open())
    return [row for row in rows if row["concept"] == emotion][:most]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Forty contrast texts, twelve scenarios and twelve to choose on, of each of two concepts."""
    bundled, folder = tmp_path_factory.mktemp("bundled"), tmp_path_factory.mktemp("texts")
    demo.write_texts(bundled)
    texts = {}
    for concept, emotions in SIDES.items():
        rows = [
            {"text": row["text"], "label": label}
            for label, emotion in zip(("positive", "negative"), emotions, strict=True)
            for row in _scenes(bundled, "contrast.jsonl", emotion, 20)
        ]
        texts[concept] = write_lines(folder / f"{concept}.jsonl", rows)
    scored = {
        name: write_lines(
            folder / f"{name}.jsonl",
            [row for concept in SIDES for row in _scenes(bundled, f"{name}.jsonl", concept, 12)],
        )
        for name in ("evaluation", "validation")
    }
    prose = folder / "prose.txt"
    prose.write_text(" ".join(row["text"] for row in _scenes(bundled, "evaluation.jsonl", "surprise", 20)))
    return {
        "name": "emotions-of-its-own",
        "target": "demo:target",
        "concepts": {"texts": texts, "template": SCENE},
        "map": {"blocks": "best"},
        "evaluations": {
            "emotions": {
                "texts": scored["evaluation"],
                "validation": scored["validation"],
                "template": SCENE,
                "strengths": [0, 1, 2],
                "search": {"perplexity": str(prose), "budget": 10, "limit": 300},
            }
        },
        "cluster": {"actors": 1},
    }


@pytest.fixture(scope="module")
def recipe(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def run(in_process: None, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "own"
    run_recipe(load_recipe(recipe), Location.parse(out))
    return out


@pytest.fixture
def contrans(capsys: pytest.CaptureFixture[str]) -> Contrans:
    return lambda *arguments: commands.run(capsys, *arguments)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _scores(metrics: dict[str, Any]) -> dict[tuple[str, float], float]:
    return {
        (entry["condition"], entry["strength"]): entry["metrics"]["token_acc_negative"]["value"]
        for entry in metrics["conditions"]
    }


@pytest.mark.parametrize("name", ["emotions", "other"])
def test_what_blocks_cannot_be_chosen_on_is_told_before_the_harvest(
    content: dict[str, Any], contrans: Contrans, tmp_path: Path, name: str
) -> None:
    """Validation items that are scored, by the evaluation whose they are or by another."""
    given = content["evaluations"]
    emotions = {**given["emotions"], "search": None}
    scoring = {**(emotions if name == "emotions" else {}), "texts": emotions["validation"]}
    (tmp_path / "wrong.yaml").write_text(
        yaml.safe_dump({**content, "evaluations": {"emotions": emotions, name: scoring}})
    )
    ended = contrans("run", str(tmp_path / "wrong.yaml"), "--out", str(tmp_path / "run"))
    assert ended.code == 2
    assert f"48 of 48 items are scored too{' by evaluations.other' * (name == 'other')}, such as" in ended.err
    assert not (tmp_path / "run/activations").exists()


def test_the_target_alone_is_harvested_and_steered_with_its_controls(run: Path) -> None:
    assert [path.name for path in (run / "activations").iterdir()] == ["contrast-target"]
    assert sorted(path.name for path in (run / "vectors").iterdir()) == ["self-align", "target"]
    assert not (run / "maps").exists()
    assert [stage["name"] for stage in _json(run / "run.json")["stages"]] == [
        "harvest", "refine", "choose", "evaluate", "report",
    ]  # fmt: skip
    metrics = _json(run / "evaluations/emotions/metrics.json")
    assert metrics["reference"] == "self-align"
    scores = _scores(metrics)
    assert {name for name, _ in scores} == {"base", "self-align", "random", "other-concept"}
    own = next(score for (name, _), score in scores.items() if name == "self-align")
    assert own >= 0.8
    assert all(score <= 0.1 for (name, _), score in scores.items() if name != "self-align")
    assert metrics["leak"]["overlap_vector"] == metrics["leak"]["overlap_map"] == 0


def test_a_placement_for_harvests_alone_leaves_steering_to_auto(
    in_process: None, run: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    """Blocks and strengths are chosen too; all comes out as where the model was never streamed."""
    streamed = {**content, "cluster": {"actors": 1, "placement": "stream"}}
    run_recipe(Recipe.model_validate(streamed), Location.parse(tmp_path / "run"))
    manifest = _json(tmp_path / "run/activations/contrast-target/manifest.json")
    assert manifest["throughput"]["placement"] == "stream"
    metrics, chosen = "evaluations/emotions/metrics.json", "selection/selection.json"
    assert _scores(_json(tmp_path / "run" / metrics)) == _scores(_json(run / metrics))
    assert _json(tmp_path / "run" / chosen)["chosen"] == _json(run / chosen)["chosen"]


def test_the_block_is_the_best_of_the_upper_ones_on_validation_items(run: Path) -> None:
    choice = _json(run / "selection/selection.json")
    tried = {(trial["block"], trial["strength"]): trial for trial in choice["candidates"]}
    assert list(tried) == [(block, 2.0) for block in (2, 3, 4, 5)]  # of 6, and every second strength
    validation = _json(run / "selection/validation/metrics.json")
    cost = _json(run / "selection/perplexity/metrics.json")
    perplexities = {
        (entry["condition"], entry["strength"]): entry["metrics"]["perplexity"]["value"]
        for entry in cost["conditions"]
    }
    scores = _scores(validation)
    for (block, strength), trial in tried.items():
        assert trial["score"] == scores[str(block), strength]
        assert trial["perplexity"] == perplexities[str(block), strength]
    allowed = [trial for trial in tried.values() if trial["perplexity"] <= 10 * perplexities["base", 0.0]]
    assert tried[choice["chosen"], choice["strength"]]["score"] == max(trial["score"] for trial in allowed)
    assert _json(run / "evaluations/emotions/metrics.json")["block"] == choice["chosen"]


def test_the_page_speaks_of_the_targets_own_vector_and_of_no_map(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "The target&#39;s own vector raises Token Acc on negative scenarios from" in page
    assert "transplant" not in page.lower()
    assert "fitted the map" not in page
    choice = _json(run / "selection/selection.json")
    assert f"Block {choice['chosen']}, of 4 that were tried" in page
    assert "Every block and strength that was tried, on validation items." in page
    assert "Asked for and not run" not in page


def test_an_interrupted_run_goes_on_and_a_finished_one_has_nothing_to_do(
    run: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contrans_dist.evaluation.driver
    import contrans_dist.harvest.missing

    for room in (contrans_dist.evaluation.driver, contrans_dist.harvest.missing):
        monkeypatch.setattr(room, "run_tasks", None)  # an actor must not be started
    out = tmp_path / "again"
    shutil.copytree(run, out)
    # As one leaves it that was killed after its last evaluation.
    for name in ("report.html", "run.json", "selection/selection.json"):
        (out / name).unlink()
    run_recipe(load_recipe(recipe), Location.parse(out))
    metrics, chosen = "evaluations/emotions/metrics.json", "selection/selection.json"
    assert _json(out / metrics) == _json(run / metrics)
    for key in ("candidates", "chosen", "strength"):
        assert _json(out / chosen)[key] == _json(run / chosen)[key]
    assert (out / "report.html").exists()


def test_what_a_run_keeps_of_its_recipe_is_the_recipe(run: Path, recipe: Path) -> None:
    kept = load_recipe(run / "recipe.yaml")
    assert kept == load_recipe(recipe)
    assert kept.evaluations["emotions"].conditions == ("self-align", "random", "other-concept")
    assert set(yaml.safe_load((run / "recipe.yaml").read_text())["map"]) == {"blocks"}
    assert Recipe.model_validate(kept.model_dump(mode="json")) == kept


def test_the_same_by_hand(run: Path, content: dict[str, Any], tmp_path: Path, contrans: Contrans) -> None:
    """harvest, refine and evaluate by their commands, at the block and strength that the run chose."""
    block = str(_json(run / "selection/selection.json")["chosen"])
    strength = _json(run / "evaluations/emotions/search.json")["chosen"]["self-align"]
    template, vectors = SCENE.replace("\n", "\\n"), []
    for concept, texts in content["concepts"]["texts"].items():
        states, vector = tmp_path / f"states-{concept}", tmp_path / f"{concept}.safetensors"
        said = contrans(
            "harvest", "--model", "demo:target", "--texts", texts, "--template", template,
            "--blocks", block, "--actors", 1, "--out", states,
        )  # fmt: skip
        assert said.code == 0, said.err
        assert contrans("refine", "--activations", states, "--out", vector).code == 0
        by_run = load_file(run / "vectors/self-align" / f"{concept}.safetensors")["vector"]
        np.testing.assert_allclose(load_file(vector)["vector"], by_run, rtol=1e-4, atol=1e-5)
        vectors += ["--vector", vector]
    said = contrans(
        "evaluate", "--model", "demo:target", "--benchmark", "emotions", *vectors, "--template", template,
        "--data", content["evaluations"]["emotions"]["texts"], "--strengths", f"0,{strength}",
        "--controls", "random,other-concept", "--actors", 1, "--out", tmp_path / "evaluation",
    )  # fmt: skip
    assert said.code == 0, said.err
    by_hand = _scores(_json(tmp_path / "evaluation/metrics.json"))
    of_run = _scores(_json(run / "evaluations/emotions/metrics.json"))
    named = {("vector" if name == "self-align" else name, at): score for (name, at), score in of_run.items()}
    assert named == by_hand


def test_a_plan_and_the_status_know_it(run: Path, recipe: Path, contrans: Contrans) -> None:
    plan = json.loads(contrans("plan", recipe, "--json").out)
    assert [stage["name"] for stage in plan["stages"]] == [
        "harvest contrast-target", "choose blocks", "choose blocks, perplexity", "strengths of emotions",
        "strengths of emotions, perplexity", "evaluate emotions",
    ]  # fmt: skip
    assert plan["stages"][0]["texts"] == 80
    state = contrans("status", run).out
    assert "activations/contrast-target: complete, 80 rows" in state
    assert "evaluations/emotions: complete" in state
    assert "maps" not in state


# -- what is refused -------------------------------------------------------------------------------


def test_without_validation_items_blocks_are_tried_on_contrast_prompts(
    recipe: Path, tmp_path: Path, contrans: Contrans
) -> None:
    changes = ["evaluations.emotions.validation=null", "evaluations.emotions.search=null"]
    contrans("run", recipe, "--out", tmp_path / "run", *(f"--set={change}" for change in changes))
    choice = _json(tmp_path / "run/selection/selection.json")
    assert (choice["criterion"], choice["tried_on"]) == ("contrast_gain", "contrast prompts")
    best = max(choice["candidates"], key=lambda trial: trial["score"])
    assert choice["chosen"] == best["block"]
    assert "on contrast prompts, of all blocks" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("corpus={texts: c.jsonl}", "missing key 'source': expected beside corpus, or neither"),
        ("source=demo:source", "missing key 'corpus': expected beside source, or neither"),
        ("map.norm=match", "map.norm: expected a source and a corpus beside it"),
        ("map.protocol=paper", "map.protocol: expected a source"),
        ("map_source=demo:source", "map_source: expected a source"),
        ("source_base=demo:source", "source_base: expected a source"),
        ("sources={b: {id: demo:source}}", "sources: expected a source"),
        ("concepts.source_template='{text}'", "concepts.source_template: expected a source"),
        ("analyses=[map-similarity]", "analyses: map-similarity: expected a source"),
        ("map.blocks=2:3", "map.blocks: expected depth, best, or a block of the target such as 18, found"),
        ("map.blocks=r2", "map.blocks: expected depth, best, or a block of the target such as 18, found"),
        (
            "evaluations.emotions.conditions=[vector, random]",
            "evaluations.emotions.conditions: vector needs a source; without one there are self-align, ",
        ),
        ("evaluations.emotions.conditions=[self-align, shuffled-map]", "shuffled-map needs a source"),
        ("evaluations.emotions.conditions=['from:b']", "from:b needs a source"),
    ],
)
def test_what_needs_a_source_is_refused_in_one_line(
    recipe: Path, tmp_path: Path, contrans: Contrans, change: str, said: str
) -> None:
    contrans("run", recipe, "--out", tmp_path / "run", "--set", change).refused(said)
    assert not (tmp_path / "run").exists()


def test_a_block_that_the_target_lacks_is_refused(recipe: Path, contrans: Contrans) -> None:
    contrans("plan", recipe, "--set", "map.blocks=6").refused("map.blocks 6: ", "blocks 0 to 5")


def test_a_run_with_a_source_has_the_conditions_of_its_kind(recipe: Path) -> None:
    changes = "{moved: {source: demo:source, corpus: {texts: demo:corpus.jsonl}}, own: {}}"
    of_runs = runs_of(load_recipe(recipe, [f"runs={changes}"]))
    conditions = {name: run.evaluations["emotions"].conditions for name, run in of_runs.items()}
    assert conditions["own"] == ("self-align", "random", "other-concept")
    assert conditions["moved"] == ("vector", "random", "shuffled-map", "other-concept", "self-align")


def test_blocks_by_rule_and_by_name(recipe: Path) -> None:
    for given, kept in (("5", "5"), ("0.5", "0.5"), ("-1", "-1"), ("depth", "depth"), ("null", "best")):
        assert load_recipe(recipe, [f"map.blocks={given}"]).blocks == kept
    without = load_recipe(recipe, ["map={}", "evaluations.emotions.validation=null"])
    assert without.blocks == "depth"


def test_one_concept_has_no_other(recipe: Path, content: dict[str, Any]) -> None:
    texts = json.dumps({"fear": content["concepts"]["texts"]["fear"]})
    alone = load_recipe(recipe, [f"concepts.texts={texts}"])
    assert alone.evaluations["emotions"].conditions == ("self-align", "random")


def test_one_of_several_runs_may_be_of_the_targets_own_vectors(recipe: Path) -> None:
    own = {
        "source": None, "corpus": None, "map": {"blocks": 4},
        "evaluations.emotions.conditions": ["self-align", "random"],
    }  # fmt: skip
    changes = ["source=demo:source", "corpus={texts: c.jsonl}", "map={norm: keep}"]
    runs = runs_of(load_recipe(recipe, [*changes, f"runs={json.dumps({'moved': {}, 'own': own})}"]))
    assert [(run.source is None, run.blocks) for run in runs.values()] == [(False, "best"), (True, "4")]
    assert runs["moved"].evaluations["emotions"].conditions[0] == "vector"


def test_the_instruct_model_is_a_baseline_and_gives_no_vector(recipe: Path) -> None:
    conditions = "evaluations.emotions.conditions=[self-align, align-training, inst-align]"
    instruction = "evaluations.emotions.instruction=Be happy."
    whole = load_recipe(recipe, ["target_instruct=demo:source", conditions, instruction])
    assert [(harvest.name, harvest.reads) for harvest in harvested(whole)] == [("target", ("contrast",))]
    systems = systems_of(whole, whole.evaluations["emotions"])
    assert [(system.name, system.model.id) for system in systems] == [
        ("align-training", "demo:source"),
        ("inst-align", "demo:target"),
    ]


def test_several_runs_and_a_concept_alone_in_one_of_them(
    in_process: None, content: dict[str, Any], tmp_path: Path
) -> None:
    """A block each; and of a control that one cannot have, the page says so."""
    several = {
        **content,
        "map": {"blocks": 4},
        "evaluations": {
            "emotions": {
                **content["evaluations"]["emotions"],
                "concepts": ["fear"], "strengths": [0, 2], "search": None,
                "conditions": ["self-align", "self-modulation", "random", "other-concept"],
            }
        },
        "analyses": ["differences"],
        "runs": {
            "4": {},
            "alone": {"map.blocks": "5", "concepts.texts": {"fear": content["concepts"]["texts"]["fear"]}},
        },
    }  # fmt: skip
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump(several))
    recipe = load_recipe(path)
    assert [one.blocks for one in runs_of(recipe).values()] == ["4", "5"]
    run_recipe(recipe, Location.parse(tmp_path / "out"))
    for name, block, conditions in (("4", 4, 4), ("alone", 5, 3)):
        folder = tmp_path / "out/runs" / name
        metrics = _json(folder / "evaluations/emotions/metrics.json")
        assert metrics["block"] == block
        scores = _scores(metrics)
        assert scores["self-align", 2.0] == scores["self-modulation", 2.0]
        assert len({condition for condition, _ in scores} - {"base"}) == conditions
        assert not (folder / "selection").exists()
        assert [path.name for path in (folder / "analyses").iterdir()] == ["differences-target.parquet"]
    page = (tmp_path / "out/runs/alone/report.html").read_text()
    assert "Asked for and not run: other-concept (other-concept needs a second concept)." in page
    compared = (tmp_path / "out/report.html").read_text()
    assert "Target&#39;s own vector" in compared
    assert "transplant" not in compared.lower()


def test_a_choice_of_another_form_is_told_and_costs_no_page(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(run, out)
    (out / "selection/selection.json").write_text('{"chosen": -1}')
    write_report(Location.parse(out))
    assert "selection/selection.json: " in (out / "report.html").read_text()


def test_a_map_that_an_earlier_run_left_is_not_shown(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "earlier"
    shutil.copytree(run, out)
    write_report(Location.parse(out))
    before = (out / "report.html").read_text()
    write_map(out / "maps/corpus.safetensors", ("fear",), "demo:source", "demo:target")
    write_report(Location.parse(out))
    assert (out / "report.html").read_text() == before


def test_a_picture_of_too_few_texts_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = make_set(
        tmp_path / "set", {0: np.ones((2, 3))}, 1, concept=["a", "a"], label=["positive", "negative"]
    )
    recipe = Recipe.model_validate({
        "name": "r", "target": "t", "concepts": {"texts": "d"}, "analyses": ["states"],
        "evaluations": {"e": {"texts": "f"}},
    })  # fmt: skip
    out = Location.parse(tmp_path / "run")
    write_analyses(Material(recipe, {}, 0), {"target": states}, out)
    assert (
        "analysis states of the target is left out: 1 rows: t-SNE needs at least 4" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
