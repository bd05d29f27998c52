"""A long harvest of very many texts by the smallest model, and a run of fifty concepts: does anything grow?

    python jobs/soak.py --texts 1000000 --out /tmp/soak
    python jobs/soak.py --texts 100000 --actors 1 --out /tmp/one --json
    python jobs/soak.py --texts 300000 --kills 10 --out /tmp/kills

Prints texts a second, the memory and open files of the driver and of the largest actor at each tenth of the
way, and the share of the actors' time in which their model computed; then makes fifty concept vectors of the
rows, and runs a recipe that moves fifty concepts and scores each. With `--kills`, instead, `contrans harvest`
of the same texts meets kill -9 so often, and every row of it is held against the first harvest.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from speed.common import looking

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import read_texts
from contrans_dist.harvest.driver import harvest
from contrans_dist.models import load_model
from contrans_dist.store.activation_set import ActivationSet

CONCEPTS = 50
_PER_CONCEPT = 20
_CORPUS = 5000
_PEOPLE = ("Tom", "Ann", "Bob", "Sue", "Max", "Eve", "Jim", "Amy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out {options.out}: expected an empty folder, or none")
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out / "texts.jsonl", options.texts)
    table = read_texts(str(options.out / "texts.jsonl"))
    cluster = ClusterSettings(address="local", actors=options.actors, cpus_per_actor=1)
    capture = CaptureSettings(blocks="3", shard_size=options.shard_size)
    began = time.monotonic()
    with _watched(psutil.Process(), options.out / "set") as samples:
        made = harvest(ModelSettings(id="demo:source"), table, str(options.out / "set"), capture, cluster)
    found = _found(made, options, time.monotonic() - began, samples)
    found |= _killed(options) if options.kills else _run_concepts(options)
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


@contextmanager
def _watched(process: psutil.Process, folder: Path) -> Iterator[list[dict[str, float]]]:
    """Memory in MB and open files of a driver and of the largest actor of its Ray, with how far it is, every
    second of the block."""
    samples = list[dict[str, float]]()

    def sample() -> None:
        with suppress(psutil.Error):
            found = {"done": _done(folder), "memory": _megabytes(process), "files": process.num_fds()}
            actors = [child for child in process.children(recursive=True) if "Actor" in child.name()]
            found["actor memory"] = max(map(_megabytes, actors), default=0)
            found["actor files"] = max((actor.num_fds() for actor in actors), default=0)
            samples.append(found)

    with looking(sample, 1.0):
        yield samples


def _megabytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


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
        "largest actor's MB at tenths": [round(sample["actor memory"]) for sample in at],
        "largest actor's open files at tenths": [int(sample["actor files"]) for sample in at],
        "vectors": len(vectors),
        "seconds for vectors": round(time.monotonic() - began, 1),
    }


def _killed(options: argparse.Namespace) -> dict[str, Any]:
    """The same harvest by the command line, killed at random moments and begun again until it is done."""
    folder, out, rng = options.out, options.out / "killed", random.Random(3)
    command = [
        *(sys.executable, "-m", "contrans_dist", "harvest", "--model", "demo:source", "--blocks", "3"),
        *("--texts", str(folder / "texts.jsonl"), "--shard-size", str(options.shard_size), "--out", str(out)),
        *("--address", "local", "--actors", str(options.actors), "--cpus-per-actor", "1"),
    ]
    calm = folder / "set"
    shards, kept, at = _done(calm), 0, list[int]()
    for left in range(options.kills, -1, -1):
        before = _stamps(out)
        with (folder / "said").open("w") as said:
            process = psutil.Popen(command, stdout=said, stderr=said)
        target = len(before) + rng.randint(1, max(1, 2 * (shards - len(before)) // (left + 1)))
        while left and process.poll() is None and _done(out) < target:
            time.sleep(0.01)
        if left:
            process.kill()
            at.append(_done(out))
        if process.wait() not in (0, -9):
            raise RuntimeError((folder / "said").read_text()[-2000:])
        kept += before.items() <= _stamps(out).items()
    names = _stamps(calm).keys() & _stamps(out).keys()
    return {
        "kills": len(at),
        "shards there at each": at,
        "shards missing": shards - len(names),
        "shards too many": _done(out) - len(names),
        "shards with other rows": sum(_rows(calm / name) != _rows(out / name) for name in names),
        "begun again without a shard made anew": kept - 1,
    }


def _stamps(folder: Path) -> dict[str, int]:
    """When each shard that is there was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


def _rows(path: Path) -> pa.Table:
    """All columns of a shard, without what it says of itself."""
    return pq.read_table(path).replace_schema_metadata(None)


def _words() -> list[str]:
    """Words that are one token of the target model, whose names the benchmark can tell apart."""
    tokens = load_model("demo:target", head=False).tokenizer.get_vocab()
    names = [
        token[1:] for token in tokens if token.startswith("▁") and len(token) > 3 and token[1:].isalpha()
    ]
    return sorted(name for name in names if name.islower())[:CONCEPTS]


def _run_concepts(options: argparse.Namespace) -> dict[str, Any]:
    """`contrans run` of a recipe with fifty concepts, each under every other one's vector as well."""
    folder, words = options.out, _words()
    for name, seed in (("contrast", 1), ("scenarios", 2)):
        rng = random.Random(seed)
        lines = [
            {"text": f"{rng.choice(_PEOPLE)} saw {rng.choice(_PEOPLE)} {word} {k}", "concept": word}
            for word in words for k in range(_PER_CONCEPT)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = {"texts": str(folder / "scenarios.jsonl"), "strengths": [0, 1, 2, 3], "per_concept": 10}
    recipe = {
        "name": "fifty-concepts",
        "source": "demo:source",
        "target": "demo:target",
        "corpus": {"texts": str(folder / "corpus.jsonl")},
        "concepts": {"texts": str(folder / "contrast.jsonl")},
        "map": {"blocks": "2:2"},
        "evaluations": {"emotions": evaluation},
        "cluster": {"actors": options.actors, "cpus_per_actor": 1, "address": "local"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    lines = (folder / "texts.jsonl").read_text().splitlines(keepends=True)
    (folder / "corpus.jsonl").write_text("".join(lines[:_CORPUS]))
    command = [sys.executable, "-m", "contrans_dist", "run", str(folder / "recipe.yaml"), "--out"]
    began = time.monotonic()
    with (folder / "said").open("w") as said:
        process = psutil.Popen([*command, str(folder / "run")], stdout=said, stderr=said)
        with _watched(process, folder / "run") as samples:
            failed = process.wait()
    if failed:
        raise RuntimeError((folder / "said").read_text()[-2000:])
    tenths = [samples[len(samples) * i // 10] for i in range(1, 10)]
    return {
        "concepts run": len(words),
        "seconds for the run": round(time.monotonic() - began, 1),
        "its driver's MB at tenths": [round(sample["memory"]) for sample in tenths],
        "its open files at tenths": [int(sample["files"]) for sample in tenths],
    }


if __name__ == "__main__":
    main()
