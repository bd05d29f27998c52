"""A model that no node holds: a line of as few of three nodes as hold it, against a sweep on each.

    python jobs/speed/pipeline.py --gigabytes 3 --limit-gigabytes 2.2
    python jobs/speed/pipeline.py --megabytes-a-second 50

The nodes of a real Ray cluster on this machine, each with a memory limit, a copy of the checkpoint and a page
cache of its own (control groups and mount namespaces, which take root), so that what one reads costs the
others nothing. With `--megabytes-a-second` each reads no faster than that, as from a store that all share.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speed.common import Bench, Row, looking
from speed.stream import TINY, Width, control_group, forget_cached, write_checkpoint

NODES = 3
_WIDTH = Width(1024, 2816)
_TOKENS = 32
_SHARD = 8
_IO = Path("/sys/fs/cgroup/blkio")
_MEMORY = Path("/sys/fs/cgroup/memory")
_SAMPLE_SECONDS = 0.2


def rows(bench: Bench) -> Iterator[Row]:
    if os.geteuid() != 0 or not _MEMORY.is_dir() or not _IO.is_dir():
        print("pipeline/sweeps: left out, it takes root and control groups (version 1)")
        return
    gigabytes, texts = (0.0, 16) if bench.quick else (2.4, 128)
    limit = 3.0 if bench.quick else 2.2
    for name, rate in (("sweeps", None), ("sweeps-store", 50.0)):
        found = compare(bench.scratch / name, gigabytes, limit, texts, rate)
        line, sweeps, size = found["pipeline"], found["stream"], found["checkpoint_bytes"]
        speed = "" if rate is None else f", each reading {rate:g} MB/s at most"
        yield Row(
            "pipeline", f"pipeline/{name}", sweeps["seconds"] / line["seconds"], line["seconds"],
            sweeps["seconds"], "seconds", found["max_error"],
            f"{size / 1e9:.2f} GB over {NODES} nodes of {limit:g} GB{speed}, {texts} texts of {_TOKENS}; "
            f"it read {line['read'] / size:.2f} times the checkpoint, sweeps {sweeps['read'] / size:.2f}",
        )  # fmt: skip


def compare(folder: Path, gigabytes: float, limit: float, texts: int, rate: float | None) -> dict[str, Any]:
    """Both ways on new nodes, one after the other: seconds, bytes read from the disk, worst deviation."""
    model, copies = folder / "model", [folder / f"copy-{place}" for place in range(NODES)]
    width = _WIDTH if gigabytes else TINY
    size = write_checkpoint(model, int(gigabytes * 1e9), width, torch.float32)
    for copy in copies:
        shutil.copytree(model, copy)
    (folder / "texts.jsonl").write_text("".join(_lines(texts)))
    found = {way: _run(way, folder, copies, int(limit * 1e9), rate) for way in ("stream", "pipeline")}
    swept, lined = (_rows(folder / way) for way in found)
    shutil.rmtree(folder)
    worst = float(np.abs(swept - lined).max() / np.abs(swept).max())
    return {**found, "checkpoint_bytes": size, "max_error": worst}


def _lines(texts: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for _ in range(texts):
        yield json.dumps({"text": " ".join(map(str, rng.integers(100, size=_TOKENS)))}) + "\n"


def _rows(folder: Path) -> Any:
    paths = sorted(folder.glob("shard-*.parquet"))
    table = pa.concat_tables([pq.read_table(path).replace_schema_metadata(None) for path in paths])
    names = [
        name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)
    ]
    return np.stack([table[name].combine_chunks().flatten().to_numpy() for name in names])


def _run(way: str, folder: Path, copies: list[Path], limit: int, rate: float | None) -> dict[str, float]:
    """`contrans harvest` on a cluster of nodes that have read nothing yet."""
    model = folder / "model"  # what the command sees; each node has its copy in that place
    for copy in (model, *copies):
        forget_cached(copy)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="line-", dir="/tmp")))
        _write_token(scratch / "token")
        port = _free_port()
        address = f"127.0.0.1:{port}"
        head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        head += [f"--temp-dir={scratch}"]
        stack.enter_context(_node(scratch, head))
        nodes = [stack.enter_context(_limited(scratch, address, copy, model, limit, rate)) for copy in copies]
        read = stack.enter_context(_reading(nodes))
        words = [
            *("harvest", "--model", str(model), "--texts", str(folder / "texts.jsonl")),
            *("--out", str(folder / way), "--shard-size", str(_SHARD)),
            *("--batch-tokens", str(_SHARD * _TOKENS)),
            *("--address", address, "--placement", way),
        ]
        began = time.monotonic()
        command = [sys.executable, "-m", "contrans_dist", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(scratch))
        if done.returncode:
            raise RuntimeError(f"{way}: {done.returncode}: {done.stderr[-2000:]}")
        return {"seconds": time.monotonic() - began, "read": sum(read.values())}


def _write_token(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))


def _environment(scratch: Path) -> dict[str, str]:
    """With the token of the cluster, at a priority of its own: Ray gives its workers a lower one."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(scratch / "token")}
    return {**os.environ, **token, "RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _node(scratch: Path, words: list[str], before: list[str] | None = None) -> Iterator[psutil.Process]:
    """A node of a Ray cluster; what it has started ends with the block."""
    ray, log = Path(sys.executable).with_name("ray"), scratch / f"log-{time.monotonic_ns()}"
    words = [*words, "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
    words += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={_free_port()}"]
    with log.open("wb") as stream:
        command = [*(before or []), str(ray), "start", *words]
        process = psutil.Popen(command, stdout=stream, stderr=stream, env=_environment(scratch))
    try:
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.1)
        yield process
    finally:
        started = [process]
        with suppress(psutil.NoSuchProcess):
            started += process.children(recursive=True)
        for each in started:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(started, timeout=30)


_ENTER = """
set -e
copy=$1 model=$2 memory=$3 reads=$4; shift 4
echo $$ > "$memory/cgroup.procs"
echo $$ > "$reads/cgroup.procs"
mount --bind "$copy" "$model"
mount --bind "$memory" /sys/fs/cgroup/memory
exec "$@"
"""
"""What a node's first process does: from then on it, and all that it starts, is in its own small world."""


@contextmanager
def _limited(
    scratch: Path, address: str, copy: Path, model: Path, limit: int, rate: float | None
) -> Iterator[psutil.Process]:
    """A node of one core that has so much memory, reads so fast, and finds its copy in the model's place."""
    with control_group(limit) as memory, _reads(rate, copy) as reads:
        places = [str(place) for place in (copy, model, memory, reads)]
        enter = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", *places]
        with _node(scratch, [f"--address={address}", "--num-cpus=1"], enter) as node:
            yield node
        time.sleep(1)  # a group goes when the last of its processes has


@contextmanager
def _reads(rate: float | None, copy: Path) -> Iterator[Path]:
    """A control group whose processes read at most so many MB a second."""
    group = _IO / f"contrans-{os.getpid()}-{copy.name}"
    group.mkdir()
    try:
        if rate is not None:
            disk = os.stat(copy).st_dev
            limit = f"{os.major(disk)}:{os.minor(disk)} {int(rate * 1e6)}"
            (group / "blkio.throttle.read_bps_device").write_text(limit)
        yield group
    finally:
        group.rmdir()


@contextmanager
def _reading(nodes: list[psutil.Process]) -> Iterator[dict[int, int]]:
    """Bytes that the processes of nodes read from the disk while the block runs, by process id."""
    read = dict[int, int]()

    def sample() -> None:
        for node in nodes:
            for process in node.children(recursive=True):
                with suppress(psutil.Error):
                    read[process.pid] = process.io_counters().read_bytes

    with looking(sample, _SAMPLE_SECONDS):
        yield read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.4, help="size of the checkpoint")
    parser.add_argument("--limit-gigabytes", type=float, default=2.2, help="memory of each node")
    parser.add_argument("--megabytes-a-second", type=float, help="what each node reads")
    parser.add_argument("--texts", type=int, default=128, help=f"of {_TOKENS} tokens")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(
            Path(scratch),
            options.gigabytes,
            options.limit_gigabytes,
            options.texts,
            options.megabytes_a_second,
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
