"""What is to be seen of a stage while it runs: in its folders, in Ray's metrics, in the log of a job."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from contrans_dist.console import Progress, in_a_job, json_line, shown
from contrans_dist.store.location import Location
from contrans_dist.store.running import Running, forget, tell

_TELL_SECONDS = 10.0
_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
_TAGS = ("stage", "model")


@dataclass
class Watch:
    """A stage that runs: what its driver and the pool know of it."""

    stage: str
    model: str
    progress: Progress | None = None
    folders: Sequence[Location] = ()
    began: float = field(default_factory=time.monotonic)
    tokens: int = 0
    actors: int = 0
    finished: int = 0
    lost: int = 0
    failed: int = 0
    metrics: "_Metrics | None" = None
    logged: bool = True
    """Whether each shard or part is a line in the log of a job."""

    def done(self, name: str, seconds: float, node: str = "", **more: Any) -> None:
        """A shard or part is there. In the log of a job that is one line of JSON."""
        self.finished += 1
        self._count("done")
        if (metrics := self._exported()) is not None:
            metrics.seconds.observe(seconds, self._tags)
        self._log("done", name, seconds=round(seconds, 3), node=node, **more)

    def gave_up(self, name: str, reason: str) -> None:
        """A shard or part failed for good."""
        self.failed += 1
        if self.progress is not None:
            self.progress.failed = self.failed
        self._count("failed")
        self._log("failed", name, reason=shown(reason))

    def lost_actor(self, names: Sequence[str]) -> None:
        """An actor is lost, and what it was at."""
        self.lost += 1
        self._count("lost")
        for name in names:
            self._log("lost", name)

    def computed(self, tokens: int) -> None:
        """So many more tokens are through the model."""
        self.tokens += tokens
        if self.progress is not None:
            self.progress.tokens = self.tokens
        if tokens and (metrics := self._exported()) is not None:
            metrics.tokens.inc(tokens, self._tags)

    @property
    def now(self) -> Running:
        """How it stands."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        of, done = (self.progress, self.progress.done) if self.progress else (None, 0)
        return Running(
            stage=self.stage, model=self.model, unit=of.unit if of else "", done=done,
            wanted=of.total if of else 0, rate=done / seconds, tokens=self.tokens / seconds,
            actors=self.actors, finished=self.finished, lost=self.lost, failed=self.failed,
            host=socket.gethostname(), process=os.getpid(), told=datetime.now(UTC),
        )  # fmt: skip

    def tell(self) -> None:
        """Say how it stands, to whoever looks."""
        now = self.now
        for folder in self.folders:
            tell(folder, now)
        if (metrics := self._exported()) is not None:
            metrics.done.set(now.done, self._tags)
            metrics.wanted.set(now.wanted, self._tags)
            metrics.actors.set(now.actors, self._tags)

    def _exported(self) -> "_Metrics | None":
        """Where it counts, from the first thing that happens on: a short stage is over before it tells."""
        if self.metrics is None and self.stage and ray.is_initialized():
            self.metrics = _Metrics.here()
        return self.metrics

    @property
    def _tags(self) -> dict[str, str]:
        return {"stage": self.stage, "model": self.model}

    def _count(self, outcome: str) -> None:
        if (metrics := self._exported()) is not None:
            metrics.tasks.inc(1, {**self._tags, "outcome": outcome})

    def _log(self, outcome: str, name: str, **more: Any) -> None:
        if in_a_job() and self.logged:
            line = {"stage": self.stage, "outcome": outcome, "name": shown(name), **more}
            print(json_line(line), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Metrics:
    """Ray exports them from this process, as `ray_contrans_...`."""

    done: Gauge
    wanted: Gauge
    actors: Gauge
    tokens: Counter
    tasks: Counter
    seconds: Histogram

    @classmethod
    def here(cls) -> "_Metrics":
        return cls(
            Gauge("contrans_items_done", "Texts or items that are finished.", _TAGS),
            Gauge("contrans_items_wanted", "Texts or items of the stage.", _TAGS),
            Gauge("contrans_actors", "Actors that are up.", _TAGS),
            Counter("contrans_tokens", "Tokens that went through the model.", _TAGS),
            Counter("contrans_tasks", "Shards or parts, by what became of them.", (*_TAGS, "outcome")),
            Histogram("contrans_task_seconds", "Seconds that a shard or part took.", _SECONDS, _TAGS),
        )


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


def watch() -> Watch:
    """That of the stage which runs; one that nobody looks at where there is none."""
    return _WATCH.get() or Watch("", "")


@contextmanager
def watched(
    stage: str, model: str, progress: Progress, folders: Sequence[Location], logged: bool = True
) -> Iterator[Watch]:
    """While a stage runs, all of it is to be seen from elsewhere every few seconds.

    Args:
        stage: `harvest`, `evaluate` or `judge`; `trials`, where texts that kill are looked for.
        model: The one that runs.
        progress: Counts its items.
        folders: Where it says how it stands.
        logged: Whether each of its shards or parts is a line in the log of a job.
    """
    seen, over = Watch(stage, model, progress, folders, logged=logged), threading.Event()

    def keep_telling() -> None:
        while not over.wait(_TELL_SECONDS):
            seen.tell()

    teller = threading.Thread(target=keep_telling, name="watch", daemon=True)
    token = _WATCH.set(seen)
    teller.start()
    try:
        yield seen
    finally:
        _WATCH.reset(token)
        over.set()
        teller.join()
        if seen.metrics is not None:
            seen.actors = 0
            seen.tell()
        for folder in folders:
            forget(folder)
