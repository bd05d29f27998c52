"""The harvest through Ray actors: what is left of the engine's rate, and how long it waits for writes."""

import contextlib
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.distributed.cluster import connected
from contrans_dist.engine.capture import capture_ids
from contrans_dist.harvest.driver import harvest
from contrans_dist.models import encode_many, load_model
from contrans_dist.store.activation_set import ActivationSet
from speed.common import Bench, Row, looking, max_error

_MORE_TEXTS = 4
"""So many times the texts of the other rows: a harvest of a few seconds says nothing."""


def rows(bench: Bench) -> Iterator[Row]:
    found = _harvested(bench)
    waiting, capturing = found["waiting"], found["capturing"]
    yield Row(
        "store",
        "store/overhead",
        waiting / (waiting + capturing),
        waiting,
        waiting + capturing,
        "seconds",
        None,
        "of an actor's time, waiting for a write or the next shard",
    )


def actors(bench: Bench) -> Row:
    """The rate of `contrans harvest` with one actor over the engine's in this process."""
    found = _harvested(bench)
    return Row(
        "harvest",
        "harvest/actors",
        found["rate"] / found["in_process"],
        found["rate"],
        found["in_process"],
        "tokens/s",
        found["error"],
        f"{found['texts']} texts, one actor; its peak {found['peak'] / 1e6:.0f} MB, weights "
        f"{found['weights'] / 1e6:.0f} MB, started {found['bare'] / 1e6:.0f} MB",
    )


def two_actors(bench: Bench) -> Row:
    """The rate of `contrans harvest` with two actors of one core each over that with one."""
    folder = bench.saved_model(bench.dtypes[0])
    texts = [" ".join(str(i % 100) for i in ids) for ids in bench.texts(_MORE_TEXTS * bench.n_texts)]
    table = text_table({"text": texts[:: 20 if bench.quick else 1]})
    rates: dict[int, list[float]] = {1: [], 2: []}
    made: dict[int, ActivationSet] = {}
    with connected("local"):
        for turn in range(1 if bench.quick else 3):
            for count, found in rates.items():
                cluster = ClusterSettings(actors=count, cpus_per_actor=1)
                out, capture = bench.scratch / f"{count}-actors-{turn}", CaptureSettings(shard_size=20)
                made[count] = harvest(ModelSettings(id=str(folder)), table, str(out), capture, cluster)
                found.append(made[count].manifest.throughput.tokens_per_second or 0.0)
    one, two = (statistics.median(found) for found in rates.values())
    error = max_error(*([rows.read_block(k) for k in rows.blocks] for rows in made.values()))
    each = ", ".join(f"{b / a:.2f}" for a, b in zip(*rates.values(), strict=True))
    return Row(
        "harvest", "harvest/two-actors", two / one, two, one, "tokens/s", error, f"{len(table)} texts; {each}"
    )


@cache
def _harvested(bench: Bench) -> dict[str, Any]:
    folder = bench.saved_model(bench.dtypes[0])
    lm = load_model(str(folder), device=bench.device, head=False)
    count = bench.n_texts if bench.quick else _MORE_TEXTS * bench.n_texts
    texts = [" ".join(str(i % 100) for i in ids) for ids in bench.texts(count)]
    ids = encode_many(lm, texts)
    tokens = sum(map(len, ids))
    cluster = ClusterSettings(actors=1, cpus_per_actor=torch.get_num_threads())
    in_process, rates, waiting, capturing, error, peak, bare = [], [], [], [], 0.0, 0, 0
    with connected("local"):
        for turn in range(1 if bench.quick else 2):
            in_process.append(tokens / bench.seconds(lambda: capture_ids(lm, ids)))
            with _watched() as seen:
                out = bench.scratch / f"set-{turn}"
                made: ActivationSet = harvest(
                    ModelSettings(id=str(folder)), text_table({"text": texts}), str(out), None, cluster
                )
            throughput = made.manifest.throughput
            rates.append(throughput.tokens_per_second or 0.0)
            waiting.append(throughput.seconds_waiting_for_writes or 0.0)
            capturing.append(throughput.seconds_capturing or 0.0)
            peak, bare = max(peak, seen["peak"]), seen["bare"]
        wanted = capture_ids(lm, ids)
        error = max_error([made.read_block(k, 0, len(ids)) for k in wanted], [wanted[k] for k in wanted])
    return {
        "texts": count,
        "rate": statistics.median(rates),
        "in_process": statistics.median(in_process),
        "waiting": statistics.median(waiting),
        "capturing": statistics.median(capturing),
        "error": error,
        "peak": peak,
        "bare": bare,
        "weights": sum(p.numel() * p.element_size() for p in lm.model.parameters()),
    }


@contextlib.contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """Bytes of memory that the actor's process had when first seen with its libraries, and at its peak."""
    seen = {"peak": 0, "bare": 0}

    def look() -> None:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, StopIteration, ValueError):
                if (path / "cmdline").read_bytes().startswith(b"ray::HarvestAct"):
                    status = (path / "status").read_text().splitlines()
                    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
                    seen["bare"] = seen["bare"] or peak * 1024
                    seen["peak"] = max(seen["peak"], peak * 1024)

    with looking(look, 0.2):
        yield seen
