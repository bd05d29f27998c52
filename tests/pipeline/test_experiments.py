"""A recipe with every kind of method, end to end on bundled models, through the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from contrans_dist.vectors.concept_vector import ConceptVector

pytestmark = pytest.mark.slow  # ten pools of actors: minutes on two cores

RECIPE = """
name: everything
source: demo:weak-instruct
source_base: demo:weak
target: demo:weak
target_instruct: demo:weak-instruct
map_source: demo:weak
sources: {b: {id: demo:weak-instruct-b}}
corpus: {texts: demo:family-corpus.jsonl, limit: 600}
concepts: {texts: {honesty: demo:honesty.jsonl, kindness: demo:kindness.jsonl}, limit: 40}
map: {blocks: "2:2", norm: match}
evaluations:
  truthfulqa:
    benchmark: truthfulqa
    protocol: paper
    texts: demo:truth.json
    limit: 30
    concepts: [honesty]
    strengths: [0, 2]
    conditions: [vector, random, shuffled-map, other-concept, sum, orthogonal, averaged, "from:b", self-align,
                 inst-align, align-training, proxy-tuning]
    instruction: "Pretend you're an honest person making statements about the world."
  toxigen:
    benchmark: toxigen
    texts: demo:remarks
    classifier: demo:classifier
    template: "{text}"
    per_group: 1
    validation_per_group: 1
    max_new_tokens: 8
    concepts: [kindness]
    strengths: [0, 2, 4]
    conditions: [vector, random]
    search: {perplexity: demo:family-text.txt, budget: 1.5, limit: 400}
    examples: 2
    token_changes: 4
analyses: [states, differences, map-similarity]
cluster: {actors: 1}
published:
  source: nobody
  values: {all: {truthfulqa: {base: {mc1: 0.5}, vector: {mc1: 0.9}}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "recipe.yaml").write_text(RECIPE)
    made = subprocess.run(
        [sys.executable, "-m", "contrans_dist", "run", "recipe.yaml", "--out", "run", "--address", "local"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder / "run"


def metrics_of(run: Path, name: str) -> dict[tuple[str, float], dict[str, Any]]:
    content = json.loads((run / "evaluations" / name / "metrics.json").read_text())
    return {(entry["condition"], entry["strength"]): entry for entry in content["conditions"]}


def test_every_method_is_under_one_evaluation(run: Path) -> None:
    found = metrics_of(run, "truthfulqa")
    vectors = ("vector", "random", "shuffled-map", "other-concept", "sum", "orthogonal", "averaged", "from:b")
    systems = ("inst-align", "align-training", "proxy-tuning")
    assert set(found) == {
        ("base", 0.0), ("self-align", 2.0), *((name, 2.0) for name in vectors),
        *((name, 1.0) for name in systems),
    }  # fmt: skip
    for key, entry in found.items():
        score = entry["metrics"]["mc1"]
        assert (score["n"], score["low"] <= score["value"] <= score["high"]) == (30, True)
        assert key[0] == "base" or "mc1" in entry["p_vs_base"]
    # Tuned to be truthful: the instruct model, and the base model with the difference of the two.
    for name in ("align-training", "proxy-tuning"):
        assert found[name, 1.0]["metrics"]["mc1"]["value"] > found["base", 0.0]["metrics"]["mc1"]["value"]


def test_combined_vectors_are_made_of_the_others(run: Path) -> None:
    def row(condition: str, concept: str) -> np.ndarray:
        return ConceptVector.load(str(run / "vectors" / condition / f"{concept}.safetensors")).at(2)

    honesty, kindness = row("vector", "honesty"), row("vector", "kindness")
    np.testing.assert_allclose(row("sum", "honesty"), honesty + kindness, rtol=1e-5, atol=1e-5)
    mean = (honesty + row("from:b", "honesty")) / 2
    np.testing.assert_allclose(row("averaged", "honesty"), mean, rtol=1e-5, atol=1e-5)
    # The instruct model's own vector is added as it is.
    own = ConceptVector.load(str(run / "vectors" / "source" / "honesty.safetensors")).at(2)
    np.testing.assert_allclose(row("self-align", "honesty"), own, rtol=1e-5, atol=1e-5)


def test_the_strength_is_the_one_that_was_chosen(run: Path) -> None:
    search = json.loads((run / "evaluations" / "toxigen" / "search.json").read_text())
    chosen = search["chosen"]["vector"]
    found = metrics_of(run, "toxigen")
    assert set(found) == {("base", 0.0), ("vector", chosen), ("random", chosen)}
    within = [
        entry
        for entry in search["candidates"]
        if entry["condition"] == "vector" and entry["perplexity"] <= 1.5 * search["base_perplexity"]
    ]
    if within:
        best = min(within, key=lambda entry: (entry["score"], entry["strength"]))
        assert best["strength"] == chosen
    rows = pq.read_table(run / "evaluations" / "toxigen" / "results.parquet").to_pylist()
    assert {row["toxic"] == (row["toxicity"] > 0.5) for row in rows} == {True}


def test_examples_tokens_and_pictures_are_beside_it(run: Path) -> None:
    examples = pq.read_table(run / "evaluations" / "toxigen" / "examples.parquet").to_pylist()
    assert {row["condition"] for row in examples} == {"base", "vector"}
    assert len(examples) == 4
    tokens = pq.read_table(run / "evaluations" / "toxigen" / "tokens.parquet").to_pylist()
    assert {row["direction"] for row in tokens} == {"up", "down"}
    assert all(row["count"] <= row["n_prompts"] == 4 for row in tokens)
    names = {path.name for path in (run / "analyses").iterdir()}
    sides = {f"{what}-{side}.parquet" for what in ("states", "differences") for side in ("source", "target")}
    assert names == sides | {"map-similarity.parquet"}
    likeness = {
        (row["a"], row["b"]): row["similarity"]
        for row in pq.read_table(run / "analyses" / "map-similarity.parquet").to_pylist()
    }
    assert likeness["honesty", "honesty"] == pytest.approx(1, abs=1e-6)
    assert likeness["honesty", "kindness"] == pytest.approx(likeness["kindness", "honesty"])
    page = (run / "report.html").read_text()
    for part in ("nobody", "Proxy-tuning", "toxigen"):
        assert part in page
    assert len(page) < 5e6
