"""What the program says: progress and notes on standard error, without secrets or what steers a terminal."""

import json
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

console = Console(stderr=True, highlight=False)
_SECONDS_BETWEEN_LINES = 5.0

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
    """Counts finished items of a long piece of work, as a context manager."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = shown(title), total, unit
        self.done = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(
                *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console
            )
            self._task = self._bar.add_task(escape(self.title), total=total, rate="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def reach(self, done: int) -> None:
        """So many items are finished altogether; fewer than were known of before change nothing."""
        if done > self.done:
            self.advance(done - self.done)

    def advance(self, items: int) -> None:
        """Count `items` more as finished."""
        self.done += items
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed
        if self._bar:
            self._bar.update(self._task, advance=items, rate=f"{rate:,.0f} {self.unit}/s")
            return
        now = time.monotonic()
        if self.done >= self.total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self.total - self.done) / rate if rate else 0.0
            line = f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s"
            print(line + (f", {left:,.0f} s left" if left >= 1 else ""), file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """One line that does not tear the bar."""
        (self._bar.console if self._bar else console).print(shown(message), markup=False, soft_wrap=True)
