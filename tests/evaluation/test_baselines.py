"""Conditions that are no vectors, through the real driver: another model, an instruction, three models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.engine.scoring import Intervention
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import steering
from contrans_dist.models import guided, load_model
from contrans_dist.store.results import MetricsFile
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.tiny import save_tiny

CONCEPTS, D, N_BLOCKS, BLOCK = ("happy", "sad", "angry"), 32, 4, 2
ONE = ClusterSettings(address="local", actors=1, cpus_per_actor=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSettings]:
    sizes = {
        "target": (N_BLOCKS, D, 0),
        "instruct": (N_BLOCKS, D, 3),
        "tuned": (2, 16, 1),
        "plain": (2, 16, 2),
    }
    return {
        name: ModelSettings(
            id=str(save_tiny(tmp_path_factory.mktemp(name), n_blocks=n_blocks, d=d, seed=seed))
        )
        for name, (n_blocks, d, seed) in sizes.items()
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EmotionEvaluation:
    path = tmp_path_factory.mktemp("texts") / "scenarios.jsonl"
    rows = [
        {"text": f"The boy saw the {thing} of the {c} girl.", "concept": c}
        for c in CONCEPTS
        for thing in ("dog", "park", "tree", "ball")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EmotionEvaluation(texts=str(path), strengths=(0.0, 1.0))


@pytest.fixture(scope="module")
def made(
    in_process: None,
    models: dict[str, ModelSettings],
    settings: EmotionEvaluation,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, MetricsFile]:
    vectors = {}
    for seed, concept in enumerate(CONCEPTS):
        values = np.zeros((N_BLOCKS, D), np.float32)
        values[BLOCK] = np.random.default_rng(seed).standard_normal(D)
        vectors[concept] = ConceptVector(values, concept, "target")
    others = [
        System("align-training", models["instruct"]),
        System("inst-align", models["target"], instruction="Be happy."),
        System("proxy-tuning", models["target"], guides=(models["tuned"], models["plain"])),
    ]
    out = tmp_path_factory.mktemp("evaluation")
    steered = replace(steering({"vector": vectors}, ["vector", "random"]), chosen={"vector": 0.5})
    return out, evaluate(models["target"], settings, steered, str(out), ONE, others=others)


def test_every_system_answers_as_it_does_alone(
    made: tuple[Path, MetricsFile], models: dict[str, ModelSettings], settings: EmotionEvaluation
) -> None:
    benchmark = load_benchmark(settings)
    items = benchmark.items()
    loaded = {name: load_model(model.id) for name, model in models.items()}
    instructed = [replace(item, prompt=f"Be happy.\n{item.prompt}") for item in items]
    asked = {
        "align-training": (loaded["instruct"], items),
        "inst-align": (loaded["target"], instructed),
        "proxy-tuning": (guided(loaded["target"], loaded["tuned"], loaded["plain"]), items),
    }
    table = pq.read_table(made[0] / "results.parquet").to_pylist()
    distinct = set()
    for name, (lm, own) in asked.items():
        found = {row["item"]: row for row in table if row["condition"] == name}
        assert {row["strength"] for row in found.values()} == {1.0}
        wanted = benchmark.score(lm, own, [Intervention(name, {}, 1.0)]).to_pylist()
        assert len(found) == len(wanted) == len(items)
        for row in wanted:
            got = found[row["item"]]
            assert got["argmax"] == row["argmax"]
            assert got["logprob"] == pytest.approx(row["logprob"], abs=2e-4)
        distinct.add(tuple(round(row["logprob"], 3) for row in wanted))
    assert len(distinct) == len(asked)


def test_systems_are_conditions_with_tests_and_costs(made: tuple[Path, MetricsFile]) -> None:
    metrics = made[1]
    found = {(entry.condition, entry.strength): entry for entry in metrics.conditions}
    assert set(found) == {
        ("base", 0.0), ("vector", 0.5), ("random", 1.0), ("align-training", 1.0), ("inst-align", 1.0),
        ("proxy-tuning", 1.0),
    }  # fmt: skip
    assert "token_acc_negative" in (found["align-training", 1.0].p_vs_base or {})
    costs = metrics.costs or {}
    assert set(costs) == {"target", "align-training", "inst-align", "proxy-tuning"}
    # Three models answer where one does (and each is tried once before beginnings are shared).
    assert costs["proxy-tuning"]["forward_passes"] >= 3 * costs["align-training"]["forward_passes"]
    assert costs["inst-align"]["tokens"] > costs["align-training"]["tokens"]


def test_a_finished_evaluation_knows_its_systems(made: tuple[Path, MetricsFile]) -> None:
    identity = json.loads((made[0] / "metrics.json").read_text())["identity"]
    assert identity["systems"]["inst-align"]["instruction"] == "Be happy."
    weights = [model["weights"] for model in identity["systems"]["proxy-tuning"]["models"]]
    assert len(set(weights)) == 3
