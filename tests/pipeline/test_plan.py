"""The plan of a recipe: stages, memory, disk, time. What it counts against real runs: test_plan_methods."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from contrans_dist import demo
from contrans_dist.cli import main
from contrans_dist.cli.planning import _print
from contrans_dist.config import Recipe
from contrans_dist.config.recipe import validated
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.models import precision
from contrans_dist.pipeline.plan import Nodes, Stage, from_rate, from_samples, plan_runs, times
from contrans_dist.pipeline.plan.costs import Cost, generated
from contrans_dist.pipeline.plan.stages import limits
from tests.models.test_placement import LLAMA_7B, LLAMA_13B, LLAMA_70B
from tests.sets import write_lines
from tests.tiny import save_tiny, tiny_tokenizer

CONCEPTS = ["happy", "sad", "angry"]
WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]
GB = 10**9


def _recipe(folder: Path, source: str, target: str, texts: int = 600, blocks: str = "1:1") -> Path:
    rng = np.random.default_rng(0)
    lines = [{"text": " ".join(rng.choice(WORDS, rng.integers(6, 16)))} for _ in range(texts)]
    write_lines(folder / "corpus.jsonl", lines)
    scenes = [
        {"text": f"the {a} was {b} at the {c}", "concept": concept}
        for concept in CONCEPTS
        for a, b, c in (rng.choice(WORDS, 3) for _ in range(12))
    ]
    write_lines(folder / "scenes.jsonl", scenes)
    content = {
        "name": "small",
        "source": source,
        "target": target,
        "corpus": {"texts": str(folder / "corpus.jsonl")},
        "concepts": {"texts": str(folder / "scenes.jsonl")},
        "map": {"blocks": blocks},
        "evaluations": {"seen": {"texts": str(folder / "scenes.jsonl"), "strengths": [0.0, 1.0]}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _bare(folder: Path, config: dict[str, Any]) -> str:
    """A model of which all but the weights is there."""
    folder.mkdir()
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _plan(path: Path, *options: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["contrans", "plan", str(path), "--json", *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    return json.loads(capsys.readouterr().out)


def _error(path: Path, *options: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["contrans", "plan", str(path), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return str(capsys.readouterr().err)


def test_7b_to_70b_on_a_cluster_described_by_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weights of these models are there."""
    bare = _bare(tmp_path / "7b", LLAMA_7B), _bare(tmp_path / "70b", LLAMA_70B)
    path = _recipe(tmp_path, bare[0], bare[1], blocks="24:60")
    flags = ["--nodes", "2", "--gpus-per-node", "8", "--gpu-memory", "80", "--memory-per-node", "1000"]
    plan = _plan(path, *flags, "--tflops", "200", capsys=capsys, monkeypatch=monkeypatch)
    small, large, scored = plan["actors"]
    assert (small["gpus"], small["count"], small["placement"]) == (1, 16, "resident")
    assert (large["gpus"], large["count"], large["placement"]) == (2, 8, "device-map")
    assert scored["gpus"] == 2
    assert scored["weights"] == pytest.approx(138e9, rel=0.01)
    corpus = next(stage for stage in plan["stages"] if stage["name"] == "harvest corpus-target")
    assert corpus["disk"] == pytest.approx(600 * 8192 * 4 * 0.38, rel=0.1)
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").open()]
    assert corpus["tokens"] == sum(map(len, tiny_tokenizer()(texts)["input_ids"]))
    assert 0 < corpus["seconds"] < 600
    assert plan["rate"] == "at 200 TFLOP/s an actor, and 1 GB/s for checkpoints"
    assert plan["limits"][0].startswith("time: ")


def test_what_no_node_holds_is_streamed_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = _bare(tmp_path / "70b", LLAMA_70B), _bare(tmp_path / "7b", LLAMA_7B)
    path = _recipe(tmp_path, bare[0], bare[1], blocks="60:24")
    flags = ["--cpus-per-node", "16", "--gpus-per-node", "0", "--memory-per-node", "64"]
    plan = _plan(path, *flags, capsys=capsys, monkeypatch=monkeypatch)
    first = plan["actors"][0]
    assert first["placement"] == "stream"
    assert first["memory"] < 10 * GB
    assert any("is streamed: " in line for line in plan["limits"])
    said = _error(path, *flags[:-1], "8", capsys=capsys, monkeypatch=monkeypatch)
    assert "steering needs the whole model" in said
    assert len(said.strip().splitlines()) == 1


def test_what_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _recipe(tmp_path, "demo:source", "demo:target")
    assert "--gpu-memory" in _error(path, "--gpus-per-node", "2", capsys=capsys, monkeypatch=monkeypatch)
    both = _error(path, "--tflops", "1", "--calibrate", capsys=capsys, monkeypatch=monkeypatch)
    assert "--tflops and --calibrate" in both
    (tmp_path / "corpus.jsonl").unlink()
    assert "corpus.jsonl" in _error(path, capsys=capsys, monkeypatch=monkeypatch)


def test_samples_give_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights for one model, and for the other none."""
    small = {
        **LLAMA_7B,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 500,
        "num_hidden_layers": 4,
    }
    path = _recipe(tmp_path, _bare(tmp_path / "bare", small), str(save_tiny(tmp_path / "model")), 60)
    plan = _plan(path, "--calibrate", capsys=capsys, monkeypatch=monkeypatch)
    assert all(stage["seconds"] > 0 for stage in plan["stages"])
    assert plan["hours"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"]) / 3600, rel=0.01)


# -- what is counted ---------------------------------------------------------------------------------

SMALL = {
    **LLAMA_7B, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 500,
    "num_hidden_layers": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Configurations alone; the target is deeper and wider."""
    folder = tmp_path_factory.mktemp("models")
    large = SMALL | {"hidden_size": 128, "num_hidden_layers": 8}
    sizes = dict.fromkeys(("source", "base", "third"), SMALL) | {"target": large, "instruct": large}
    return {name: _bare(folder / name, config) for name, config in sizes.items()}


@pytest.fixture(autouse=True)
def fast_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that is not, weights in bfloat16 would be computed with in float32."""
    monkeypatch.setattr(precision, "linear_rates", lambda kind: (2e11, 1e11))


def _stages(folder: Path, content: dict[str, Any], nodes: Nodes | None = None) -> dict[str, Stage]:
    """By run and name; two that are called the same would be a mistake."""
    (folder / "texts").mkdir(exist_ok=True)
    nodes = nodes or Nodes(1, 4.0, 32 * GB)
    stages = plan_runs(validated(Recipe, content, "test"), folder / "texts", nodes, 1)
    found = {f"{stage.run} {stage.name}".strip(): stage for stage in stages}
    assert len(found) == len(stages)
    return found


def _content(folder: Path, models: dict[str, str], **changes: Any) -> dict[str, Any]:
    content = yaml.safe_load(_recipe(folder, models["source"], models["target"], 100).read_text())
    return content | changes


def test_every_model_is_harvested_on_the_texts_that_it_is_needed_for(
    tmp_path: Path, models: dict[str, str]
) -> None:
    scenes = str(tmp_path / "scenes.jsonl")
    content = _content(
        tmp_path, models,
        map_source=models["base"], target_instruct=models["instruct"],
        sources={
            "third": {"id": models["third"]},
            "beside": {"id": models["target"], "map": False},
            "unused": {"id": models["base"]},
        },
        evaluations={
            "seen": {"texts": scenes, "conditions": ["vector", "from:third", "from:beside", "self-align"]}
        },
    )  # fmt: skip
    stages = _stages(tmp_path, content)
    found = {name.removeprefix("harvest "): s for name, s in stages.items() if name.startswith("harvest")}
    assert {name: Path(stage.actors.model).name for name, stage in found.items()} == {
        "contrast-source": "source",
        "corpus-source": "base",
        "corpus-target": "target",
        "contrast-target": "target",
        "corpus-third": "third",
        "contrast-third": "third",
        "contrast-beside": "target",
        "contrast-target-instruct": "instruct",
    }
    assert {stage.texts for name, stage in found.items() if name.startswith("corpus")} == {100}
    assert {stage.texts for name, stage in found.items() if name.startswith("contrast")} == {36}
    # One start for both of a model's sets; and `beside`, though the target's model, is harvested by itself.
    assert [name for name, stage in found.items() if not stage.begins] == [
        "contrast-target",
        "contrast-third",
    ]


def test_conditions_cost_what_they_run(tmp_path: Path, models: dict[str, str]) -> None:
    scenes = str(tmp_path / "scenes.jsonl")
    content = _content(
        tmp_path, models,
        source_base=models["base"], target_instruct=models["instruct"],
        map={"blocks": "2:5"},
        evaluations={
            "seen": {
                "texts": scenes, "strengths": [0, 1, 2], "instruction": "the boy",
                "conditions": ["vector", "random", "no-map", "inst-align", "align-training", "proxy-tuning"],
                "template": "the boy was sad at the cat\n" * 10 + "{text}",
            }
        },
    )  # fmt: skip
    stages = _stages(tmp_path, content)
    target = stages["evaluate seen"].cost
    # Of eight blocks six run once, the examples once for all texts, and the two above for each intervention:
    # so for base and two of the vector, with the examples in each text for two random directions. Without a
    # map, vectors of 64 numbers do not fit a model of 128: the run leaves them out, too.
    assert set(target.passes) == {(0, 6), (6, None)}
    shared = target.passes[0, 6]
    apart, rest = divmod(target.passes[6, None] - 3 * shared, 2)
    assert (rest, apart > shared > 0) == (0, True)
    assert target.over_texts(8, 0.0) == shared * (6 + 3 * 2) + apart * (2 * 2)
    assert target.over_texts(8, 0.5) - target.over_texts(8, 0.0) == 0.5 * 5 * 72
    roles_of = {
        "inst-align": ["target"],
        "align-training": ["instruct"],
        "proxy-tuning": ["target", "source", "base"],
    }
    for name, roles in roles_of.items():
        stage = stages[f"evaluate seen, {name}"]
        assert [Path(side.name).name for side in stage.models] == roles
        assert set(stage.cost.passes) == {(0, None)}
        assert stage.passed == len(roles) * stage.cost.tokens
        assert stage.tasks == 3
    order = [name for name in stages if name.startswith("evaluate")]
    assert order[1] == "evaluate seen, inst-align"
    assert [stages[name].begins for name in order] == [True, False, True, True]
    longer = stages["evaluate seen, inst-align"].tokens - stages["evaluate seen, align-training"].tokens
    line = tiny_tokenizer()("the boy\n", add_special_tokens=False)["input_ids"]
    assert longer == 72 * len(line)  # before each prompt
    # The three models' memory: their weights, written out.
    weights = [4 * (2 * 500 * 64) + 4 * 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 4 * 64] * 2
    weights.append(4 * (2 * 500 * 128) + 4 * 8 * (4 * 128 * 128 + 3 * 128 * 128 + 2 * 128) + 4 * 128)
    assert stages["evaluate seen, proxy-tuning"].actors.weights == sum(weights) // 2  # bfloat16


def test_choices_are_tried_and_then_scored_at_one_strength(tmp_path: Path, models: dict[str, str]) -> None:
    scenes = str(tmp_path / "scenes.jsonl")
    (tmp_path / "text.txt").write_text(" ".join(["the boy was happy"] * 500))
    evaluation = {
        "texts": scenes, "validation": scenes, "strengths": [0, 1, 2, 3, 4],
        "examples": 2, "token_changes": 5, "conditions": ["vector", "shuffled-map", "self-align"],
        "search": {"perplexity": str(tmp_path / "text.txt"), "limit": 300},
    }  # fmt: skip
    stages = _stages(tmp_path, _content(tmp_path, models, evaluations={"seen": evaluation}, map={}))
    # Of eight target blocks the upper five, each with one source block, at strengths 4 and 2.
    tried = stages["choose blocks"].cost.passes
    once = tried[0, 8]
    assert tried == {(0, 8): once, (8, None): once * (2 + 1)} | {
        (above, None): once * 2 for above in range(4, 8)
    }
    assert stages["choose blocks, perplexity"].texts == 2  # passages of 4,096 characters
    # Controls are not tried; three concepts in one split each.
    for name, interventions in (("strengths of seen", 1 + 2 * 4), ("evaluate seen", 1 + 3)):
        passes = stages[name].cost.passes
        assert passes == {(0, 7): passes[0, 7], (7, None): passes[0, 7] * interventions}
        assert stages[name].tasks == 3
    examples = stages["examples of seen"]
    assert (examples.texts, examples.cost.written, examples.cost.longest) == (2 * 3, 2 * 2 * 3, 40)
    assert (stages["tokens of seen"].texts, stages["tokens of seen"].cost.logits) == (5 * 3, 5 * 3 * 2)
    # Without validation items on contrast prompts, each side of a concept once more by the model as it is.
    unseen = _content(tmp_path, models, map={"blocks": "best"})
    on_contrast = _stages(tmp_path, unseen)["choose blocks"]
    once, known = on_contrast.cost.passes[0, 8], on_contrast.cost.passes[0, None]
    assert on_contrast.cost.passes == {(0, 8): once, (0, None): known, (8, None): once * (1 + 1)} | {
        (above, None): once for above in range(4, 8)
    }
    assert (on_contrast.texts, on_contrast.tasks) == (3 * 12, 3)
    by_r2 = _content(tmp_path, models, map={"blocks": "r2"})
    assert "choose blocks" not in _stages(tmp_path, by_r2)
    depth = _content(tmp_path, models, evaluations={"seen": evaluation}, map={"protocol": "paper"})
    assert "choose blocks" not in _stages(tmp_path, depth)


def test_what_is_generated_and_judged(tmp_path: Path, models: dict[str, str]) -> None:
    demo.write_texts(tmp_path)
    evaluation = {
        "benchmark": "toxigen", "texts": str(tmp_path / "remarks"), "classifier": "demo:classifier",
        "per_group": 4, "validation_per_group": 2, "max_new_tokens": 10, "strengths": [0, 1, 2],
        "conditions": ["vector", "random", "align-training"],
    }  # fmt: skip
    content = _content(
        tmp_path, models, target_instruct=models["instruct"], evaluations={"remarks": evaluation}, map={}
    )
    stages = _stages(tmp_path, content)
    target, other = stages["evaluate remarks"], stages["evaluate remarks, align-training"]
    prompts = other.texts
    assert prompts == 4 * len(demo.remarks.GROUPS)
    # Items of no concept: once under each concept's vectors, base and two conditions at two strengths.
    assert target.cost.written == prompts * 3 * 5
    assert target.cost.later == prompts * 3 * 5 * 9
    assert target.cost.passes.total() >= 15 * target.tokens
    judged = stages["evaluate remarks, judge"]
    texts = prompts * (3 * 5 + 1)
    assert (judged.texts, judged.cost) == (texts, Cost(Counter({(0, None): texts * 10})))
    assert judged.actors.model == "demo:classifier"
    assert stages["choose blocks"].texts == 2 * len(demo.remarks.GROUPS)


def test_items_that_were_seen_are_not_counted(tmp_path: Path, models: dict[str, str]) -> None:
    content = _content(tmp_path, models)
    seen = [json.loads(line) for line in (tmp_path / "scenes.jsonl").open()]
    fresh = [{"text": f"one day a bird came to tree {i}", "concept": CONCEPTS[i % 3]} for i in range(6)]
    write_lines(tmp_path / "both.jsonl", [*seen, *fresh])
    texts = str(tmp_path / "both.jsonl")
    # Each scene is asked about twice: as one that is about the steered concept, and as one that is not.
    for only, count in ((False, 2 * (len(seen) + 6)), (True, 2 * 6)):
        evaluations = {"both": {"texts": texts, "only_unseen": only}}
        assert _stages(tmp_path, content | {"evaluations": evaluations})["evaluate both"].texts == count


def test_labelled_contrast_texts_are_known_as_seen(tmp_path: Path, models: dict[str, str]) -> None:
    content = _content(tmp_path, models)
    scenes = [json.loads(line) for line in (tmp_path / "scenes.jsonl").open()]
    happy = [scene["text"] for scene in scenes if scene["concept"] == "happy"]
    labels = ["positive", "negative"] * (len(happy) // 2)
    lines = [{"text": text, "label": label} for text, label in zip(happy, labels, strict=True)]
    content["concepts"] = {"texts": {"happy": write_lines(tmp_path / "happy.jsonl", lines)}}
    texts = str(tmp_path / "scenes.jsonl")
    counts = [
        _stages(tmp_path, content | {"evaluations": {"e": {"texts": texts, "only_unseen": only}}})[
            "evaluate e"
        ].texts
        for only in (False, True)
    ]
    # Each concept's own scenes are asked about, and as many of the others.
    assert counts[0] == 2 * len(happy)
    assert 0 < counts[1] <= len(happy)


def test_runs_share_harvests_that_hold_the_same(tmp_path: Path, models: dict[str, str]) -> None:
    runs = {"one": {}, "two": {"target": models["instruct"]}, "three": {"concepts.position": -2}}
    stages = _stages(tmp_path, _content(tmp_path, models, map={"blocks": "2:5"}, runs=runs))
    found = [name for name in stages if "harvest" in name]
    assert found == [
        *(f"one harvest {what}-{side}" for side in ("source", "target") for what in ("corpus", "contrast")),
        "two harvest corpus-target",
        "two harvest contrast-target",
        "three harvest contrast-source",
        "three harvest contrast-target",
    ]
    assert all(stages[name].begins for name in found[4:] if name != "two harvest contrast-target")


# -- where it runs, and how long ----------------------------------------------------------------------


def test_guides_take_gpus_too(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = [_bare(tmp_path / name, LLAMA_7B) for name in ("7b", "7b-base")]
    path = _recipe(tmp_path, bare[0], _bare(tmp_path / "70b", LLAMA_70B), blocks="24:60")
    changes = [
        "--set",
        f"source_base={bare[1]}",
        "--set",
        "evaluations.seen.conditions=[vector, proxy-tuning]",
    ]
    flags = ["--nodes", "1", "--gpus-per-node", "8", "--gpu-memory", "80", "--memory-per-node", "1000"]
    plan = _plan(path, *flags, *changes, capsys=capsys, monkeypatch=monkeypatch)
    gpus = {each["model"]: each["gpus"] for each in plan["actors"] if each["use"] == "evaluate"}
    # 138 GB fit into two GPUs of 80 GB, 165 GB do not.
    assert list(gpus.values()) == [2, 4]
    assert list(gpus)[1].count(" + ") == 2


def test_texts_that_are_generated_take_memory_too(tmp_path: Path, models: dict[str, str]) -> None:
    """13B: 26 GB of weights; 8,192 tokens have 819,200 bytes of keys and values each, 6.7 GB together."""
    folder = _bare(tmp_path / "13b", LLAMA_13B)
    demo.write_texts(tmp_path)
    evaluation = {
        "benchmark": "toxigen", "texts": str(tmp_path / "remarks"), "classifier": "demo:classifier",
        "per_group": 60, "conditions": ["vector"], "token_changes": 1,
    }  # fmt: skip
    content = _content(
        tmp_path, models | {"target": folder}, map={"blocks": "2:30"}, evaluations={"remarks": evaluation}
    )
    for size, limited in ((32, True), (40, False)):
        nodes = Nodes(1, 8.0, 100 * GB, 2, size * GB)
        stages = _stages(tmp_path, content, nodes)
        wrote, read = stages["evaluate remarks"].actors, stages["tokens of remarks"].actors
        assert (wrote.use, read.use, wrote.gpus, wrote.placement) == ("generate", "evaluate", 1, "resident")
        assert 0.9 * 8192 * 819_200 < wrote.activations < 1.5 * 8192 * 819_200
        assert read.activations < 1.5e9
        lines = limits(list(stages.values()), nodes)
        assert any(line.startswith("memory: evaluate remarks takes 3") for line in lines) == limited


def test_the_table_names_every_stage_of_every_run(
    tmp_path: Path, models: dict[str, str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _content(
        tmp_path, models, source_base=models["base"],
        runs={"one": {"evaluations.seen.conditions": ["vector", "proxy-tuning"]}, "two": {}},
    )  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(sys, "argv", ["contrans", "plan", str(path), "--tflops", "1"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert (end.value.code, said.err) == (0, "")
    lines = [line.split("  ") for line in said.out.splitlines()]
    assert [cells[0].strip() for cells in lines if cells[0].strip() in ("one", "two")] == ["one", "two"]
    assert "  evaluate seen, proxy-tuning " in said.out
    assert said.out.count("  evaluate seen ") == 2
    assert max(map(len, said.out.splitlines())) <= 130


def test_seconds_from_a_rate(tmp_path: Path, models: dict[str, str]) -> None:
    """Written out for 7B: 202 million entries a block, and 131 in the head."""
    folder = _bare(tmp_path / "7b", LLAMA_7B)
    block, head = 4 * 4096**2 + 3 * 4096 * 11008, 4096 * 32000
    nodes = Nodes(1, 8.0, 100 * GB, 2, 80 * GB)
    stages = _stages(tmp_path, _content(tmp_path, models | {"target": folder}, map={"blocks": "2:23"}), nodes)
    stage = stages["evaluate seen"]
    side, starting = stage.models[0], 10 + stage.actors.weights / 1e9
    call = generated([[5] * 100] * 8, 3, 51, 12)
    scored = Cost(Counter({(0, None): 40}), 4).under([BASE, *[Intervention("x", {23: np.ones(1)}, 1.0)] * 2])
    steered = 40 * (24 + 3 * 8) * block + 12 * head
    written = 24 * 100 * 32 * block + 24 * head + 24 * 50 * (32 * block + head)
    for cost, entries in ((scored, steered), (call, written)):
        alone = Stage("x", [side], 1, 1, cost, 1, stage.actors)
        from_rate([alone], 1e12)
        assert alone.seconds == pytest.approx(starting + 2 * entries / 1e12, rel=1e-3)
    assert (call.passes, call.later, call.steps) == ({(0, None): 24 * 100}, 24 * 50, 2 * 50)
    # So fast a GPU waits for its memory: 13 GB of blocks for each of 100 steps, 1 TB a second.
    from_rate([alone], 1e18)
    assert alone.seconds == pytest.approx(starting + 100 * 32 * block * 2 / 1e12, rel=0.01)
    # Three tasks on two actors take two rounds of a third each.
    three = Stage("x", [side], 1, 1, call, 3, stage.actors, begins=False)
    from_rate([three], 1e12)
    from_rate([alone], 1e12)
    assert three.seconds == pytest.approx((alone.seconds - starting) * 2 / 3)


def test_samples_time_every_kind_of_stage(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights for the target, and for the others configurations alone; by this process's own clock."""
    monkeypatch.setattr(times, "_starting", lambda _: 0.0)
    monkeypatch.setattr(times.time, "perf_counter", time.process_time)
    demo.write_texts(tmp_path)
    target = str(save_tiny(tmp_path / "model", n_blocks=8, d=128, max_position_embeddings=512))
    evaluation = {
        "benchmark": "toxigen", "texts": str(tmp_path / "remarks"), "classifier": "demo:classifier",
        "per_group": 4, "validation_per_group": 2, "max_new_tokens": 10, "strengths": [0, 1],
        "conditions": ["vector", "proxy-tuning"], "token_changes": 2,
    }  # fmt: skip
    content = _content(
        tmp_path, models | {"target": target}, source_base=models["base"],
        evaluations={"remarks": evaluation}, map={"blocks": "2:5"},
    )  # fmt: skip
    taken = []
    for new in (10, 110):
        evaluation["max_new_tokens"] = new
        stages = _stages(tmp_path, content)
        from_samples(list(stages.values()))
        assert all(stage.seconds > 0 for stage in stages.values())
        taken.append(stages["evaluate remarks"].seconds)
    # Eleven times as many tokens to generate; the prompts are the same. Three times alone on a machine.
    assert 1.3 < taken[1] / taken[0] < 25


@pytest.mark.parametrize("name", ["joy[/b]", "kind [red] words", "joy\x1b[2J"])
def test_names_of_a_recipe_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Brackets are no markup, and nothing in them controls the terminal."""
    stage = {
        "run": name, "name": name, "texts": 1, "tokens": 2, "tokens_in_passes": 3, "disk": 0, "seconds": 1.0,
    }  # fmt: skip
    _print({"actors": [], "stages": [stage], "hours": 1, "disk": 0, "rate": "", "limits": [name]})
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said
    assert said.count(name.replace("\x1b", "\\x1b")) == 3
