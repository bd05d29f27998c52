"""What this machine is, and the most that it can do."""

import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from contrans_dist.models.precision import linear_rates
from speed.common import SHAPES, Bench

_COPIED, _READ = 256 << 20, 512 << 20
_TIMES = 10


def matmul_rate(bench: Bench, dtype: str) -> float:
    """Operations a second of a Linear of d to 2048 on 2048 rows, median of ten; d is 768 on a CPU, the
    shape's own and 8192 rows on a GPU. Some processors take 20 times as long where weights lie the other way.
    """
    rows, inner, columns = (8192, SHAPES[bench.shape].d, 8192) if bench.is_gpu else (2048, 768, 2048)
    kind = getattr(torch, dtype)
    a = torch.randn(rows, inner, device=bench.device).to(kind)
    weight = torch.randn(columns, inner, device=bench.device).to(kind)
    taken = [bench.seconds(lambda: linear(a, weight)) for _ in range(3 + _TIMES)][3:]
    return 2 * rows * inner * columns / statistics.median(taken)


def _copy_bandwidth(bench: Bench) -> float:
    """Bytes a second read and written by a copy on the device."""
    a = torch.ones(_COPIED // 4, device=bench.device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * _COPIED / statistics.median(bench.seconds(lambda: b.copy_(a)) for _ in range(_TIMES))


def _disk_rate(folder: Path) -> float:
    """Bytes a second of a sequential read that no cache serves."""
    path = folder / "read"
    path.write_bytes(os.urandom(1 << 20) * (_READ >> 20))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while file.read(1 << 22):
            pass
        seconds = time.perf_counter() - started
    path.unlink()
    return _READ / seconds


def processor() -> str:
    """Its name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine(bench: Bench) -> dict[str, Any]:
    """Processor, versions, command and date, and the ceilings: measured, not looked up."""
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.is_gpu else processor(),
        "cores": torch.get_num_threads(),
        "python": platform.python_version(),
        **{
            name: _version(name)
            for name in ("torch", "transformers", "accelerate", "numpy", "pyarrow", "ray")
        },
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "shape": bench.shape,
    }
    if not bench.is_gpu:
        own, wide = linear_rates("bfloat16")
        about["small Linear, GFLOP/s"] = f"{own / 1e9:.1f} in bfloat16, {wide / 1e9:.1f} in float32"
    for dtype in bench.dtypes:
        about[f"matmul {dtype}, GFLOP/s"] = round(matmul_rate(bench, dtype) / 1e9, 1)
    about["copy, GB/s"] = round(_copy_bandwidth(bench) / 1e9, 1)
    about["disk read, GB/s"] = round(_disk_rate(bench.scratch) / 1e9, 2)
    return about
