"""One harvest that a fault befalls, again and again: begun, ended, compared, counted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import Command, Trace
from tests.faults.tally import Tally
from tests.faults.world import SHARD, World


@dataclass
class Trial:
    """What a test of a fault needs beside a cluster."""

    world: World
    trace: Trace
    tally: Tally
    times: int
    """How often the fault is made."""
    out: Path
    said: Path

    def command(self, rows: int, address: str, actors: int = 2) -> list[str]:
        """A harvest of the first rows on a cluster."""
        return self.world.command(rows, self.out, address, actors)

    def start(self, words: list[str], *before: str, **more: str) -> Command:
        return Command.start(words, self.said, before, **more)

    def whole(self, rows: int) -> bool:
        """Whether no row that is there has another value."""
        return self.world.compared(self.out, rows).other == 0

    def ends(
        self, fault: str, rows: int, command: Command, codes: list[int] | None = None,
        fetch: Callable[[], object] = lambda: None,
    ) -> int:  # fmt: skip
        """Wait for the last command, count, and assert that it ended well and that all rows are as they
        should be. `codes`: of the commands that met the fault, where that is not this one. `fetch`: brings
        what was made elsewhere to `out`. Returns the shards that were computed again."""
        code = command.finish()
        fetch()
        compared = self.world.compared(self.out, rows)
        again = self.trace.again(rows // SHARD)
        self.tally.add(fault, compared, self.times, again, [code] if codes is None else codes)
        assert code == 0, command.told[-3000:]
        assert compared.same
        return again
