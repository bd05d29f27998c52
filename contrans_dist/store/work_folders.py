"""Folders that long work keeps its unfinished files in: found again after a kill, where their disk knows
locks, and trusted by no more than their owner."""

import logging
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)

LOCK = "lock"
_STAGED = "contrans-staged-"
_STALE_SECONDS = 7 * 24 * 3600
_SCRATCH_SECONDS = 60
"""Before a scratch folder is taken for a dead process': its lock comes after it."""


@contextmanager
def work_folder(parent: Path, prefix: str, key: str) -> Iterator[Path]:
    """The folder that belongs to this work, which is gone when all went well; else it stays for another try.

    Its name is known to all, so it is believed only if this user alone can have made and filled it. Where
    another run is at work in it, or it is someone else's, or its disk knows no locks, so that nobody can tell
    whether one is, a fresh one is taken, which no other try would find and which is gone in any case.

    Args:
        parent: Is made where it is missing.
        prefix: Of all such folders; unused ones of a week ago are removed.
        key: What tells this work from other work.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_unused(parent, prefix, _STALE_SECONDS)
    folder = parent / f"{prefix}{key}"
    lock = _known(folder)
    keep = lock is not None
    if lock is None:
        folder, lock = _fresh(f"{prefix}{key}-", parent)
    try:
        yield folder
        keep = False
    finally:
        if keep:
            _release(lock)
        else:
            _discard(folder, lock)


def _known(folder: Path) -> FileLock | None:
    """A lock on a folder of a name known to all, made where it is missing; None where it cannot be had."""
    try:
        folder.mkdir(mode=0o700)
        made = True
    except FileExistsError:
        made = False
    if is_own(folder):
        try:
            return _locked_own(folder)
        except OSError as error:
            _log.warning(
                "%s: its disk gives no locks (%s); a try that fails is begun anew", folder, error.strerror
            )
    elif not made:
        _log.warning("%s: not this user's alone; it is left as it is", folder)
    if made:  # and of no use
        _remove_bare(folder)
    return None


def _locked_own(folder: Path) -> FileLock | None:
    """As `locked`, of a folder that was this user's own. If another has removed it since, the lock has made
    one that all may enter, and that would be no work's again: it is removed."""
    lock = locked(folder)
    if lock is None or is_own(folder):
        return lock
    _release(lock)
    _remove_bare(folder)
    return None


def _remove_bare(folder: Path) -> None:
    """Remove a folder with nothing in it but a lock; should another have got that, its files stay."""
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _fresh(prefix: str, parent: Path) -> tuple[Path, FileLock | None]:
    """A folder that nobody else knows of, and a lock on it where its disk knows locks."""
    folder, lock = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), None
    with suppress(OSError):
        lock = locked(folder)
    return folder, lock


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
    """A lock on the folder, which ends with this process; None where another has it.

    Raises OSError where its disk knows no locks, as NFS without its daemon for them.
    """
    lock = FileLock(folder / LOCK, is_singleton=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def _discard(folder: Path, lock: FileLock | None) -> None:
    """Remove a folder that no other is at work in. What cannot be removed stays."""
    with suppress(OSError):
        for path in folder.iterdir():  # under its lock, as others look for what is unused
            if path.name != LOCK:
                path.unlink()
        # Out of their sight, then without the lock: NFS keeps a folder with an open file.
        folder = folder.rename(folder.with_name(f".{uuid.uuid4().hex}"))
    _release(lock)
    shutil.rmtree(folder, ignore_errors=True)


def _release(lock: FileLock | None) -> None:
    if lock is not None:
        lock.release()


def remove_unused(parent: Path, prefix: str, older: float = 0.0) -> None:
    """Remove the folders that killed work has left here, if nothing in them is newer than `older` seconds; on
    a disk without locks, where those that are in use cannot be told, than a week."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # another removes it at this moment
            if is_own(folder):
                _remove_unused(folder, older)


def _remove_unused(folder: Path, older: float) -> None:
    times = [path.lstat().st_mtime for path in (folder, *folder.iterdir()) if path.name != LOCK]
    age = time.time() - max(times)
    if older and age <= older:  # before it is locked, or who comes for it now would take it to be in use
        return
    try:
        lock = locked(folder)
        used = lock is None
    except OSError:
        lock, used = None, age <= _STALE_SECONDS
    if not used:
        _discard(folder, lock)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder of such a name that no other knows of, for this user's eyes alone, until the block ends. The
    parent is made where it is missing."""
    parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _fresh(prefix, parent)
    try:
        yield folder
    finally:
        _discard(folder, lock)


def remove_scratch(parent: Path, prefix: str) -> None:
    """Remove the scratch folders that killed processes have left in the parent."""
    remove_unused(parent, prefix, _SCRATCH_SECONDS)


def staging() -> AbstractContextManager[Path]:
    """A folder for a file on its way to a store."""
    return scratch_folder(Path(tempfile.gettempdir()), _STAGED)


def sweep_staged() -> None:
    """Remove what killed processes had on its way to a store, on this machine or another with its temporary
    folder."""
    remove_scratch(Path(tempfile.gettempdir()), _STAGED)
