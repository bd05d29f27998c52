"""The driver of a large cluster: a hundred nodes with a thousand shards in flight, and ten thousand shards.

The nodes are pretended: real calls of Ray to a few actors that sleep as long as a shard would take, so that
what is measured is the driver. Theirs is the least that any driver does: `ray.wait` and `ray.get`.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from contrans_dist.config import CaptureSettings
from contrans_dist.data.texts import text_table
from contrans_dist.distributed.cluster import Replicas, connected
from contrans_dist.distributed.nodes import Node
from contrans_dist.distributed.pool import Task, _run
from contrans_dist.engine.capture import Activations
from contrans_dist.harvest.missing import tasks_of
from contrans_dist.harvest.planned_set import PlannedSet
from contrans_dist.harvest.request import HarvestJob
from contrans_dist.harvest.runnable import Runnable
from contrans_dist.harvest.shard_files import publish_shard
from contrans_dist.harvest.shards import HarvestSpec, plan_shards
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from speed.common import Bench, Row

_NODES, _SLOTS = 100, 10
_MEAN_SECONDS = 0.25
_PROCESSES = 2


def rows(bench: Bench) -> Iterator[Row]:
    with connected("local"):
        yield _in_flight(300 if bench.quick else 10_000)
        yield _many_shards(bench.scratch, 50 if bench.quick else 10_000)


class _Sleeper:
    """So many shards at a time, each of which takes its time and no processor."""

    async def run(self, seconds: float) -> float:
        import asyncio

        await asyncio.sleep(seconds)
        return seconds


class _Pretended:
    """A hundred nodes with an actor each, as the pool knows its actors."""

    def __init__(self, processes: list[Any]) -> None:
        self.processes, self.started = processes, 0
        self.size = Replicas(_NODES, 0, 1)

    def handles(self, wanted: int) -> list[Any]:
        return [self.another() for _ in range(min(wanted, _NODES))]

    def another(self) -> Any:
        self.started += 1
        process = self.processes[self.started % len(self.processes)]
        ready = SimpleNamespace(remote=lambda: process.run.remote(0.0))
        return SimpleNamespace(run=process.run, ready=ready)

    def nodes(self) -> list[Node]:
        return [Node({"CPU": 1.0}, str(i)) for i in range(_NODES)]


def _in_flight(count: int) -> Row:
    actor = ray.remote(num_cpus=0, max_concurrency=_NODES * _SLOTS)(_Sleeper)
    processes = [actor.remote() for _ in range(_PROCESSES)]
    ray.get([process.run.remote(0.0) for process in processes])
    rng = random.Random(0)
    seconds = [min(5.0, rng.lognormvariate(0, 0.5) * _MEAN_SECONDS) for _ in range(count)]
    tasks = [Task(f"shard-{i:05d}", each) for i, each in enumerate(seconds)]
    done: list[float] = []
    began = time.perf_counter()
    _run(_Pretended(processes), tasks, lambda _task, result: done.append(result), slots=_SLOTS)  # type: ignore[arg-type]
    ours = count / (time.perf_counter() - began)
    assert sorted(done) == sorted(seconds)
    began = time.perf_counter()
    _bare(processes, seconds)
    theirs = count / (time.perf_counter() - began)
    for process in processes:
        ray.kill(process)
    return Row(
        "driver", "driver/in-flight", ours / theirs, ours, theirs, "shards/s", None,
        f"{count} shards, {_NODES * _SLOTS} at a time on {_NODES} pretended nodes, over ray.wait alone",
    )  # fmt: skip


def _bare(processes: list[Any], seconds: list[float]) -> None:
    left, running = list(seconds), list[Any]()
    while left or running:
        while left and len(running) < _NODES * _SLOTS:
            running.append(processes[len(left) % len(processes)].run.remote(left.pop()))
        done, running = ray.wait(running, num_returns=1, timeout=1)
        more, running = ray.wait(running, num_returns=len(running), timeout=0) if running else ([], [])
        ray.get([*done, *more])


def _many_shards(scratch: Path, count: int) -> Row:
    """Planning, listing and checking a set of so many shards, all of them there; theirs only reads the
    footers, with pyarrow."""
    folder = scratch / "many"
    table = text_table({"text": [f"text {row}" for row in range(2 * count)]})
    identity = Identity(model="random", blocks=[0], rows=2 * count, shard_size=2)
    spec = HarvestSpec(identity, CaptureSettings(), 8, Location.parse(folder))
    ones, values = np.ones(2, np.int32), np.ones((2, 8), np.float32)
    for shard in plan_shards(spec):
        rows = table.slice(shard.start, 2)
        rows = rows.set_column(0, "row", pa.array([shard.start, shard.start + 1], pa.int64()))
        piece = Activations({0: values}, ones, ones, [])
        publish_shard(shard, Runnable(rows, [[1], [1]]), [piece], 0.0, "cpu")
    began = time.perf_counter()
    shards = plan_shards(spec)
    request: Any = SimpleNamespace(job=HarvestJob(table, spec.out, spec.capture))
    planned = PlannedSet(request, spec, shards, None, 2 * count)
    planned.take_in()
    assert not planned.missing
    planned.reports.clear()
    assert len(tasks_of([planned], None)) == count
    ours = time.perf_counter() - began
    began = time.perf_counter()
    for path in sorted(folder.glob("shard-*.parquet")):
        pq.read_metadata(path)
    theirs = time.perf_counter() - began
    return Row(
        "driver", "driver/many-shards", theirs / ours, ours, theirs, "seconds", None,
        f"{count} shards planned, listed, checked and made into tasks, over reading their footers",
    )  # fmt: skip
