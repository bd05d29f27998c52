"""What a plan counts against what the engines, and a whole run, then do."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from contrans_dist import demo
from contrans_dist.benchmarks.behaviours import BehaviourEvaluation
from contrans_dist.benchmarks.contrast import ContrastBenchmark, ContrastEvaluation
from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.benchmarks.lm_eval import HarnessBenchmark, HarnessEvaluation
from contrans_dist.benchmarks.lm_eval.documents import Document, HarnessRequest
from contrans_dist.benchmarks.perplexity import PerplexityEvaluation
from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.benchmarks.toxigen import ToxigenEvaluation
from contrans_dist.benchmarks.truthfulqa import TruthfulQAEvaluation
from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import read_texts
from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.prefixes import can_share
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.evaluation.actors import Meter
from contrans_dist.models import CPU_TOKENS, LanguageModel, encode_many, guided, load_model
from contrans_dist.pipeline.plan.calls import Calls
from contrans_dist.pipeline.plan.costs import captured
from contrans_dist.pipeline.plan.models import PlannedModel
from tests.benchmarks.test_behaviours import FOUR, TWO
from tests.sets import write_lines
from tests.tiny import save_tiny
from tests.truth import canary

CONCEPTS = ["happy", "sad", "angry"]
WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]
N_BLOCKS, D, STEERED = 4, 32, 2


def scenes(path: Path, per_concept: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    rows = [
        {"text": f"the {a} was {b} at the {c} with the {d}", "concept": concept}
        for concept in CONCEPTS
        for a, b, c, d in (rng.choice(WORDS, 4) for _ in range(per_concept))
    ]
    return write_lines(path, rows)


def prose(path: Path, words: int) -> str:
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(WORDS, 40)) for _ in range(words // 40)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    sizes = {"target": (N_BLOCKS, D), "tuned": (2, 16), "plain": (2, 16)}
    return {
        # A prompt that has to be cut loses whole lines: here none has to be.
        name: str(
            save_tiny(tmp_path_factory.mktemp(name), n_blocks=n, d=d, seed=seed, max_position_embeddings=512)
        )
        for seed, (name, (n, d)) in enumerate(sizes.items())
    }


def asked_of(kind: str, folder: Path) -> tuple[Any, list[Any]]:
    """A benchmark of every kind, and some of its items."""
    if kind == "emotions":
        settings: Any = EmotionEvaluation(
            texts=scenes(folder / "s.jsonl", 30), template="Scene: {text}\nIt is"
        )
    elif kind == "truthfulqa":
        answers = {"Under the tree": 1, "In the park": 0, "He did not know": 0, "Under the ball": 0}
        record = {"question": "Where is the cat?", "mc1_targets": answers, "mc2_targets": answers}
        more = record | {"question": "Did the old man eat his dinner in the park, under the tree?"}
        (folder / "q.json").write_text(json.dumps([record, more] * 6))
        settings = TruthfulQAEvaluation(texts=str(folder / "q.json"), protocol="paper")
    elif kind == "behaviours":
        (folder / "eats").mkdir()
        (folder / "eats" / "test_dataset_ab.json").write_text(json.dumps([TWO, FOUR] * 8))
        settings = BehaviourEvaluation(texts=str(folder))
    elif kind == "perplexity":
        settings = PerplexityEvaluation(texts=prose(folder / "t.txt", 4000), window=48, stride=20, limit=3000)
    elif kind == "toxigen":
        demo.write_texts(folder)
        settings = ToxigenEvaluation(
            texts=str(folder / "remarks"), classifier="demo:classifier", per_group=6, max_new_tokens=5
        )
    elif kind == "contrast":
        table = read_texts(scenes(folder / "c.jsonl", 30))
        capture = CaptureSettings(template="Scene: {text}\nIt is")
        contrast = ContrastBenchmark.of(ContrastEvaluation(texts="c"), table, capture, "c")
        return contrast, [item for item in contrast.items() if item.concept == CONCEPTS[0]]
    else:
        return HarnessBenchmark(HarnessEvaluation(tasks=("t",))), documents()
    benchmark = load_benchmark(settings)
    return benchmark, list(benchmark.items())[:48]


def documents() -> list[Document]:
    """With every kind of request; the long text takes several windows."""
    long = " ".join(np.random.default_rng(2).choice(WORDS, 400))
    requests = [
        (
            HarnessRequest("loglikelihood", "", " was happy"),
            HarnessRequest("loglikelihood", " boy", " sat under the tree"),
        ),
        (HarnessRequest("loglikelihood_rolling", "", long),),
        (HarnessRequest("generate_until", " went", until=("\n\n\n",), max_new_tokens=6),),
    ]
    return [Document(f"t/{i}", "t", "", f"the {WORDS[i]}", requests[i % 3]) for i in range(9)]


def counted(lm: LanguageModel, run: Callable[[], object]) -> int:
    """Tokens in the forward passes of a model, and of its guides."""
    meter = Meter(lm)
    run()
    return meter.tokens


def tried(lm: LanguageModel) -> int:
    """Has the model, and its guides, find out whether beginnings can be shared, as their first use would;
    the tokens that this takes."""

    def every_way() -> None:
        for each in (lm, *(lm.guides or ())):
            for flag in (False, True):
                can_share(each, flag)

    return counted(lm, every_way)


def interventions(n_items: int) -> list[Intervention]:
    rng = np.random.default_rng(0)

    def at(block: int, *shape: int) -> dict[int, np.ndarray]:
        return {block: rng.normal(size=(*shape, D)).astype(np.float32)}

    return [
        BASE,
        *(Intervention("vector", at(STEERED), strength) for strength in (1.0, 2.0)),
        Intervention("lower", at(1), 1.0),
        *(Intervention("random", at(STEERED, n_items), strength) for strength in (1.0, 2.0)),
    ]


@pytest.mark.parametrize(
    "kind", ["emotions", "truthfulqa", "behaviours", "perplexity", "toxigen", "lm-eval", "contrast"]
)
@pytest.mark.parametrize("how", ["steered", "guided"])
def test_tokens_are_those_that_the_engine_runs(
    kind: str, how: str, folders: dict[str, str], tmp_path: Path
) -> None:
    """Padding, shared beginnings and passes for each intervention included, to the token."""
    benchmark, items = asked_of(kind, tmp_path)
    lm = load_model(folders["target"])
    steered = interventions(len(items))
    if how == "guided":
        lm = guided(lm, load_model(folders["tuned"]), load_model(folders["plain"]))
        steered = [Intervention("proxy-tuning", {}, 1.0)]
    tried(lm)
    taken = counted(lm, lambda: benchmark.score(lm, items, steered))
    side = PlannedModel(ModelSettings(id=folders["target"]))
    planned = Calls(benchmark, side, CPU_TOKENS).cost(items, steered).tokens
    assert planned * (3 if how == "guided" else 1) == taken


def test_prompts_of_a_chat_template_are_counted_too(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", chat=True))
    (tmp_path / "eats").mkdir()
    (tmp_path / "eats" / "test_dataset_ab.json").write_text(json.dumps([TWO, FOUR] * 4))
    benchmark = load_benchmark(BehaviourEvaluation(texts=str(tmp_path), chat=True))
    lm, items = load_model(folder), list(benchmark.items())
    tried(lm)
    taken = counted(lm, lambda: benchmark.score(lm, items, [BASE]))
    side = PlannedModel(ModelSettings(id=folder))
    planned = Calls(benchmark, side, CPU_TOKENS).cost(items, [BASE]).tokens
    # The bracket before the letter stands in the model's own turn.
    assert planned == pytest.approx(taken, rel=0.02)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_tokens_of_a_harvest_are_those_that_the_engine_runs(position: str, folders: dict[str, str]) -> None:
    lm, side = load_model(folders["target"]), PlannedModel(ModelSettings(id=folders["target"]))
    rng = np.random.default_rng(0)
    ids = encode_many(side.lm, [" ".join(rng.choice(WORDS[:3], rng.integers(2, 30))) for _ in range(150)])
    alone = [3, 80]

    def harvest() -> None:
        found = capture_ids(lm, ids, [2], position)
        canary(lm, [ids[row] for row in alone], {2: found[2][alone]}, position)

    mean, few = position == "mean", [ids[row] for row in alone]
    planned = [
        captured(lm, ids, [len(text) - 1 for text in ids], not mean, 2, CPU_TOKENS),
        captured(lm, few, [len(text) - 1 for text in few], False, 2, 1),
    ]
    tried(lm)
    assert counted(lm, harvest) == sum(call.tokens for call in planned)
    assert (planned[0].tokens < sum(map(len, ids))) == (not mean)


# -- a whole run -------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("few", marks=pytest.mark.slow),
        pytest.param("every", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With blocks and strengths to be chosen, and prompts that are read one by one; `every`: with all further
    models that a recipe may name, and with texts that are generated and judged."""
    folder = tmp_path_factory.mktemp("recipe")
    sizes = {"source": (3, 192), "source-base": (3, 192), "target": (4, 256), "instruct": (4, 256)}
    models = {
        name: str(save_tiny(folder / name, n_blocks=n, d=d, seed=seed, max_position_embeddings=512))
        for seed, (name, (n, d)) in enumerate(sizes.items())
    }
    rng = np.random.default_rng(0)
    corpus = [{"text": " ".join(rng.choice(WORDS, rng.integers(6, 16)))} for _ in range(600)]
    conditions = ["vector", "random", "other-concept", "no-map", "self-align", "sum", "inst-align"]
    seen = {
        "texts": scenes(folder / "scenes.jsonl", 10, seed=1),
        "validation": scenes(folder / "validation.jsonl", 4, seed=2),
        "strengths": [0.0, 1.0, 2.0],
        "conditions": conditions,
        "instruction": "the boy was happy",
        "search": {"perplexity": prose(folder / "text.txt", 400), "limit": 200},
        "examples": 2,
        "token_changes": 3,
    }
    content: dict[str, Any] = {
        "name": "small",
        "source": models["source"],
        "target": models["target"],
        "corpus": {"texts": write_lines(folder / "corpus.jsonl", corpus)},
        "concepts": {"texts": scenes(folder / "contrast.jsonl", 12)},
        "evaluations": {"seen": seen},
        "cluster": {"actors": 1},
    }
    if request.param == "every":
        (folder / "demo").mkdir()
        demo.write_texts(folder / "demo")
        seen["conditions"] = [*conditions, "align-training", "proxy-tuning", "from:base", "averaged"]
        content |= {
            "source_base": models["source-base"],
            "map_source": models["source-base"],
            "target_instruct": models["instruct"],
            "sources": {"base": {"id": models["source-base"]}},
        }
        content["evaluations"]["remarks"] = {
            "benchmark": "toxigen",
            "texts": str(folder / "demo" / "remarks"),
            "classifier": "demo:classifier",
            "per_group": 3,
            "max_new_tokens": 4,
            "temperature": 1.0,
            "strengths": [0.0, 1.0],
            "conditions": ["vector", "random", "proxy-tuning"],
        }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def contrans(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "contrans_dist", *arguments]


@pytest.fixture(scope="module")
def plan(recipe: Path) -> dict[str, Any]:
    """In a process of its own: what this one holds is no measure of an actor."""
    said = subprocess.run(contrans("plan", str(recipe), "--json"), capture_output=True, check=True)
    return json.loads(said.stdout)


def _peaks(driver: int) -> Iterator[tuple[int, tuple[str, int]]]:
    """(process, (class, peak memory in bytes)) of each actor that is alive."""
    for child in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess, OSError, StopIteration):
            name, status = child.name(), Path(f"/proc/{child.pid}/status").read_text().splitlines()
            line = next(line for line in status if line.startswith("VmHWM"))
            if name.startswith("ray::") and "Act" in name:
                yield child.pid, (name.removeprefix("ray::")[:8], int(line.split()[1]) * 1024)


@pytest.fixture(scope="module")
def ran(recipe: Path) -> tuple[Path, dict[str, list[int]]]:
    """The folder of a run, and the peak memory of its actors in bytes, by their class."""
    out = recipe.parent / "run"
    log = recipe.parent / "log"
    with log.open("w") as file:
        run = subprocess.Popen(
            contrans("run", str(recipe), "--out", str(out), "--address", "local"), stdout=file, stderr=file
        )
    peaks: dict[int, tuple[str, int]] = {}
    try:
        while run.poll() is None:
            peaks |= dict(_peaks(run.pid))
            with suppress(subprocess.TimeoutExpired):
                run.wait(0.2)
    finally:  # also where the test is out of time
        run.terminate()
        run.wait()
    assert run.returncode == 0, log.read_text()[-2000:]
    by_class = defaultdict(list)
    for name, peak in peaks.values():
        by_class[name].append(peak)
    return out, by_class


def test_harvests_are_those_of_the_run(plan: dict[str, Any], ran: tuple[Path, dict[str, list[int]]]) -> None:
    planned = {
        stage["name"].removeprefix("harvest "): stage
        for stage in plan["stages"]
        if stage["name"].startswith("harvest ")
    }
    manifests = {
        each.parent.name: json.loads(each.read_text())
        for each in (ran[0] / "activations").glob("*/manifest.json")
    }
    assert set(planned) == set(manifests)
    for name, stage in planned.items():
        assert stage["model"] == manifests[name]["identity"]["model"]
        assert stage["texts"] == manifests[name]["rows"]
        assert stage["tokens"] == manifests[name]["tokens"]
        written = sum(shard["bytes"] for shard in manifests[name]["shards"])
        assert stage["disk"] == pytest.approx(written, rel=0.15)


def test_evaluations_take_the_tokens_that_were_planned(
    plan: dict[str, Any], ran: tuple[Path, dict[str, list[int]]], recipe: Path
) -> None:
    """Every stage that scores or generates, by the metrics that the run left."""
    places = {
        "choose blocks": "selection/validation",
        "choose blocks, perplexity": "selection/perplexity",
        "strengths of seen": "evaluations/seen/validation",
        "strengths of seen, perplexity": "evaluations/seen/perplexity",
        "evaluate seen": "evaluations/seen",
        "evaluate remarks": "evaluations/remarks",
    }
    taken = {}
    for metrics in ran[0].glob("**/metrics.json"):
        name = next(name for name, place in places.items() if ran[0] / place == metrics.parent)
        for system, cost in json.loads(metrics.read_text())["costs"].items():
            taken[name if system == "target" else f"{name}, {system}"] = cost["tokens"]
    planned = {
        stage["name"]: stage["tokens_in_passes"]
        for stage in plan["stages"]
        if stage["name"].startswith(("choose", "strengths", "evaluate")) and "judge" not in stage["name"]
    }
    assert set(planned) == set(taken)
    most = tried(load_model(str(recipe.parent / "target")))
    for name, tokens in planned.items():
        # Each of an actor's models finds out once whether it can share beginnings.
        assert 0 <= taken[name] - tokens <= (3 if "proxy" in name else 1) * most, name
    read = {"examples of seen": 2 * len(CONCEPTS), "tokens of seen": 3 * len(CONCEPTS)}
    assert {s["name"]: s["texts"] for s in plan["stages"] if s["name"] in read} == read
    for kind, name in (("examples", "examples of seen"), ("tokens", "tokens of seen")):
        rows = pq.read_table(ran[0] / "evaluations" / "seen" / f"{kind}.parquet").to_pylist()
        prompts = {(row["concept"], row.get("item")) for row in rows}
        per_concept = [row.get("n_prompts", 0) for row in rows]
        found = len(prompts) if kind == "examples" else len(CONCEPTS) * max(per_concept)
        assert found == read[name]


def test_memory_is_that_of_the_run(plan: dict[str, Any], ran: tuple[Path, dict[str, list[int]]]) -> None:
    for uses, name in ((("harvest",), "HarvestA"), (("evaluate", "generate"), "SystemAc")):
        planned = [each["memory"] for each in plan["actors"] if each["use"] in uses]
        assert 0.85 < max(planned) / max(ran[1][name]) < 1.15
