"""The plan of a recipe against what its harvests then take."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from sets import write_lines
from test_placement import LLAMA_7B, LLAMA_70B
from tiny import save_tiny

from contrans_dist.cli import main
from contrans_dist.plan import Texts

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
    folder.mkdir()
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


def _harvested(path: Path, out: Path) -> list[int]:
    """Run the recipe; the peak memory of each of the harvest's actors, in bytes."""
    command = [sys.executable, "-m", "contrans_dist", "run", str(path), "--out", str(out)]
    run = subprocess.Popen(
        [*command, "--address", "local", "--set", "cluster.actors=1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peaks: dict[int, int] = {}
    while run.poll() is None:
        for child in psutil.Process(run.pid).children(recursive=True):
            try:
                if child.name().startswith("ray::HarvestAct"):
                    status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                    line = next(line for line in status if line.startswith("VmHWM"))
                    peaks[child.pid] = int(line.split()[1]) * 1024
            except (psutil.NoSuchProcess, OSError, StopIteration):
                continue
    assert run.returncode == 0
    return list(peaks.values())


def test_memory_and_disk_are_those_of_the_run(tmp_path: Path) -> None:
    models = [
        str(save_tiny(tmp_path / name, "llama", n_blocks=4, d=256, seed=i)) for i, name in enumerate("ab")
    ]
    path = _recipe(tmp_path, models[0], models[1])
    # In a process of its own: what this one holds is no measure.
    command = [sys.executable, "-m", "contrans_dist", "plan", str(path), "--json"]
    said = subprocess.run([*command, "--set", "cluster.actors=1"], capture_output=True, check=True)
    plan = json.loads(said.stdout)
    peaks = _harvested(path, tmp_path / "run")
    manifests = {
        each.parent.name: json.loads(each.read_text())
        for each in (tmp_path / "run" / "activations").glob("*/manifest.json")
    }
    for stage in plan["stages"]:
        kind, _, name = stage["name"].partition(" ")
        if kind == "harvest":
            written = sum(shard["bytes"] for shard in manifests[name]["shards"])
            assert stage["disk"] == pytest.approx(written, rel=0.1)
            assert stage["tokens"] == manifests[name]["tokens"]
            assert stage["texts"] == manifests[name]["rows"]
    asked = [each["memory"] for each in plan["actors"] if each["use"] == "harvest"]
    assert 0.85 < max(asked) / max(peaks) < 1.15


def test_7b_to_70b_on_a_cluster_described_by_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of these models is there but a configuration."""
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
    assert corpus["disk"] == pytest.approx(600 * 8192 * 4 * 0.7, rel=0.1)
    words = sum(len(json.loads(line)["text"].split()) for line in (tmp_path / "corpus.jsonl").open())
    assert corpus["tokens"] == pytest.approx(1.35 * (words + 600), rel=0.01)
    assert 0 < corpus["seconds"] < 600
    assert plan["rate"] == "at 200 TFLOP/s an actor"
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
    """With weights for one model, and for the other a configuration alone."""
    small = {
        **LLAMA_7B,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 500,
    }
    path = _recipe(tmp_path, _bare(tmp_path / "bare", small), str(save_tiny(tmp_path / "model")), 60)
    plan = _plan(path, "--calibrate", capsys=capsys, monkeypatch=monkeypatch)
    assert all(stage["seconds"] > 0 for stage in plan["stages"])
    assert plan["hours"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"]) / 3600, rel=0.01)


def test_common_beginnings_count_once() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, rng.integers(1, 9)).tolist() for _ in range(200)]
    prefixes = {tuple(text[: n + 1]) for text in texts for n in range(len(text))}
    assert Texts([list(text) for text in texts]).distinct == len(prefixes)
    by_two = [
        {tuple(text[:end]) for text in texts[i : i + 2] for end in range(1, len(text) + 1)} for i in (0, 2)
    ]
    assert Texts([list(text) for text in texts[:4]]).distinct_by(2) == sum(map(len, by_two))
    assert Texts([list(text) for text in texts], 2.0).tokens == 2 * sum(map(len, texts))
