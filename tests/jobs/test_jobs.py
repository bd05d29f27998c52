"""The job scripts under `ray job submit`, on a real head with token authentication."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrans_dist.cli import options
from contrans_dist.errors import UserError
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.heads import REPOSITORY, Head, write_token
from tests.jobs.scripts import COMMANDS, flags
from tests.recipes import CONCEPTS, World, tiny_world

# -- what the jobs work on ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@dataclass(frozen=True)
class Finished:
    """What a job of four scripts left, and what each of them printed."""

    out: Path
    printed: dict[str, str]


@pytest.fixture(scope="module")
def finished(head: Head, world: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One job that runs every script: a submission takes eight seconds, of which most is waiting."""
    out = tmp_path_factory.mktemp("out")
    sets, vectors = out / "run" / "activations", out / "run" / "vectors" / "vector"
    scripts: dict[str, list[Any]] = {
        "pipeline": [world.recipe, "--out", (out / "run").as_uri()],
        "harvest": [
            "--model",
            world.target,
            "--texts",
            world.corpus,
            "--out",
            out / "set",
            "--blocks",
            "1",
            "--actors",
            "1",
        ],
        "reduce": [
            *("--source-contrast", sets / "contrast-source", "--target-contrast", sets / "contrast-target"),
            *("--source-corpus", sets / "corpus-source", "--target-corpus", sets / "corpus-target"),
            *("--blocks", "1:2", "--protocol", "paper", "--norm", "keep", "--out", out / "reduced", "--json"),
        ],
        "evaluate": [
            *("--model", world.target, "--benchmark", "emotions", "--data", world.scenarios),
            *(word for concept in CONCEPTS for word in ("--vector", vectors / f"{concept}.safetensors")),
            *("--strengths", "0,1", "--out", out / "evaluation", "--actors", "1"),
        ],
    }
    commands = [
        f"echo =={name}; {shlex.join([sys.executable, f'jobs/{name}.py', *map(str, arguments)])}"
        for name, arguments in scripts.items()
    ]
    code, output = head.submit("sh", "-e", "-c", "; ".join(commands))
    assert code == 0, output
    parts = re.split(r"(?m)^==(\w+)$", output)
    return Finished(out, dict(zip(parts[1::2], parts[2::2], strict=True)))


# -- submitted jobs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_harvest_job_writes_what_transformers_computes(head: Head, world: World, finished: Finished) -> None:
    out = finished.out / "set"
    assert f"{out}: 60 rows" in finished.printed["harvest"]
    rows = ActivationSet.open(str(out))
    model = AutoModelForCausalLM.from_pretrained(world.target).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.target)
    texts = [json.loads(line)["text"] for line in Path(world.corpus).read_text().splitlines()]
    with torch.inference_mode():
        wanted = [
            model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states[2]
            for text in texts
        ]
    expected = np.stack([states[0, -1].numpy() for states in wanted])
    found = rows.read_block(1)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert (rows.manifest.command or "").startswith("python jobs/harvest.py --model")
    assert head.token.read_text() not in (out / "manifest.json").read_text()


@pytest.mark.slow
def test_pipeline_job_leaves_the_folder_of_a_run(finished: Finished) -> None:
    out = finished.out / "run"
    assert f"report: {out}/report.html" in finished.printed["pipeline"]
    metrics = json.loads((out / "evaluations/emotions/metrics.json").read_text())
    conditions = {(entry["condition"], entry["strength"]) for entry in metrics["conditions"]}
    assert conditions == {("base", 0.0), ("vector", 1.0), ("random", 1.0)}
    assert metrics["leak"]["overlap_vector"] == metrics["leak"]["overlap_map"] == 0
    assert "</html>" in (out / "report.html").read_text()
    for name, (rows, d) in {"corpus-source": (60, 16), "contrast-target": (24, 32)}.items():
        found = ActivationSet.open(str(out / "activations" / name))
        assert (found.n_rows, found.d) == (rows, d)


@pytest.mark.slow
def test_reduce_job_gives_the_vectors_of_the_formulas(finished: Finished) -> None:
    out, sets = finished.out / "reduced", finished.out / "run" / "activations"
    contrast = ActivationSet.open(str(sets / "contrast-source"))
    about = np.array(contrast.read_columns(["concept"]).column("concept").to_pylist())
    rows = contrast.read_block(1).astype(np.float64)
    x, y = (
        ActivationSet.open(str(sets / f"corpus-{s}")).read_block(b) for s, b in (("source", 1), ("target", 2))
    )
    n_fit = int(0.8 * len(x))
    weight = np.linalg.pinv(x[:n_fit].astype(np.float64)) @ y[:n_fit]
    assert np.allclose(MapSet.load(str(out / "maps/corpus.safetensors")).maps[1, 2].weight, weight, atol=1e-3)
    for concept in CONCEPTS:
        # Two concepts of equally many texts: the negatives of one are all texts of the other.
        vector = rows[about == concept].mean(0) - rows[about != concept].mean(0)
        mapped = ConceptVector.load(str(out / f"vectors/vector/{concept}.safetensors"))
        assert mapped.blocks == [2]
        assert np.allclose(mapped.at(2), vector @ weight, atol=1e-3 * np.abs(vector @ weight).max())
    own = ConceptVector.load(str(out / "vectors/target/joy.safetensors")).at(2)
    mapped_joy = ConceptVector.load(str(out / "vectors/vector/joy.safetensors")).at(2)
    cosine = float(mapped_joy @ own / np.linalg.norm(mapped_joy) / np.linalg.norm(own))
    printed = next(
        json.loads(line) for line in finished.printed["reduce"].splitlines() if line.startswith("{")
    )
    assert printed["cosines"]["joy"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.slow
def test_evaluate_job_scores_every_condition(finished: Finished) -> None:
    assert "other-concept" in finished.printed["evaluate"]
    table = pq.read_table(finished.out / "evaluation" / "results.parquet")
    conditions = ["base", "vector", "random", "shuffled-map", "other-concept"]
    assert sorted(set(table.column("condition").to_pylist())) == sorted(conditions)
    # 12 scenarios of each of two concepts, asked for their own and for the other.
    assert table.num_rows == 24 * 2 * len(conditions)


def test_a_relative_out_is_refused_in_a_job(head: Head) -> None:
    code, output = head.run(
        *("harvest", "--model", "demo:source", "--texts", "README.md", "--out", "runs/set"),
        debug=True,
    )
    assert code == 1
    assert "failed with exit code 2" in output
    assert "contrans: --out: a submitted job runs in a working directory of its own" in output
    # The package in use is the uploaded one, not one installed beside it.
    frames = [line for line in output.splitlines() if "contrans_dist/cli/options.py" in line]
    assert frames
    assert all("working_dir_files" in line for line in frames)


def test_a_wrong_token_is_refused(head: Head, tmp_path: Path) -> None:
    code, output = head.submit("true", token=write_token(tmp_path / "token", "f" * 64))
    assert code != 0
    assert "Authentication failed" in output


@pytest.mark.slow
def test_a_failure_while_running_is_exit_code_1_and_a_resubmission_goes_on(
    head: Head, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    arguments = ("--model", world.source, "--texts", world.corpus, "--out", str(out), "--blocks", "2")
    code, output = head.run("harvest", *arguments, "--shard-size", "20")
    assert code == 0, output
    before = ActivationSet.open(str(out)).read_block(2)
    (out / "manifest.json").unlink()
    (out / "shard-00001.parquet").unlink()
    kept = (out / "shard-00000.parquet").stat().st_mtime_ns
    code, output = head.run("harvest", *arguments, "--shard-size", "20", "--address", "127.0.0.1:9")
    assert code == 1
    assert "failed with exit code 1" in output
    assert "contrans: --address 127.0.0.1:9: no Ray cluster answered" in output
    code, output = head.run("harvest", *arguments, "--shard-size", "20")
    assert code == 0, output
    assert (out / "shard-00000.parquet").stat().st_mtime_ns == kept
    assert np.array_equal(ActivationSet.open(str(out)).read_block(2), before)


# -- without a cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["/tmp/x", "~/x", "s3://bucket/x", "file:///tmp/x"])
def test_lasting_places_pass(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert options.lasting(out) == out


@pytest.mark.parametrize("out", ["x", "./x", "runs/x", None])
def test_other_places_are_refused_in_a_job_alone(out: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert options.lasting(out) == out
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="absolute path or a URI"):
        options.lasting(out)


def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]
    environment_ = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment_)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag_and_how_to_submit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = script(name, "--help")
    assert shown.returncode == 0
    missing = {flag for flag in flags(COMMANDS[name]) if flag not in shown.stdout}
    assert not missing
    assert f"ray job submit --working-dir . -- python jobs/{name}.py" in shown.stdout


def test_bad_input_is_one_line_and_exit_code_2() -> None:
    done = script("pipeline", "demo", "--out", "runs/demo", RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert done.returncode == 2
    assert done.stderr.startswith("contrans: --out: a submitted job runs in a working directory of its own")
    assert len(done.stderr.splitlines()) == 1
