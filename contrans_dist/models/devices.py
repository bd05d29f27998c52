"""What is free on the devices of this machine."""

import math
import socket
import warnings
from functools import lru_cache
from pathlib import Path

import psutil
import torch

from contrans_dist.console import count_of, note
from contrans_dist.errors import NoGpuError, one_line

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
CONTEXT = 500_000_000
"""Bytes of a GPU that each process with CUDA takes before it has computed anything."""
_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_USED = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


@lru_cache(maxsize=1)
def usual_device() -> str:
    """`cuda` where torch can use a GPU of this machine, else `cpu`.

    What keeps it from one that is there, such as a driver that is too old, is told once.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    reasons = [one_line(warning.message) for warning in told if "CUDA" in str(warning.message)]
    if not usable and reasons:
        note(f"no GPU is used: {reasons[0]}")
    return "cuda" if usable else "cpu"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had no more memory. PyTorch's allocator says so by a class of its own; with kernels that
    are loaded late, pinned memory and CUDA's libraries it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)


def gpu_count() -> int:
    """GPUs that torch can compute on here. It counts those too whose driver is too old for it."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_gpus(lent: float) -> None:
    """Raise NoGpuError where torch can compute on fewer GPUs than Ray, which only counts those of a machine,
    has lent to this process: it would compute on the processors, for days."""
    usable = gpu_count()
    if usable >= lent:
        return
    platform = "hip" if torch.version.hip else "cuda"
    built = f"torch {torch.__version__} (torch.version.{platform}: {getattr(torch.version, platform)})"
    raise NoGpuError(
        f"{socket.gethostname()}: Ray lends {count_of(math.ceil(lent), 'GPU')} here, and {built} can use "
        f"{usable}{_why_none()}; a newer driver, or another wheel of torch or container, mends that; "
        "--gpus-per-actor 0 runs on the processors"
    )


def _why_none() -> str:
    """What torch says of it, where it can use no GPU at all."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return f" ({one_line(error)})"
    return ""


def gpus_work() -> bool:
    """Whether the GPUs that this process has computed on still do. After an illegal access, or an assertion
    that failed there, every call fails until the process ends."""
    if not torch.cuda.is_initialized():
        return True
    try:
        for i in range(torch.cuda.device_count()):
            torch.cuda.synchronize(i)
    except RuntimeError:
        return False
    return True


def host_memory() -> int:
    """Bytes of memory that a process may still take here: what is free, and left of the limits of its control
    groups."""
    free = int(psutil.virtual_memory().available)
    for limit in _limits():
        text = limit.read_text().strip() if limit.exists() else "max"
        if text.isdecimal():
            free = min(free, int(text) - _held(limit))
    return max(free, 0)


def _limits() -> list[Path]:
    """Where the limits stand of the groups that this process is in, of either version, and of those above
    them. In a container its group may be the root, whatever name its processes see."""
    found: list[Path] = []
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []:
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, file = (_GROUPS / "memory", "memory.limit_in_bytes") if kinds else (_GROUPS, "memory.max")
        own = root / name.lstrip("/")
        found += [group / file for group in (own, *own.parents) if group.is_relative_to(root)]
    return found


def _held(limit: Path) -> int:
    """Bytes that the group of this limit holds and would not give back, as it does file cache."""
    used = limit.with_name(_USED[limit.name])
    held = int(used.read_text()) if used.exists() else 0
    stat = limit.with_name("memory.stat")
    lines = [line.split() for line in stat.read_text().splitlines()] if stat.exists() else []
    counts = {name: int(count) for name, count in lines}
    # What was read more than once is active, and given back as well.
    cached = (f"{kind}_file" for kind in ("active", "inactive"))
    return held - sum(counts.get(f"total_{name}", counts.get(name, 0)) for name in cached)


def free_memory(most: int | None = None) -> dict[int | str, int]:
    """Bytes free on each GPU that this process sees, or on so many of them, by its number, and on the `cpu`.
    A GPU that is asked loses `CONTEXT` to this process."""
    gpus = range(gpu_count())[:most]
    free: dict[int | str, int] = {i: torch.cuda.mem_get_info(i)[0] for i in gpus}
    return free | {"cpu": host_memory()}


def leave_out_cudnn() -> None:
    """Have attention computed by PyTorch's own kernels in this process, never by cuDNN's.

    On an H100, H200 or B200 PyTorch takes cuDNN's first. That plans anew for every shape, and batches by
    length and texts that grow have hundreds; on a B200 it writes other texts than any other kernel where a
    model has few heads for keys (pytorch/pytorch#193893).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_within(share: float) -> None:
    """Take no more from here on than this share of the memory of each GPU that this process sees: others are
    there that take as much, and what one keeps for later another would miss."""
    for i in range(torch.cuda.device_count()):
        context = CONTEXT / torch.cuda.get_device_properties(i).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share - context, 0.0), i)
