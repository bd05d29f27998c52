"""A system that is not Linux, as far as Python shows it: what macOS or Windows lack is taken away."""

import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# `os.sysconf` itself is there on macOS, without the names that tell of memory.
_GONE: list[tuple[Any, str]] = [
    *((os, name) for name in ("posix_fadvise", "preadv", "pwritev", "sched_getaffinity", "memfd_create")),
    *((mmap, name) for name in ("MAP_ANONYMOUS", "MAP_POPULATE", "MAP_NORESERVE")),
    *((signal, name) for name in ("SIGPWR", "SIGPOLL", "SIGSTKFLT", "pidfd_send_signal")),
]  # fmt: skip


@contextmanager
def other_system() -> Iterator[None]:
    """Within it Linux's own calls, constants and files are not there. (A library that looks at the kernel's
    files by itself, as psutil does here, asks another system in its way.)"""
    sysconf, exists, opened = os.sysconf, Path.exists, Path.open

    def asked(name: Any) -> int:
        if name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
            raise ValueError("unrecognized configuration name")
        return sysconf(name)

    def kernel(path: Path) -> bool:
        return str(path).startswith(("/proc/", "/sys/"))

    def open_(path: Path, *args: Any, **named: Any) -> Any:
        if kernel(path):
            raise FileNotFoundError(path)
        return opened(path, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _GONE:
            patch.delattr(owner, name, raising=False)
        patch.setattr(os, "sysconf", asked)
        patch.setattr(Path, "exists", lambda path, **named: not kernel(path) and exists(path, **named))
        patch.setattr(Path, "open", open_)
        yield
