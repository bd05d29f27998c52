"""A long harvest of very many texts by the smallest model, watched: does anything grow?

    python jobs/soak.py --texts 1000000 --out /tmp/soak
    python jobs/soak.py --texts 100000 --actors 1 --out /tmp/one --json

Prints texts a second, the driver's memory and open files at each tenth of the way, and the share of the
actors' time in which their model computed; then makes fifty concept vectors of the rows.
"""

import argparse
import json
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import read_texts
from contrans_dist.harvest.driver import harvest
from contrans_dist.store.activation_set import ActivationSet

CONCEPTS = 50
_PEOPLE = ("Tom", "Ann", "Bob", "Sue", "Max", "Eve", "Jim", "Amy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    _write(options.out / "texts.jsonl", options.texts)
    table = read_texts(str(options.out / "texts.jsonl"))
    samples: list[dict[str, float]] = []
    over = threading.Event()
    sampling = threading.Thread(target=_sample, args=(samples, options.out / "set", over), daemon=True)
    sampling.start()
    began = time.monotonic()
    cluster = ClusterSettings(address="local", actors=options.actors, cpus_per_actor=1)
    capture = CaptureSettings(blocks="3", shard_size=options.shard_size)
    made = harvest(ModelSettings(id="demo:source"), table, str(options.out / "set"), capture, cluster)
    over.set()
    sampling.join()
    found = _found(made, options, time.monotonic() - began, samples)
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))


def _write(path: Path, count: int) -> None:
    """Texts of people and remarks; every fiftieth of a concept."""
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(count):
            text = f"{rng.choice(_PEOPLE)} saw {rng.choice(_PEOPLE)} and was happy {i % 977}"
            file.write(json.dumps({"text": text, "concept": f"concept {i % CONCEPTS}"}) + "\n")


def _sample(samples: list[dict[str, float]], folder: Path, over: threading.Event) -> None:
    """The driver's memory in MB and its open files, with how far it is, every second."""
    process = psutil.Process(os.getpid())
    while not over.wait(1.0):
        memory = process.memory_info().rss / 1e6
        samples.append({"done": _done(folder), "memory": memory, "files": process.num_fds()})


def _done(folder: Path) -> int:
    """Shards that are there."""
    return sum(entry.name.startswith("shard-") for entry in os.scandir(folder)) if folder.exists() else 0


def _found(
    made: ActivationSet, options: argparse.Namespace, seconds: float, samples: list[dict[str, float]]
) -> dict[str, Any]:
    throughput = made.manifest.throughput
    tenths = [
        [s for s in samples if s["done"] >= i * len(made.manifest.shards) / 10][:1] for i in range(1, 10)
    ]
    at = [sample[0] for sample in tenths if sample]
    computing, began = throughput.seconds_capturing or 0.0, time.monotonic()
    concepts = made.read_columns(["concept"]).column("concept").to_numpy()
    rows = made.read_block(3)
    vectors = [rows[concepts == f"concept {i}"].mean(0) - rows.mean(0) for i in range(CONCEPTS)]
    return {
        "texts": made.n_rows,
        "shards": len(made.manifest.shards),
        "actors": options.actors,
        "seconds": round(seconds, 1),
        "seconds working": throughput.seconds,
        "texts a second": round(made.n_rows / (throughput.seconds or 1)),
        "share computing": round(computing / (throughput.seconds or 1) / options.actors, 3),
        "waiting for writes": throughput.seconds_waiting_for_writes,
        "driver MB at tenths": [round(sample["memory"]) for sample in at],
        "open files at tenths": [int(sample["files"]) for sample in at],
        "vectors": len(vectors),
        "seconds for vectors": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    main()
