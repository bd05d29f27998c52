"""What the program says: progress and notes on standard error, without secrets or what steers a terminal."""

import json
import os
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

console = Console(stderr=True, highlight=False)
_SECONDS_BETWEEN_LINES = 5.0
_T = TypeVar("_T")

# Up to the last @ of the authority; a secret with a slash in it reaches beyond that, up to the last @ at all.
_CREDENTIALS = re.compile(r"(\w:/{1,2})(?:[^\s/\"<>]*@|[^\s/@:\"<>]*:(?!\d+(?:/|\s|$))[^\s\"<>]*@)")
_SECRET_OPTION = re.compile(
    r"([?&][^=&\s\"<>]*(?:token|secret|passw|key|sig|credential)[^=&\s\"<>]*=)[^&\s\"<>]+", re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """The text with user, password and secret options taken out of every URI in it."""
    return _SECRET_OPTION.sub(r"\1***", _CREDENTIALS.sub(r"\1", text))


def _as_python(letter: str) -> str:
    return repr(letter)[1:-1]


def printable(text: str, keep: str = "", escaped: Callable[[str], str] = _as_python) -> str:
    """The text with what moves the cursor, colours or hides `escaped`, as `\\x1b`; `keep` stays as it is."""
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else escaped(c)
        for c in text
    )


def in_a_job() -> bool:
    """Whether this is the driver of a submitted job: Ray sets this for it, and for nothing else."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def shown(text: object, keep: str = "\n") -> str:
    """Anything as a person may be shown it: `without_credentials`, and `printable`."""
    return printable(without_credentials(str(text)), keep)


def count_of(count: int, noun: str) -> str:
    """So many of something: `1 block`, `2,000 blocks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def json_line(value: object) -> str:
    """One line of JSON that a terminal takes for text as well. Raises ValueError for NaN."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return printable(line, escaped=lambda letter: json.dumps(letter)[1:-1])


def note(message: str) -> None:
    """One line for the person who is watching."""
    console.print(shown(message), markup=False, soft_wrap=True)


class Progress:
    """Counts finished items of a long piece of work, as a context manager.

    Where there is no terminal, a line every few seconds says how far it is, news or not.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = shown(title), total, unit
        self.done = self.tokens = self.failed = 0
        self._parts = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Bar | None = None
        self._lock, self._over = threading.RLock(), threading.Event()
        self._lines = threading.Thread(target=self._keep_telling, name="progress", daemon=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(
                *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console
            )
            self._task = self._bar.add_task(escape(self.title), total=total, rate="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        else:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._over.set()
            self._lines.join()

    def reach(self, done: int) -> None:
        """So many items are finished altogether; fewer than were known of before change nothing."""
        with self._lock:
            if done > self.done:
                self.advance(done - self.done)

    def finish(self, parts: int, whole: int) -> None:
        """So many more of `whole` parts are finished, of which each is as many items as the others."""
        self._parts += parts
        self.under_way(0, whole)

    def under_way(self, parts: float, whole: int) -> None:
        """So much beside what is finished is done of parts that are not."""
        self.reach(int((self._parts + parts) * self.total / whole))

    def advance(self, items: int) -> None:
        """Count `items` more as finished."""
        with self._lock:
            self.done += items
            if self._bar:
                rates = [per_second(self._rate, self.unit), *self._besides]
                self._bar.update(self._task, advance=items, rate=", ".join(rates))
            elif self.done >= self.total:
                self._say()
            else:
                self._say_again()

    def note(self, message: str) -> None:
        """One line that does not tear the bar."""
        (self._bar.console if self._bar else console).print(shown(message), markup=False, soft_wrap=True)

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def _rate(self) -> float:
        return self.done / self._seconds

    @property
    def _besides(self) -> list[str]:
        return besides(self.tokens / self._seconds, self.failed)

    def _keep_telling(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LINES / 5):
            with self._lock:
                self._say_again()

    def _say_again(self) -> None:
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._say()

    def _say(self) -> None:
        self._last_line = time.monotonic()
        line, rate = [f"{self.title}: {self.done:,} of {self.total:,} {self.unit}"], self._rate
        line += [per_second(rate)] if rate else [f"{time_words(self._seconds)} so far"]
        line += [*self._besides, *time_left(self.total - self.done, rate)]
        print(", ".join(line), file=sys.stderr, flush=True)


def besides(tokens: float, failed: int) -> list[str]:
    """What is said beside how far a stage is: tokens a second, and what failed for good; nothing of none."""
    said = [per_second(tokens, "tokens")] if tokens else []
    return said + ([f"{failed:,} failed for good"] if failed else [])


def time_left(items: int, rate: float) -> list[str]:
    """What is said of the time that so many items will take; nothing of less than a second."""
    left = items / rate if rate else 0.0
    return [f"{time_words(left)} left"] if left >= 1 else []


def per_second(rate: float, unit: str = "") -> str:
    """A rate; by the minute where that makes a number above one of it."""
    many, per = (rate, "s") if rate >= 1 else (60 * rate, "min")
    number = f"{many:,.0f}" if many >= 10 else f"{many:.1f}"
    return f"{number} {unit}/{per}" if unit else f"{number}/{per}"


def time_words(seconds: float) -> str:
    """A time as it is estimated: `31 s`, `12 min`, `3.4 h`."""
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def size_words(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


_LISTENER: ContextVar[Callable[[float], None]] = ContextVar("listener", default=lambda share: None)


@contextmanager
def listening(listener: Callable[[float], None]) -> Iterator[None]:
    """What is told in the block goes to `listener`: the share, 0 to 1, of a long call that is done."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(share: float) -> None:
    """Tell who listens, if anybody does, which share of the call is done."""
    _LISTENER.get()(share)


def one_by_one(parts: Sequence[_T]) -> Iterator[_T]:
    """Each part of a call in turn; what is told while one is at work is told of that part alone."""
    whole = _LISTENER.get()
    for place, part in enumerate(parts):

        def of_part(share: float, place: int = place) -> None:
            whole((place + share) / len(parts))

        with listening(of_part):
            yield part
