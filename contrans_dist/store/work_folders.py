"""Folders that long work keeps its unfinished files in: found again after a kill, and trusted by no more than
their owner."""

import logging
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)

LOCK = "lock"
_STAGED = "contrans-staged-"
_STALE_SECONDS = 7 * 24 * 3600
_STAGED_SECONDS = 60
"""Before a staged file is taken for a dead process': its lock comes after its folder."""


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
    except BaseException:
        _release(lock)
        raise
    _discard(folder, lock)


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
    """A lock on the folder, which ends with this process; None where another has it, or where its disk knows
    no locks."""
    lock = FileLock(folder / LOCK, is_singleton=False)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):  # as NFS without its daemon for locks
        return None
    return lock


def _discard(folder: Path, lock: FileLock | None) -> None:
    """Remove a folder whose lock this process has, if its disk knows locks. What cannot be removed stays."""
    # Out of the way of who comes for it, then without the lock: NFS keeps a folder with an open file.
    with suppress(OSError):
        folder = folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}"))
    _release(lock)
    shutil.rmtree(folder, ignore_errors=True)


def _release(lock: FileLock | None) -> None:
    if lock is not None:
        lock.release()


def remove_unused(parent: Path, prefix: str, older: float = 0.0) -> None:
    """Remove the folders that killed work has left here, if nothing in them is newer than `older` seconds."""
    for folder in parent.glob(f"{prefix}*"):
        if not is_own(folder):
            continue
        lock = locked(folder)
        if lock is None:
            continue
        if not older or time.time() - _touched(folder) > older:
            _discard(folder, lock)
        else:
            lock.release()


def _touched(folder: Path) -> float:
    times = [path.lstat().st_mtime for path in folder.iterdir() if path.name != LOCK]
    return max([folder.lstat().st_mtime, *times])


@contextmanager
def staging() -> Iterator[Path]:
    """A folder for a file on its way to a store, for this user's eyes alone, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix=_STAGED))
    lock = locked(folder)
    try:
        yield folder
    finally:
        _release(lock)
        shutil.rmtree(folder, ignore_errors=True)


def sweep_staged() -> None:
    """Remove what killed processes had on its way to a store, on this machine or another with its temporary
    folder."""
    remove_unused(Path(tempfile.gettempdir()), _STAGED, _STAGED_SECONDS)
