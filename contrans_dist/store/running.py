"""What a stage that is under way says of itself in its folder, for whoever looks at it from elsewhere."""

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import AwareDatetime, ConfigDict, Field

from contrans_dist.config import Settings
from contrans_dist.console import besides, count_of, per_second, time_left, time_words
from contrans_dist.errors import RunError, UserError
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location
from contrans_dist.store.patience import briefly

_PREFIX = ".running-"
_MOST_BYTES = 64 << 10
SILENT_SECONDS = 60.0
"""Since it last told anything, until it is said to be silent."""


_COUNT = Field(ge=0, le=10**15)


class Running(Settings):
    """A stage that is under way."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    stage: str
    """`harvest`, `evaluate`, `judge` or `trials`"""
    model: str
    unit: str
    done: int = _COUNT
    wanted: int = _COUNT
    rate: float = Field(ge=0)
    """Units a second."""
    tokens: float = Field(ge=0)
    """Tokens a second, where they are counted."""
    actors: int = _COUNT
    finished: int = _COUNT
    """Shards or parts."""
    lost: int = _COUNT
    """Actors."""
    failed: int = _COUNT
    """Shards or parts that failed for good."""
    host: str
    process: int
    told: AwareDatetime

    @property
    def silent(self) -> float:
        """Seconds since it told anything."""
        return max(0.0, (datetime.now(UTC) - self.told).total_seconds())

    def __str__(self) -> str:
        said = [f"{self.done:,} of {count_of(self.wanted, self.unit.removesuffix('s'))}"]
        said += [per_second(self.rate, self.unit)] if self.rate else []
        said += [*besides(self.tokens, self.failed), *time_left(self.wanted - self.done, self.rate)]
        said += [count_of(self.actors, "actor")]
        said += [f"{self.lost} lost"] if self.lost else []
        silent = self.silent
        who = f"process {self.process} on {self.host}"
        heard = f"nothing heard of {who} for" if silent > SILENT_SECONDS else f"{who}, heard of"
        ago = "" if silent > SILENT_SECONDS else " ago"
        return f"{', '.join(said)}; {heard} {time_words(silent)}{ago}"


def running_in(folder: Location) -> list[Running]:
    """What is under way in a folder, or was when it was killed."""
    found: list[Running] = []
    for info in folder.entries():
        if info.base_name.startswith(_PREFIX):
            location = folder / info.base_name
            with suppress(UserError, RunError, ValueError):  # it may have ended meanwhile
                found.append(
                    Running.model_validate(parse_json(location.read_bytes(_MOST_BYTES), str(location)))
                )
    return found


def tell(folder: Location, running: Running) -> None:
    """Say how far it is; a store that is not there for a moment hears it the next time."""
    with suppress(UserError, RunError, OSError), briefly():
        _file(folder).write_json(running.model_dump(mode="json"))


def forget(folder: Location) -> None:
    """It is under way no more. What a killed process said here is removed with it."""
    with suppress(UserError, RunError, OSError), briefly():
        for info in folder.entries():
            if info.base_name.startswith(_PREFIX) and (
                info.base_name == _file(folder).name or _silent_for_long(info.mtime)
            ):
                (folder / info.base_name).delete()


def _silent_for_long(since: datetime | None) -> bool:
    return since is not None and (datetime.now(UTC) - since).total_seconds() > 60 * SILENT_SECONDS


def _file(folder: Location) -> Location:
    return folder / f"{_PREFIX}{socket.gethostname()}-{os.getpid()}.json"
