"""The command line and a whole run, on two tiny models of different width, against numpy's formulas."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from contrans_dist.cli import app, main
from contrans_dist.config import Recipe
from contrans_dist.config.recipe import load_recipe
from contrans_dist.evaluation.conditions import vectors_for
from contrans_dist.evaluation.sides import Sides
from contrans_dist.evaluation.transfers import Fitted, Material
from contrans_dist.mapping.driver import fit
from contrans_dist.pipeline.runs import run_recipe
from contrans_dist.store.location import Location
from contrans_dist.vectors.from_activations import concept_rows, refine
from tests.sets import make_set, write_lines
from tests.tiny import CORPUS, save_tiny

CONCEPTS = ["happy", "sad", "angry", "afraid", "tired", "proud"]
PAIR = (2, 1)
D_SOURCE, D_TARGET = 16, 32
SCENE = "Scenario: {text}\nThe emotion of the above scenario is"
CONDITIONS = [
    "vector", "random", "shuffled-map", "other-concept", "self-align", "self-modulation", "lcross-own",
    "lcross-unrelated", "random-map", "no-map",
]  # fmt: skip


def scenes(kind: str, count: int) -> list[dict[str, str]]:
    return [
        {"text": f"The {kind} girl number {i} felt {c} when the dog ate her ball.", "concept": c}
        for c in CONCEPTS
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(f"{CORPUS[i % 5]} That was day {i}.\n" for i in range(70)))
    content = {
        "name": "small",
        "description": "two tiny models",
        "source": str(save_tiny(folder / "source", "gpt_neox", n_blocks=4, d=D_SOURCE)),
        "target": {"id": str(save_tiny(folder / "target", "llama", n_blocks=3, d=D_TARGET, seed=1))},
        "corpus": {"texts": str(corpus)},
        "concepts": {"texts": write_lines(folder / "contrast.jsonl", scenes("little", 8)), "template": SCENE},
        "map": {"blocks": f"{PAIR[0]}:{PAIR[1]}", "source_blocks": 1},
        "evaluations": {
            "emotions": {
                "texts": write_lines(folder / "scenarios.jsonl", scenes("old", 3)),
                "template": SCENE,
                "strengths": [0, 1],
                "conditions": CONDITIONS,
            }
        },
        "cluster": {"actors": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def run(
    in_process: None, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """One whole run, in this process."""
    out = tmp_path_factory.mktemp("run") / "small"
    return out, run_recipe(load_recipe(recipe), Location.parse(out))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


def output_of(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def json_of(*arguments: str | Path) -> dict[str, Any]:
    lines = output_of(*arguments, "--json").splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert isinstance(found, dict)
    return found


def rows_of(folder: Path, block: int) -> np.ndarray:
    """Float64 `[n, d]`, read with pyarrow alone."""
    table = pq.read_table(sorted(folder.glob("shard-*.parquet")))
    values = table.column(f"block_{block:03d}").combine_chunks()
    return values.flatten().to_numpy().reshape(len(table), -1).astype(np.float64)


def row_in(path: Path, block: int) -> np.ndarray:
    values = load_file(path)["vector"]
    assert np.flatnonzero(values.any(axis=1)).tolist() == [block]
    return values[block]


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "numpy") as file:
        return dict(json.loads(file.metadata()["contrans"]))


# -- a whole run -----------------------------------------------------------------------------------


def test_a_run_leaves_what_the_design_says(run: tuple[Path, dict[str, Any]]) -> None:
    out, summary = run
    for name in ("recipe.yaml", "run.json", "report.html", "maps/corpus.safetensors", "texts/corpus.jsonl"):
        assert (out / name).stat().st_size > 0, name
    for name in ("results.parquet", "metrics.json"):
        assert (out / "evaluations" / "emotions" / name).exists()
    for side in ("source", "target", "vector", "lcross-own"):
        found = sorted(path.stem for path in (out / "vectors" / side).iterdir())
        assert found == sorted(CONCEPTS), side
    facts = json.loads((out / "run.json").read_text())
    names = [stage["name"] for stage in facts["stages"]]
    assert names == ["harvest", "refine", "fit", "evaluate", "report"]
    assert Recipe.model_validate(yaml.safe_load((out / "recipe.yaml").read_text())).name == "small"
    assert summary["report"] == str(out / "report.html")
    assert "<html" in (out / "report.html").read_text()
    assert json.loads(json.dumps(summary)) == summary


def test_every_condition_but_the_impossible_one_is_scored(run: tuple[Path, dict[str, Any]]) -> None:
    metrics = json.loads((run[0] / "evaluations" / "emotions" / "metrics.json").read_text())
    found = {(entry["condition"], entry["strength"]) for entry in metrics["conditions"]}
    # The two models differ in width, so there is no way without a map.
    assert found == {("base", 0.0), *((name, 1.0) for name in CONDITIONS if name != "no-map")}
    assert metrics["leak"]["overlap_vector"] == metrics["leak"]["overlap_map"] == 0
    assert metrics["leak"]["evaluated"] == 3 * len(CONCEPTS)


def concept_groups(out: Path, concept: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows a concept's vector is made of: its own, and those the run drew from the others."""
    from contrans_dist.vectors.extract import one_vs_rest

    labels = pq.read_table(
        out / "activations" / "contrast-source" / "shard-00000.parquet", columns=["concept"]
    )
    return one_vs_rest(labels.column("concept").to_pylist(), concept, 0)


def matched(row: np.ndarray, vector: np.ndarray, out: Path) -> np.ndarray:
    """`row` scaled to the share of the target's median norm that `vector` has of the source's."""
    norms = []
    for side, block in zip(("source", "target"), PAIR, strict=True):
        # Of the corpus: the map's two sides.
        rows = rows_of(out / "activations" / f"corpus-{side}", block)
        norms.append(np.median(np.linalg.norm(rows, axis=1)))
    return row / np.linalg.norm(row) * np.linalg.norm(vector) / norms[0] * norms[1]


@pytest.mark.parametrize("concept", ["happy", "proud"])
def test_vectors_of_a_run_are_the_formulas(run: tuple[Path, dict[str, Any]], concept: str) -> None:
    out = run[0]
    positive, negative = concept_groups(out, concept)
    own = {}
    for side, block in zip(("source", "target"), PAIR, strict=True):
        rows = rows_of(out / "activations" / f"contrast-{side}", block)
        own[side] = rows[positive].mean(axis=0) - rows[negative].mean(axis=0)
        found = row_in(out / "vectors" / side / f"{concept}.safetensors", block)
        np.testing.assert_allclose(found, own[side], rtol=1e-4, atol=1e-5)
    weight = load_file(out / "maps" / "corpus.safetensors")[f"weight.{PAIR[0]}.{PAIR[1]}"]
    carried = matched(own["source"] @ weight, own["source"], out)
    found = row_in(out / "vectors" / "vector" / f"{concept}.safetensors", PAIR[1])
    np.testing.assert_allclose(found, carried, rtol=1e-3, atol=1e-4 * np.abs(carried).max())
    pair = header_of(out / "maps" / "corpus.safetensors")["pairs"][0]
    cosine = own["source"] @ weight @ own["target"]
    cosine /= np.linalg.norm(own["source"] @ weight) * np.linalg.norm(own["target"])
    assert pair["cosines"][concept] == pytest.approx(cosine, abs=1e-4)
    for name in ("self-align", "self-modulation"):
        found = row_in(out / "vectors" / name / f"{concept}.safetensors", PAIR[1])
        np.testing.assert_allclose(found, own["target"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("concept", ["happy", "proud"])
def test_l_cross_is_the_pseudo_inverse_over_contrast_prompts(
    run: tuple[Path, dict[str, Any]], concept: str
) -> None:
    out = run[0]
    x, y = (
        rows_of(out / "activations" / f"contrast-{side}", block)
        for side, block in zip(("source", "target"), PAIR, strict=True)
    )
    vector = row_in(out / "vectors" / "source" / f"{concept}.safetensors", PAIR[0]).astype(np.float64)
    other = CONCEPTS[(CONCEPTS.index(concept) + 1) % len(CONCEPTS)]
    about = [row["concept"] for row in scenes("little", 8)]
    own = np.sort(np.concatenate(concept_groups(out, concept)))
    unrelated = np.sort(np.concatenate(concept_groups(out, other)))
    unrelated = np.array([row for row in unrelated if about[row] != concept])
    for name, rows in (("lcross-own", own), ("lcross-unrelated", unrelated)):
        expected = vector @ np.linalg.pinv(x[rows]) @ y[rows]
        found = row_in(out / "vectors" / name / f"{concept}.safetensors", PAIR[1])
        cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine > 1 - 1e-5, name
        norms = [np.median(np.linalg.norm(rows, axis=1)) for rows in (x, y)]  # the map's sides: contrast sets
        share = np.linalg.norm(vector) / norms[0] * norms[1]
        assert np.linalg.norm(found) == pytest.approx(share, rel=1e-4), name
    assert own.size == 16
    assert 8 <= unrelated.size < 16


def test_a_random_map_carries_the_norm_and_nothing_else(run: tuple[Path, dict[str, Any]]) -> None:
    vectors = run[0] / "vectors"
    cosines = []
    for concept in CONCEPTS:
        real, random = (
            row_in(vectors / name / f"{concept}.safetensors", PAIR[1]) for name in ("vector", "random-map")
        )
        assert np.linalg.norm(random) == pytest.approx(np.linalg.norm(real), rel=1e-4)
        cosines.append(real @ random / np.linalg.norm(real) ** 2)
    assert np.abs(np.mean(cosines)) < 0.5


def test_the_same_recipe_again_computes_nothing(
    run: tuple[Path, dict[str, Any]], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run[0]
    kept = [*out.glob("activations/*/*"), *out.glob("evaluations/*/*")]
    assert len(kept) > 8
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}
    vectors = {path: load_file(path)["vector"].tobytes() for path in out.glob("vectors/*/*")}
    import contrans_dist.evaluation.driver
    import contrans_dist.harvest.missing

    for room in (contrans_dist.evaluation.driver, contrans_dist.harvest.missing):
        monkeypatch.setattr(room, "run_tasks", None)  # an actor must not be started
    found = json_of("run", recipe, "--out", out)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == before
    assert {path: load_file(path)["vector"].tobytes() for path in out.glob("vectors/*/*")} == vectors
    assert found["report"] == str(out / "report.html")
    assert set(found["evaluations"]) == {"emotions"}


def test_without_a_map_a_vector_is_taken_as_it_is_where_widths_agree(recipe: Path, tmp_path: Path) -> None:
    labels = [CONCEPTS[i % 3] for i in range(60)]
    made = {}
    for name, seed in (
        ("contrast-source", 0),
        ("contrast-target", 1),
        ("corpus-source", 2),
        ("corpus-target", 3),
    ):
        rows = {block: np.random.default_rng([seed, block]).normal(size=(60, 5)) + 1 for block in (1, 2)}
        made[name] = make_set(tmp_path / name, rows, 3, concept=labels)
    sides = Sides(
        made["corpus-source"], made["corpus-target"], made["contrast-source"], made["contrast-target"]
    )
    own = {
        side: {c: refine(rows, *concept_rows(rows, c), c) for c in CONCEPTS[:3]}
        for side, rows in (("source", sides.contrast_source), ("target", sides.contrast_target))
    }
    maps = fit(sides.corpus_source, sides.corpus_target, "2:1", quiet=True)
    settings = load_recipe(recipe)
    found = vectors_for(Material(settings, own, 1, Fitted(sides, maps)), ["no-map"])
    for concept in CONCEPTS[:3]:
        carried = found["no-map"][concept]
        assert carried.blocks == [1]
        np.testing.assert_array_equal(carried.at(1), own["source"][concept].at(2))
        assert carried.map_text_hashes.size == 0
    assert not np.allclose(found["vector"]["sad"].at(1), found["no-map"]["sad"].at(1))


# -- stage by stage --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(
    run: tuple[Path, dict[str, Any]], recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """harvest, refine, fit, transplant, evaluate by their own commands; what each printed as JSON."""
    settings, out = load_recipe(recipe), tmp_path_factory.mktemp("stages")
    assert settings.source is not None
    said: dict[str, dict[str, Any]] = {}
    for side, model in (("source", settings.source.id), ("target", settings.target.id)):
        for name, texts, more in (
            ("corpus", run[0] / "texts" / "corpus.jsonl", []),
            ("contrast", settings.concepts.texts, ["--template", SCENE.replace("\n", "\\n")]),
        ):
            said[f"{name}-{side}"] = json_of(
                "harvest", "--model", model, "--texts", str(texts), "--out", out / f"{name}-{side}",
                "--actors", "1", *more,
            )  # fmt: skip
    for concept, other in (("happy", "sad"), ("sad", "happy")):
        for side in ("source", "target"):
            said[f"refine-{side}-{concept}"] = json_of(
                "refine", "--activations", out / f"contrast-{side}",
                "--out", out / side / f"{concept}.safetensors",
                "--positive", f"concept={concept}", "--negative", f"concept={other}",
            )  # fmt: skip
    said["fit"] = json_of(
        "fit", "--source", out / "corpus-source", "--target", out / "corpus-target",
        "--blocks", "2:1", "--source-blocks", "1", "--out", out / "map.safetensors",
    )  # fmt: skip
    for concept in ("happy", "sad"):
        said[f"transplant-{concept}"] = json_of(
            "transplant", "--vector", out / "source" / f"{concept}.safetensors",
            "--map", out / "map.safetensors", "--norm", "match",
            "--own", out / "target" / f"{concept}.safetensors", "--out", out / f"{concept}.safetensors",
        )  # fmt: skip
    said["evaluate"] = json_of(
        "evaluate", "--model", settings.target.id, "--benchmark", "emotions",
        "--data", str(settings.evaluations["emotions"].texts), "--template", SCENE.replace("\n", "\\n"),
        "--vector", out / "happy.safetensors", "--vector", out / "sad.safetensors",
        "--strengths", "0,2", "--actors", "1", "--out", out / "evaluation",
    )  # fmt: skip
    return out, said


def test_harvest_says_what_it_wrote(
    stages: tuple[Path, dict[str, dict[str, Any]]], run: tuple[Path, dict[str, Any]]
) -> None:
    out, said = stages
    assert (said["contrast-source"]["rows"], said["contrast-source"]["d"]) == (48, D_SOURCE)
    assert said["corpus-target"]["blocks"] == [0, 1, 2]
    assert said["corpus-target"]["truncated"] == 0
    # One block alone or all of them, by a command or a recipe: the same rows.
    for name, block in (("contrast-source", 2), ("corpus-target", 1)):
        np.testing.assert_allclose(
            rows_of(out / name, block), rows_of(run[0] / "activations" / name, block), rtol=1e-5, atol=1e-5
        )


def test_refine_fit_and_transplant_are_the_formulas(stages: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    out, said = stages
    assert said["refine-source-happy"] == {
        "out": str(out / "source" / "happy.safetensors"), "concept": "happy", "blocks": [0, 1, 2, 3],
        "d": D_SOURCE,
    }  # fmt: skip
    x, y = rows_of(out / "contrast-source", 2), rows_of(out / "contrast-target", 1)
    vector, own = (rows[:8].mean(axis=0) - rows[8:16].mean(axis=0) for rows in (x, y))
    np.testing.assert_allclose(
        load_file(out / "source" / "happy.safetensors")["vector"][2], vector, rtol=1e-4, atol=1e-5
    )
    weight = load_file(out / "map.safetensors")["weight.2.1"]
    assert weight.shape == (D_SOURCE, D_TARGET)
    carried = vector @ weight
    found = row_in(out / "happy.safetensors", 1)
    assert found @ carried / np.linalg.norm(found) / np.linalg.norm(carried) == pytest.approx(1, abs=1e-5)
    cosine = carried @ own / np.linalg.norm(carried) / np.linalg.norm(own)
    assert said["transplant-happy"]["cosine"] == pytest.approx(cosine, abs=1e-4)
    norm = np.median(np.linalg.norm(rows_of(out / "corpus-target", 1), axis=1))
    share = np.linalg.norm(found) / norm
    assert said["transplant-happy"]["share_of_residual_norm"] == pytest.approx(share, rel=1e-4)
    pair = said["fit"]["pairs"][0]
    assert (pair["source"], pair["target"], pair["protocol"]) == (2, 1, "default")


def test_the_map_of_the_command_is_the_map_of_the_run(
    stages: tuple[Path, dict[str, dict[str, Any]]], run: tuple[Path, dict[str, Any]]
) -> None:
    a = load_file(stages[0] / "map.safetensors")
    b = load_file(run[0] / "maps" / "corpus.safetensors")
    for name in ("weight.2.1", "bias.2.1"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-3 * np.abs(b[name]).max())


def test_evaluate_prints_metrics_with_controls(stages: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    out, said = stages
    assert said["evaluate"] == json.loads((out / "evaluation" / "metrics.json").read_text())
    found = {(entry["condition"], entry["strength"]) for entry in said["evaluate"]["conditions"]}
    steered = ("vector", "random", "shuffled-map", "other-concept")
    assert found == {("base", 0.0), *((name, 2.0) for name in steered)}
    rows = pq.read_table(out / "evaluation" / "results.parquet").to_pylist()
    assert {row["concept"] for row in rows} == {"happy", "sad"}
    assert {row["block"] for row in rows} == {
        None,
        1,
    }


def test_evaluate_again_prints_the_table(
    stages: tuple[Path, dict[str, dict[str, Any]]], recipe: Path
) -> None:
    settings, out = load_recipe(recipe), stages[0]
    text = output_of(
        "evaluate", "--model", settings.target.id, "--benchmark", "emotions",
        "--data", str(settings.evaluations["emotions"].texts), "--template", SCENE.replace("\n", "\\n"),
        "--vector", out / "happy.safetensors", "--vector", out / "sad.safetensors",
        "--strengths", "0,2", "--actors", "1", "--out", out / "evaluation",
    )  # fmt: skip
    for word in ("token_acc_negative", "shuffled-map", "leak check: of 10 texts, 0 were seen"):
        assert word in text


def test_generate_continues_with_and_without_the_vector(
    stages: tuple[Path, dict[str, dict[str, Any]]], recipe: Path
) -> None:
    model = load_recipe(recipe).target.id
    vector = stages[0] / "happy.safetensors"
    found = json_of("generate", "--model", model, "--vector", vector, "--strength", "8", "The boy", "One day")
    assert [row["prompt"] for row in found["texts"]] == ["The boy", "One day"]
    assert all(row["base"] != row["steered"] for row in found["texts"])
    plain = json_of("generate", "--model", model, "--max-new-tokens", "5", "The boy")
    assert list(plain["texts"][0]) == ["prompt", "base"]
    assert found["texts"][0]["base"].startswith(plain["texts"][0]["base"])
    text = output_of("generate", "--model", model, "--vector", vector, "--strength", "8", "The boy")
    assert "base: The boy" in text
    assert "steered: The boy" in text


def test_inspect_says_what_each_artefact_is(
    stages: tuple[Path, dict[str, dict[str, Any]]], run: tuple[Path, dict[str, Any]]
) -> None:
    out = stages[0]
    for place, kind in (
        (out / "happy.safetensors", "vector"),
        (out / "map.safetensors", "map"),
        (out / "corpus-source", "activations"),
        (out / "corpus-source" / "shard-00000.parquet", "shard"),
        (out / "evaluation", "evaluation"),
        (run[0], "run"),
    ):
        assert json_of("inspect", place)["kind"] == kind
        assert kind in output_of("inspect", place)
    assert json_of("inspect", out / "happy.safetensors")["concept"] == "happy"


def test_status_of_whole_and_unfinished_things(
    stages: tuple[Path, dict[str, dict[str, Any]]], run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert json_of("status", stages[0] / "contrast-source") == {
        str(stages[0] / "contrast-source"): "complete, 48 rows in 1 shard"
    }
    whole = json_of("status", run[0])
    assert whole["evaluations/emotions"] == "complete"
    assert whole["report"] == "written"
    assert whole["activations/corpus-target"].startswith("complete, 70 rows")
    assert whole["maps"] == "1 file"
    assert whole["vectors"] == f"{6 * (2 + 6)} files"
    unfinished = tmp_path / "half"
    unfinished.mkdir()
    for name in ("shard-00000.parquet", "shard-00001.parquet"):
        (unfinished / name).write_bytes(b"")
    assert "2 shards finished, not complete" in output_of("status", unfinished)


def test_report_is_written_again(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page = run[0] / "report.html"
    page.unlink()
    assert output_of("report", run[0]).strip() == f"report: {page}"
    assert page.stat().st_size > 1000


# -- exit codes and messages -----------------------------------------------------------------------


def as_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path
) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `contrans ARGUMENTS`, in this process."""
    monkeypatch.setenv("CONTRANS_DEBUG", "")
    monkeypatch.setattr(sys, "argv", ["contrans", *map(str, arguments)])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "/nowhere.yaml"], "/nowhere.yaml: no such recipe"),
        (["run", "demmo"], "bundled are "),
        (["run", "demo", "--dry-run", "--set", "map.protocl=paper"], "did you mean protocol?"),
        (["inspect", "/nowhere"], "/nowhere: no such file or folder"),
        (["inspect", "/dev"], "/dev: expected an activation set, shard, vector, map, reduction"),
        (["status", "/nowhere"], "/nowhere: expected a harvest, an evaluation or a run"),
        (["report", "/nowhere"], "/nowhere"),
        (["harvest", "--model", "x", "--texts", "/nowhere.txt", "--out", "/tmp/o"], "/nowhere.txt"),
        (["harvest", "--model", "x", "--texts", "a.txt", "--out", "/tmp/o", "--position", "first"],
         "position: expected 'last' or 'mean' or a valid integer, found 'first'"),
        (["harvest", "--model", "x", "--texts", "a.txt", "--out", "/tmp/o", "--batch-tokens", "0"],
         "batch_tokens: expected greater than or equal to 1, found 0"),
        (["refine", "--activations", "/nowhere", "--out", "/tmp/o"], "/nowhere: no activation set"),
        (["refine", "--activations", "/nowhere", "--out", "/tmp/o", "--method", "median"], "--method median"),
        (["fit", "--source", "/a", "--target", "/b", "--out", "/tmp/o", "--protocol", "x"], "--protocol x"),
        (["transplant", "--vector", "/a", "--map", "/b", "--out", "/tmp/o", "--norm", "x"], "--norm x"),
        (["evaluate", "--model", "x", "--benchmark", "emotions", "--out", "/tmp/o"], "--data: expected"),
        (["evaluate", "--model", "x", "--benchmark", "emotins", "--out", "/tmp/o", "--data", "/x"],
         "--benchmark emotins: no benchmark 'emotins'; did you mean emotions?"),
        (["evaluate", "--model", "x", "--benchmark", "emotions", "--out", "/tmp/o"],
         "--data: expected what benchmark emotions is to score"),
        (["evaluate", "--model", "x", "--benchmark", "perplexity", "--out", "/tmp/o", "--data", "/x",
          "--proxy-tuning", "one"], "--proxy-tuning one: expected two models, TUNED,PLAIN"),
        (["evaluate", "--model", "x", "--benchmark", "perplexity", "--out", "/tmp/o", "--data", "/x",
          "--set", "windw=3"], "unknown key 'windw'; did you mean window?"),
        (["evaluate", "--model", "x", "--benchmark", "emotions", "--out", "/tmp/o", "--data", "/x",
          "--strengths", "0,a"], "--strengths 0,a: expected numbers"),
        (["evaluate", "--model", "x", "--benchmark", "emotions", "--out", "/tmp/o", "--data", "/x",
          "--controls", "randm", "--vector", "v"], "'randm'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    code, out, err = as_command(capsys, monkeypatch, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("contrans: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_failure_while_running_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import contrans_dist.pipeline.inspection
    from contrans_dist.errors import RunError

    def fails(_: Location) -> None:
        raise RunError("the disk is full; make room and run again")

    monkeypatch.setattr(contrans_dist.pipeline.inspection, "inspected", fails)
    assert as_command(capsys, monkeypatch, "inspect", "x") == (
        1, "", "contrans: the disk is full; make room and run again\n",
    )  # fmt: skip
    monkeypatch.setattr(contrans_dist.pipeline.inspection, "inspected", None)
    code, _, err = as_command(capsys, monkeypatch, "inspect", "x")
    assert code == 1
    assert "unexpected TypeError" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = as_command(capsys, monkeypatch, "--debug", "inspect", "/nowhere")
    assert code == 2
    assert "Traceback" in err
    assert "no such file or folder" in err


def test_interruption_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import contrans_dist.pipeline.inspection

    def interrupted(_: Location) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contrans_dist.pipeline.inspection, "inspected", interrupted)
    code, _, err = as_command(capsys, monkeypatch, "inspect", "x")
    assert code == 130
    assert "run the same command again" in err
    assert "Traceback" not in err


def test_the_installed_command(tmp_path: Path) -> None:
    """As a user types it: exit codes and channels of a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CONTRANS_DEBUG": ""}

    def contrans(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "contrans_dist", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )

    bad = contrans("refine", "--activations", "nowhere", "--out", "vector.safetensors")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith(f"contrans: {tmp_path / 'nowhere'}: no activation set")
    assert bad.stderr.count("\n") == 1
    unknown = contrans("inspect", "--nonsense", "x")
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    model = save_tiny(tmp_path / "model", n_blocks=2, d=16)
    down = contrans(
        "harvest", "--model", str(model), "--texts", "texts.txt", "--out", "set", "--address", "ray://127.0.0.1:1"
    )  # fmt: skip
    assert down.returncode == 1
    assert "no Ray cluster answered" in down.stderr
    assert "Traceback" not in down.stderr
    assert down.stdout == ""


def test_dry_run_prints_the_resolved_recipe_and_does_nothing(recipe: Path, tmp_path: Path) -> None:
    found = json_of("run", recipe, "--dry-run", "--set", "map.protocol=paper", "--out", tmp_path / "out")
    chosen = {name: value for name, value in found["map"].items() if value is not None}
    assert chosen == {"protocol": "paper", "blocks": "2:1", "norm": "match", "source_blocks": 1}
    text = output_of("run", recipe, "--dry-run", "--set", "map.protocol=paper", "--address", "auto")
    assert yaml.safe_load(text)["cluster"]["address"] == "auto"
    assert not (tmp_path / "out").exists()


def test_every_command_has_help_for_every_option() -> None:
    command = typer.main.get_command(app)
    commands = command.commands  # type: ignore[attr-defined]
    wanted = {"demo", "run", "harvest", "refine", "fit", "transplant", "evaluate", "generate", "report"}
    assert wanted | {"status", "inspect"} <= set(commands)
    for name, each in commands.items():
        assert (each.help or "").strip().endswith("."), name
        for parameter in each.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.help, (name, parameter.name)
        assert output_of(name, "--help")
