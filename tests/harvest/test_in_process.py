"""Small harvests without Ray: the same bytes as an actor of its own writes, and nothing lost by a signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import read_texts
from contrans_dist.distributed import local_ray
from contrans_dist.errors import RunError
from contrans_dist.harvest import actors
from contrans_dist.harvest.driver import harvest
from contrans_dist.harvest.shards import ShardReport
from tests.commands import run
from tests.harvests import shard_files
from tests.tiny import save_tiny
from tests.waiting import until

N_TEXTS = 1200
SHARD = 4
WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=3, d=16))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(N_TEXTS)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts Ray fails."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(local_ray, "connect", started)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", started)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.parquet"))}


def test_an_actor_of_its_own_writes_the_same_bytes(
    local: None, model: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, table, capture = ModelSettings(id=model), read_texts(str(texts)), CaptureSettings()
    one = ClusterSettings(address="local", actors=1, cpus_per_actor=1)
    by_actor = harvest(settings, table, str(tmp_path / "actor"), capture, one)
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(ray, "get", None)
        here = harvest(settings, table, str(tmp_path / "here"), capture)
    assert shards(tmp_path / "here") == shards(tmp_path / "actor") != {}
    assert here.manifest.identity == by_actor.manifest.identity
    assert here.manifest.shards == by_actor.manifest.shards
    assert here.manifest.norms == by_actor.manifest.norms
    assert (here.manifest.throughput.actors, here.manifest.throughput.lost_actors) == (1, 0)


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (signal.SIGINT, 130, "contrans: interrupted; what is finished is kept: run the same command again"),
        pytest.param(signal.SIGTERM, 143, "contrans: terminated; what is", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, "", marks=pytest.mark.slow),
    ],
)
def test_stopped_in_the_middle_and_run_again(
    how: signal.Signals,
    code: int,
    said: str,
    no_ray: None,
    model: str,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run that follows keeps what is there, and makes what one that is left in peace makes."""
    out, of = tmp_path / "set", N_TEXTS // SHARD
    command = ["harvest", "--model", model, "--texts", str(texts), "--shard-size", str(SHARD), "--out"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = [sys.executable, "-m", "contrans_dist", *command, str(out)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    until(lambda: len(shard_files(out)) >= 3 or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == code
    assert (err.splitlines() or [""])[-1].startswith(said)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert 3 <= len(before) < of
    assert not (out / "manifest.json").exists()
    ended = run(capsys, *command, out)
    assert ended.code == 0, ended.err
    assert f"{len(before)} of {of} shards are there" in ended.err
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert run(capsys, *command, tmp_path / "whole").code == 0
    assert shards(out) == shards(tmp_path / "whole")
    # The beginning of a file may stay, until it is swept.
    assert all(path.name.startswith(".tmp-") for path in out.glob(".*"))


def test_a_shard_that_fails_is_named_and_the_others_are_kept(
    no_ray: None,
    model: str,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tries: list[int] = []
    compute = actors.compute_shard

    def failing(lm: object, shard: object, *rest: object) -> ShardReport:
        if shard.index == 1:  # type: ignore[attr-defined]
            tries.append(1)
            raise RunError("the disk is full")
        return compute(lm, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(actors, "compute_shard", failing)
    out = tmp_path / "set"
    command = ("harvest", "--model", model, "--texts", texts, "--out", out, "--shard-size", 300, "--json")
    ended = run(capsys, *command)
    assert ended.code == 1
    said = ended.err.splitlines()[-1]
    assert said.startswith("contrans: 1 of 4 shards failed (")
    assert said.endswith(
        "shard-00001.parquet, rows 300 to 599: the disk is full); "
        "run the same command again to try only these"
    )
    assert len(tries) == 3
    assert len(shards(out)) == 3
    told = run(capsys, "inspect", out).out
    assert str(model) in told
    assert "3 shards finished, not complete: run the same harvest again" in told
    monkeypatch.setattr(actors, "compute_shard", compute)
    ended = run(capsys, *command)
    assert ended.code == 0
    assert json.loads(ended.out)["rows"] == N_TEXTS
