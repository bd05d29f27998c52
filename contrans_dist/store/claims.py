"""Claims on folders: runs that would write different things into one folder learn of each other first.

A claim is a small file in the folder that says who is at work there, and as what. Whoever wants to work
writes its own and then lists all: of two, one at least sees the other, on a disk as on an object store, where
what was written is listed at once. Of two that ask at the same time the one whose name sorts first stays.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pyarrow import fs
from pydantic import ConfigDict, Field

from contrans_dist.config import Settings, differing, fingerprint
from contrans_dist.config.recipe import validated
from contrans_dist.console import note
from contrans_dist.errors import ClaimedError, RunError, UnwritableError, UserError
from contrans_dist.store.location import Location
from contrans_dist.store.patience import briefly
from contrans_dist.store.provenance import now

_PREFIX = ".claim-"
LOST_SECONDS = 300.0
"""A claim that was not renewed for so long, by a process that cannot be looked at from here, is void."""
_RENEWED_SECONDS = 30.0
_ASK_SECONDS = 0.2
_MOST_BYTES = 4 << 20
_SAME_START = 60.0
"""Two times at which a process began that differ by less are of the same process: clocks are set."""


class Claimant(Settings):
    """Who is at work in a folder, and as what."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    identity: dict[str, Any]
    host: str
    machine: str
    """Tells machines, and worlds of process ids within one, apart."""
    pid: int = Field(ge=1)
    started: float
    """When that process began, in seconds since 1970."""
    since: str
    holding: bool
    """False while it still asks whether another is there."""

    @property
    def dead(self) -> bool | None:
        """None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return not alive or abs(process.create_time() - self.started) > _SAME_START
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass
class Claim:
    """A claim of this process on a folder."""

    folder: Location
    identity: dict[str, Any]
    name: str = field(default_factory=lambda: f"{_PREFIX}{uuid.uuid4().hex}.json")
    since: str = field(default_factory=now)
    ended: threading.Event = field(default_factory=threading.Event)
    gone: bool = False
    """Whether it was found gone when it was to be renewed."""

    @property
    def location(self) -> Location:
        return self.folder / self.name

    def write(self, holding: bool) -> None:
        claimant = Claimant(
            identity=self.identity, host=socket.gethostname(), machine=_machine(), pid=os.getpid(),
            started=psutil.Process().create_time(), since=self.since, holding=holding,
        )  # fmt: skip
        self.location.write_json(claimant.model_dump())

    def take(self) -> None:
        """Hold the folder. Raises ClaimedError where another is at work, UnwritableError where nothing can be
        written."""
        try:
            self.write(holding=False)
        except UnwritableError as error:  # a name of the folder, not of a file that nobody asked for
            raise UnwritableError(str(error).replace(str(self.location), str(self.folder))) from error
        asked = time.monotonic()
        while rivals := self._rivals():
            name, first = min(rivals.items(), key=lambda rival: (not rival[1].holding, rival[0]))
            if first.holding or name < self.name:
                raise ClaimedError(self._refusal(first))
            time.sleep(_ASK_SECONDS)
            if time.monotonic() - asked > _RENEWED_SECONDS:  # one that died while it asked is told by its age
                self.write(holding=False)
                asked = time.monotonic()
        self.write(holding=True)

    def _rivals(self) -> dict[str, Claimant]:
        """Who else is at work as something else, by the names of their claims; void claims are removed."""
        files = {info.base_name: info for info in _claims_in(self.folder)}
        if self.name not in files:
            raise RunError(f"{self.folder}: this run's claim on the folder was removed; run it again")
        mine, rivals = files.pop(self.name), {}
        for name, info in files.items():
            rival = _read(self.folder / name)
            if rival is None:
                continue
            # By the clock of the disk or store, which may have been set back: those of machines may differ.
            silent = abs((mine.mtime_ns or 0) - (info.mtime_ns or 0)) / 1e9
            if rival.dead or (rival.dead is None and silent > LOST_SECONDS):
                if fingerprint(rival.identity) != fingerprint(self.identity):
                    note(f"{self.folder}: {rival} claimed it and is gone; taken over")
                (self.folder / name).delete()
            elif fingerprint(rival.identity) != fingerprint(self.identity):
                rivals[name] = rival
        return rivals

    def _refusal(self, rival: Claimant) -> str:
        fields = "; ".join(differing(rival.identity, self.identity))
        told = "" if rival.dead is not None else f"; if it was killed, wait {LOST_SECONDS / 60:g} minutes"
        return (
            f"{self.folder}: another run is at work there under other settings ({rival}: {fields}); "
            f"choose another --out, or wait for its end{told}"
        )

    def renew(self) -> None:
        """Say again and again that this process is alive, until the claim is ended."""
        while not self.ended.wait(_RENEWED_SECONDS):
            with suppress(UserError, RunError, OSError), briefly():  # the next time, then
                if not self.location.exists():
                    self.gone = True
                    return
                self.write(holding=True)

    def shared(self) -> bool:
        """Whether another run of the same identity is at work in the folder as well."""
        others = len(self._rivals())  # void claims are removed by it
        return len(_claims_in(self.folder)) > 1 + others

    def check(self) -> None:
        """Raise as `look` when it is gone now."""
        self.gone = self.gone or not self.location.exists()
        self.look()

    def look(self) -> None:
        """Raise RunError when it was found gone: another has taken the folder over, or its disk is not there.
        Asks no disk."""
        if self.gone:
            raise RunError(
                f"{self.folder}: this run's claim on the folder is gone: its disk is not there, or nothing "
                f"was heard of this run for {LOST_SECONDS / 60:g} minutes and another took over; run the "
                "same command again"
            )


@contextmanager
def claimed(folder: Location, identity: dict[str, Any]) -> Iterator[Claim]:
    """Hold a folder for work of this identity; runs of the same identity may hold it together.

    Raises UserError where a run of another identity is at work, naming it and the fields that differ. A claim
    whose process is dead is removed; one of another machine after `LOST_SECONDS` without a sign of life.
    Raises RunError for what can no longer be written while the folder is held.
    """
    claim = Claim(folder, identity)
    thread = threading.Thread(target=claim.renew, name="claim", daemon=True)
    try:
        claim.take()
        thread.start()
        try:
            yield claim
        except ClaimedError:  # of a folder in it
            raise
        except UnwritableError as error:  # it could be written to when the claim was
            raise RunError(f"{error}; run the same command again to go on") from error
    finally:
        claim.ended.set()
        if thread.is_alive():
            thread.join(_RENEWED_SECONDS / 3)  # it may be waiting for a store that is silent
        with suppress(UserError, RunError), briefly():  # it is void when this process has ended
            claim.location.delete()


def _claims_in(folder: Location) -> list[fs.FileInfo]:
    return [info for info in folder.entries() if info.base_name.startswith(_PREFIX)]


def _read(location: Location) -> Claimant | None:
    """A claim that was listed; None when it was withdrawn since. Raises UserError for a file that is none."""
    try:
        return validated(Claimant, location.read_json(_MOST_BYTES), str(location))
    except UserError:
        if location.exists():
            raise
        return None


def _machine() -> str:
    """This boot of this machine, and the namespace of its process ids, as far as the system tells."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    except OSError:
        parts.append(str(int(psutil.boot_time())))
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
