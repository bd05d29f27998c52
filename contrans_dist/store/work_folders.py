"""Folders that long work keeps its unfinished files in: found again after a kill, and trusted by no more than
their owner."""

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)

LOCK = "lock"
_STAGED = "contrans-staged-"
_STALE_SECONDS = 7 * 24 * 3600


@contextmanager
def work_folder(parent: Path, prefix: str, key: str) -> Iterator[Path]:
    """The folder that belongs to this work, which is gone when all went well.

    Its name is known to all, so it is believed only if this user alone can have made and filled it. Where
    another run is at work in it, or it is someone else's, a fresh one is taken.

    Args:
        parent: Is made where it is missing.
        prefix: Of all such folders; unused ones of a week ago are removed.
        key: What tells this work from other work.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_unused(parent, prefix, _STALE_SECONDS)
    folder = parent / f"{prefix}{key}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not is_own(folder):
            _log.warning("%s: not this user's alone; it is left as it is", folder)
    lock = locked(folder) if is_own(folder) else None
    if lock is None:
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{key}-", dir=parent))
        lock = locked(folder)
    try:
        yield folder
        shutil.rmtree(folder)
    finally:
        if lock is not None:
            lock.release()


def is_own(folder: Path) -> bool:
    """Whether it is a folder, no link to one, of this user, which no other may enter."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    if os.name == "nt":  # without owners and modes of this kind; the temporary folder is the user's own
        return True
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077


def locked(folder: Path) -> FileLock | None:
    """A lock on the folder, which ends with this process; None where another has it."""
    lock = FileLock(folder / LOCK, is_singleton=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def remove_unused(parent: Path, prefix: str, older: float = 0.0) -> None:
    """Remove the folders that killed work has left here, if nothing in them is newer than `older` seconds."""
    for folder in parent.glob(f"{prefix}*"):
        if not is_own(folder):
            continue
        lock = locked(folder)
        if lock is None:
            continue
        if not older or time.time() - _touched(folder) > older:
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _touched(folder: Path) -> float:
    times = [path.lstat().st_mtime for path in folder.iterdir() if path.name != LOCK]
    return max([folder.lstat().st_mtime, *times])


@contextmanager
def staging() -> Iterator[Path]:
    """A folder for a file on its way to a store, for this user's eyes alone, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_STAGED}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_staged() -> None:
    """Remove what processes that are no more had on its way to a store."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_STAGED}*"):
        process = folder.name.removeprefix(_STAGED).partition("-")[0]
        with suppress(ValueError, OSError):  # another run may sweep here too
            if is_own(folder) and not psutil.pid_exists(int(process)):
                shutil.rmtree(folder)
