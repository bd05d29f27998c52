"""Progress on standard error: a bar with rate and time left, or plain lines where there is no terminal."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from contrans_dist.printing import shown

console = Console(stderr=True, highlight=False)
_SECONDS_BETWEEN_LINES = 5.0


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
