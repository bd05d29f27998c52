"""Harvests as they lie on disk, and the processes that make them, for the tests that kill these."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from contrans_dist.cli import main
from tests.waiting import until


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.parquet"))


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every shard: a shard that is written again has others."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shard_files(folder)}


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def assert_same_set(folder: Path, made: Path) -> None:
    assert [path.name for path in shard_files(folder)] == [path.name for path in shard_files(made)]
    for path in shard_files(folder):
        assert path.read_bytes() == (made / path.name).read_bytes(), path.name
    assert manifest_of(folder)["shards"] == manifest_of(made)["shards"]


def cli(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command line inside this process, on the Ray that is there; its exit code."""
    monkeypatch.setattr(sys, "argv", ["contrans", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


_ACTORS = ("HarvestAct", "SweepActor", "LineActor", "StageActor", "SystemActo")


def is_actor(process: psutil.Process) -> bool:
    """The kernel keeps fifteen letters of a name."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().startswith(tuple(f"ray::{kind}" for kind in _ACTORS))
    return False


def wait_for_shards(folder: Path, count: int) -> None:
    until(lambda: len(shard_files(folder)) >= count, f"{count} shards in {folder}", pause=0.01)


def kill_whole(process: "subprocess.Popen[str]") -> None:
    """kill -9 of the driver; its actors must go with it. (Ray's agents take a minute more to notice.)"""
    started = psutil.Process(process.pid).children(recursive=True)
    actors = [child for child in started if is_actor(child)]
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(actors, timeout=60)
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert actors
    assert not left
