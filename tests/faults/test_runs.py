"""`contrans run`, killed at random moments until it is done: on a disk, and on a store."""

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.faults.bench import Bench, Command, Trace
from tests.faults.tally import Tally
from tests.faults.world import Compared, read_set
from tests.recipes import tiny_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world(tmp_path_factory.mktemp("recipe")).recipe


def _command(recipe: str, out: Path | str, *more: str) -> list[str]:
    words = ["run", recipe, "--out", str(out), "--set", "cluster.cpus_per_actor=1", *more]
    return [sys.executable, "-m", "contrans_dist", *words]


@pytest.fixture(scope="module")
def calm(
    recipe: str, trace: Trace, one_bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """The run that nothing disturbs, and the seconds that it took."""
    one_bench.mend()
    out = tmp_path_factory.mktemp("calm") / "run"
    began = time.monotonic()
    command = Command.start(_command(recipe, out, "--address", one_bench.address), out.parent / "said")
    assert command.finish() == 0, command.told
    return out, time.monotonic() - began


def _values(folder: Path) -> dict[str, Any]:
    """What the files of a run hold, but for its activations: times, costs and places left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(("activations", ".")) or path.is_dir():
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: array.tobytes() for key, array in load_file(path).items()}
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pydict()
        elif path.name == "metrics.json":
            found[name] = json.loads(path.read_text())["conditions"]
        elif path.suffix == ".html":
            found[name] = path.read_text().count("<table")
    return found


def _compared(folder: Path, calm: Path) -> Compared:
    """All activation sets of two runs; assert that whatever else they hold is the same."""
    rows = lost = doubled = other = 0
    for made in sorted((calm / "activations").iterdir()):
        theirs, mine = read_set(made), read_set(folder / "activations" / made.name)
        numbers = mine.column("row").to_pylist()
        rows += len(set(numbers))
        lost += len(set(theirs.column("row").to_pylist()) - set(numbers))
        doubled += len(numbers) - len(set(numbers))
        other += 0 if mine.equals(theirs) else theirs.num_rows
    mine, theirs = _values(folder), _values(calm)
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        assert repr(mine[name]) == repr(value), name
    return Compared(rows, lost, doubled, other)


def _kill_until_done(
    words: Callable[[str], list[str]], fetched: Callable[[str], Path], calm: tuple[Path, float], times: int,
    name: str, tally: Tally, said: Path,
) -> None:  # fmt: skip
    """Kill one run after the other; one that is done before all kills are made is followed by another."""
    draw, codes, place, ends = random.Random(12), list[int](), 0, list[str]()
    while len(codes) < times:
        command = Command.start(words(f"run-{place}"), said)
        end = time.monotonic() + draw.uniform(3, max(6.0, calm[1]))
        while time.monotonic() < end and not command.over:
            time.sleep(0.05)
        code = command.end(signal.SIGKILL)
        assert code in (0, -9), command.told[-3000:]
        codes += [code] if code else []
        if code == 0:
            ends.append(f"run-{place}")
            place += 1
    code = (final := Command.start(words(f"run-{place}"), said)).finish()
    assert code == 0, final.told[-3000:]
    for end_ in [*ends, f"run-{place}"]:
        compared = _compared(fetched(end_), calm[0])
        tally.add(name, compared, again=None)
        assert compared.same
    tally.add(name, times=times, again=None, codes=codes)


def test_run_killed_at_random(
    recipe: str, calm: tuple[Path, float], bench: Bench, tally: Tally, times: int, tmp_path: Path
) -> None:
    _kill_until_done(
        lambda name: _command(recipe, tmp_path / name, "--address", bench.address),
        lambda name: tmp_path / name, calm, times, "contrans run killed at random", tally, tmp_path / "said",
    )  # fmt: skip


def test_run_on_a_store_killed_at_random(
    recipe: str, calm: tuple[Path, float], new_bucket: Callable[[str], str], bench: Bench, tally: Tally,
    times: int, tmp_path: Path,
) -> None:  # fmt: skip
    """Harvests, reduction, evaluation and report."""
    import boto3

    uri = new_bucket("runs")
    options = dict(parse_qsl(uri.partition("?")[2]))
    keys = {"aws_access_key_id": "user", "aws_secret_access_key": "hush", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{options['endpoint_override']}", **keys)

    def fetched(name: str) -> Path:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="runs", Prefix=f"runs/{name}/")
        for key in [entry["Key"] for page in pages for entry in page.get("Contents", [])]:
            path = tmp_path / Path(key).relative_to("runs")
            path.parent.mkdir(parents=True, exist_ok=True)
            if not key.endswith("/"):
                client.download_file("runs", key, str(path))
        return tmp_path / name

    _kill_until_done(
        lambda name: _command(recipe, uri.replace("?", f"/{name}?"), "--address", bench.address),
        fetched, calm, times, "contrans run on a store killed at random", tally, tmp_path / "said",
    )  # fmt: skip
