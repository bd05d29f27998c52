"""Disks that are full, read-only or gone for a while, under a harvest on a cluster."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Command
from tests.faults.trial import Trial
from tests.harvests import shard_files
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
_MIB = 1 << 20


def _mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB of its own, mounted at `disk`; its files also stand in `behind`."""
    behind, place = tmp_path / "behind", tmp_path / "disk"
    behind.mkdir()
    place.mkdir()
    if os.geteuid() != 0 or not _mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", behind):
        pytest.skip("only root may mount a disk")
    assert _mount("--bind", behind, place)
    yield place
    for folder in (place, behind):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def _fill(disk: Path, left: int = 0) -> Path:
    """Take all the room but `left` bytes."""
    filler = disk / "filler"

    def taken() -> bool:
        free = os.statvfs(disk)
        with suppress(OSError):  # somebody else has taken some in between
            os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - left, 1))
            return True
        return False

    with filler.open("wb") as file:
        until(taken, "room for what takes the room")
    return filler


def _refused(command: Command) -> None:
    assert "No space left on device" in command.last, command.told[-3000:]
    assert "run the same command again" in command.last


def test_disk_full_for_a_moment(disk: Path, bench: Bench, trial: Trial) -> None:
    """One harvest, under which it fills up and is freed: it sits that out, or ends with one line."""
    trial.out = out = disk / "set"
    rows, codes = 60 * trial.times + 60, list[int]()
    words = trial.command(rows, bench.address)

    def gone_on(command: Command) -> Command:
        """The same command again, where this one had to end."""
        if not command.over or command.finish() == 0:
            return command
        _refused(command)
        codes.append(1)
        return trial.start(words)

    command = trial.start(words)
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + 8)
        command = gone_on(command)
        command.wait_for(out, len(shard_files(out)) + 8)
        if command.over:
            break
        filler = _fill(disk)
        time.sleep(0.3)
        filler.unlink()
    command.finish()
    command = gone_on(command)
    again = trial.ends("disk full, freed while it runs", rows, command, codes or None)
    assert again <= 10 * trial.times


def test_disk_full(disk: Path, bench: Bench, trial: Trial) -> None:
    """It fills up in the middle of a harvest, which ends with one line, and is freed before the next."""
    trial.out = out = disk / "set"
    rows, codes = 60 * trial.times + 60, list[int]()
    words = trial.command(rows, bench.address)
    for _ in range(trial.times):
        command = trial.start(words)
        command.wait_for(out, len(shard_files(out)) + 8)
        assert not command.over, command.told[-3000:]
        filler = _fill(disk)
        codes.append(command.finish())
        filler.unlink()
        assert codes[-1] == 1, command.told[-3000:]
        _refused(command)
        assert trial.whole(rows)
    again = trial.ends("disk full, freed before the next run", rows, trial.start(words), codes)
    # Three shards that cannot be written show that none can: before, each was computed three times.
    assert again <= 10 * trial.times


def test_disk_read_only(disk: Path, bench: Bench, trial: Trial) -> None:
    """As a kernel makes it that finds an error on it: the harvest ends with one line, and goes on later."""
    trial.out = out = disk / "set"
    behind = disk.parent / "behind"
    rows, codes = 60 * trial.times + 60, list[int]()
    words = trial.command(rows, bench.address)
    for _ in range(trial.times):
        command = trial.start(words)
        command.wait_for(out, len(shard_files(out)) + 8)
        until(lambda: _mount("-o", "remount,ro", behind), "no file being written")
        codes.append(command.finish())
        assert _mount("-o", "remount,rw", behind)
        assert codes[-1] == 1, command.told[-3000:]
        assert "cannot be written (Read-only file system); run the same command again" in command.last
        assert trial.whole(rows)
    trial.ends("disk read-only for a while", rows, trial.start(words), codes)


@pytest.mark.parametrize("seconds", [1, 60])
def test_disk_gone(seconds: int, disk: Path, bench: Bench, trial: Trial) -> None:
    """Unmounted under a harvest, for a second or until that ends: an empty folder stands in its place. A run
    that says that it is done must have all its rows on the disk; one that is long at work ends when it sees,
    within half a minute, that its claim is gone."""
    rows, slow = 100, trial.trace.folder / "slow"
    for repetition in range(trial.times):
        trial.out = out = disk / f"set-{repetition}"
        trial.trace.begin()
        words = trial.command(rows, bench.address)
        command = trial.start(words)
        command.wait_for(out, 8)
        assert not command.over, command.told[-3000:]
        if seconds > 1:
            slow.touch()  # or all would be made by then
        subprocess.run(["umount", "-l", str(disk)], check=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not command.over:
            time.sleep(0.1)
        over = command.over
        slow.unlink(missing_ok=True)
        assert _mount("--bind", disk.parent / "behind", disk)
        code = command.finish()
        assert seconds == 1 or (over and code == 1), command.told[-3000:]
        if code == 0:
            assert (out / "manifest.json").exists()
            assert trial.world.compared(out, rows).same
        else:
            assert code == 1, command.told[-3000:]
            gone = "this run's claim on the folder is gone: its disk is not there"
            told = [gone]
            if seconds == 1:
                told += ["shards are not as they were written", "what was written cannot be read again"]
            assert any(words in command.last for words in told), command.last
            assert "run the same command again" in command.last
            assert trial.whole(rows)
            assert not (out / "manifest.json").exists()
        name = "disk gone for a second" if seconds == 1 else "disk gone until the run ends"
        again = trial.ends(name, rows, trial.start(words), [code])
        if seconds > 1:
            # In half a minute each of two actors makes eight or so, of the 42 that were missing.
            assert 0 < again <= 30
