"""One harvest that a fault befalls, again and again: begun, ended, compared, counted."""

from collections.abc import Callable, Iterator
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
    truth: Path | None = None
    """What comes out where nothing disturbs; None for that of the resident model."""
    made: int = 0
    """How often it was made, while one harvest ran."""

    def command(self, rows: int, address: str, actors: int = 2, *more: str) -> list[str]:
        """A harvest of the first rows on a cluster."""
        return self.world.command(rows, self.out, address, actors, *more)

    def start(self, words: list[str], *before: str, **more: str) -> Command:
        return Command.start(words, self.said, before, **more)

    def turns(self) -> Iterator[int]:
        """Of making the fault while one harvest runs: as many as are wanted, or fewer where it is done before
        (break then), as on a machine that does other things as well."""
        for turn in range(self.times):
            yield turn
            self.made += 1

    def whole(self, rows: int) -> bool:
        """Whether no row that is there has another value."""
        return self.world.compared(self.out, rows, self.truth).other == 0

    def ends(
        self, fault: str, rows: int, command: Command, codes: list[int] | None = None,
        fetch: Callable[[], object] = lambda: None,
    ) -> int:  # fmt: skip
        """Wait for the last command, count, and assert that the fault was made, that the command ended well
        and that all rows are as they should be. `codes`: of the commands that met the fault, where that is
        not this one. `fetch`: brings what was made elsewhere to `out`. Returns the shards computed again."""
        code = command.finish()
        fetch()
        compared = self.world.compared(self.out, rows, self.truth)
        again = self.trace.again(rows // SHARD)
        times = self.made or len(codes or ())
        self.tally.add(fault, compared, times, again, [code] if codes is None else codes)
        assert code == 0, command.told[-3000:]
        assert compared.same
        assert times
        return again
