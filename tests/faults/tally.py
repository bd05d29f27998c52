"""What the fault suite has tried, and what came of it: a table."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.faults.world import Compared

_HEAD = (
    "fault",
    "times",
    "rows compared",
    "lost",
    "doubled",
    "other values",
    "shards computed again",
    "exit codes",
)


@dataclass
class Tried:
    """One fault, over all of its repetitions."""

    times: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    other: int = 0
    again: int | None = 0
    """None where it was not counted."""
    codes: Counter[int] = field(default_factory=Counter)


@dataclass
class Tally:
    """All faults of a run of the suite, in the order in which they were tried."""

    faults: dict[str, Tried] = field(default_factory=dict)

    def add(
        self,
        fault: str,
        compared: Compared | None = None,
        times: int = 0,
        again: int | None = 0,
        codes: list[int] | None = None,
    ) -> None:
        """Count; what does not hold is counted before a test fails."""
        tried = self.faults.setdefault(fault, Tried())
        tried.times += times
        tried.codes.update(codes or [])
        tried.again = None if again is None or tried.again is None else tried.again + again
        if compared is not None:
            tried.rows += compared.rows
            tried.lost += compared.lost
            tried.doubled += compared.doubled
            tried.other += compared.other

    @property
    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {fault: {**vars(tried), "codes": dict(tried.codes)} for fault, tried in self.faults.items()}

    def take_in(self, content: dict[str, Any]) -> None:
        """What another process has counted, of other faults or of the same."""
        for fault, tried in content.items():
            codes = [int(code) for code, count in tried["codes"].items() for _ in range(count)]
            compared = Compared(tried["rows"], tried["lost"], tried["doubled"], tried["other"])
            self.add(fault, compared, tried["times"], tried["again"], codes)

    def table(self) -> str:
        """In Markdown."""
        rows = [_HEAD, tuple("--" if place == 0 else "--:" for place in range(len(_HEAD)))]
        for fault, tried in self.faults.items():
            codes = ", ".join(f"{code} ({count}×)" for code, count in sorted(tried.codes.items()))
            numbers = (tried.rows, tried.lost, tried.doubled, tried.other)
            counted = [f"{number:,}" if tried.rows else "" for number in numbers]
            again = "" if tried.again is None else f"{tried.again:,}"
            rows.append((fault, f"{tried.times:,}", *counted, again, codes))
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)
