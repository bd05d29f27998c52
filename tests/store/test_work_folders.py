"""Folders of unfinished work: found again where that is safe, and none left behind that nobody would find."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contrans_dist.store import work_folders
from contrans_dist.store.work_folders import locked, remove_unused, work_folder

PREFIX, WEEK = ".sweep-", 7 * 24 * 3600.0


def work(parent: Path, files: int = 1, fail: bool = False, during: Callable[[], object] = list) -> Path:
    """Some work that keeps files, and whatever goes on meanwhile."""
    with work_folder(parent, PREFIX, "key") as folder:
        for i in range(files):
            (folder / f"rows-{i}").write_text("rows")
        during()
        if fail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return folder


def fails(parent: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        work(parent, fail=True)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)


def test_what_failed_is_found_again_and_what_went_well_is_gone(tmp_path: Path) -> None:
    fails(tmp_path)
    assert (tmp_path / ".sweep-key" / "rows-0").read_text() == "rows"
    assert work(tmp_path, files=0) == tmp_path / ".sweep-key"
    assert list(tmp_path.iterdir()) == []


def test_work_beside_other_work_leaves_nothing(tmp_path: Path) -> None:
    """Nobody would find its folder again. Before, it stayed when the work failed, for a week at least."""
    work(tmp_path, during=lambda: fails(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_on_a_disk_without_locks_nothing_stays(tmp_path: Path, no_locks: None) -> None:
    """Before: the rows of each try that failed, for ever, and after a success an empty folder."""
    seen: list[Path] = []
    work(tmp_path, during=lambda: seen.append(work(tmp_path)))
    fails(tmp_path)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_on_a_disk_without_locks_what_is_there_is_left_until_it_is_old(
    tmp_path: Path, no_locks: None
) -> None:
    """Of a killed try, or of one that is at work: that cannot be told before a week is over."""
    theirs = tmp_path / ".sweep-key"
    theirs.mkdir(mode=0o700)
    (theirs / "rows-0").write_text("theirs")
    assert work(tmp_path) != theirs
    remove_unused(tmp_path, PREFIX)
    assert (theirs / "rows-0").read_text() == "theirs"
    for path in (*theirs.iterdir(), theirs):
        os.utime(path, (0, time.time() - WEEK - 60))
    work(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_removed_is_left_to_who_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another looks for unused folders after each file that goes. Before, it locked this one, whose removal
    then failed: a folder with its lock stayed."""
    real = os.unlink

    def unlink(*arguments: object, **named: object) -> None:
        real(*arguments, **named)  # type: ignore[arg-type]
        remove_unused(tmp_path, PREFIX, WEEK)

    monkeypatch.setattr(os, "unlink", unlink)
    work(tmp_path, files=3)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_removes_before_it_is_locked_is_not_left_open_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is made together with a folder. Before, that one stayed, and no work could have its name."""
    real, removed = work_folders.is_own, list[Path]()

    def is_own(folder: Path) -> bool:
        own = real(folder)
        if own and not removed:
            removed.append(folder)
            folder.rmdir()
        return own

    monkeypatch.setattr(work_folders, "is_own", is_own)
    modes: list[int] = []
    during = work(tmp_path, during=lambda: modes.extend(each.stat().st_mode for each in tmp_path.iterdir()))
    assert [folder.name for folder in removed] == [".sweep-key"]
    assert during.name != ".sweep-key"
    assert [stat.S_IMODE(mode) for mode in modes] == [0o700]
    assert list(tmp_path.iterdir()) == []
    assert work(tmp_path).name == ".sweep-key"


def test_looking_for_unused_folders_beside_work_that_comes_and_goes(tmp_path: Path) -> None:
    """Before: `FileNotFoundError`, which ended a second driver at its start."""
    over, errors = threading.Event(), list[BaseException]()

    def look() -> None:
        try:
            while not over.is_set():
                remove_unused(tmp_path, PREFIX, WEEK)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        work(tmp_path, files=100)
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == []


def test_another_that_has_it_and_a_disk_without_locks_are_two_things(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lock = locked(tmp_path)
    assert lock is not None
    assert locked(tmp_path) is None
    lock.release()
    request.getfixturevalue("no_locks")
    with pytest.raises(OSError, match="No locks available"):
        locked(tmp_path)
    with work_folders.staging() as folder:
        assert folder.is_dir()
    assert not folder.exists()
