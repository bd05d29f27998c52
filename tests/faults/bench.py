"""A cluster of several nodes to make faults on, and commands that run on it."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.faults.world import N_BLOCKS
from tests.harvests import is_actor, shard_files
from tests.waiting import until

PACE = 0.1
"""Seconds that the model takes before each forward pass on the cluster."""
_NOTICED = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
"""A node that refuses the connection is given up after 3 seconds, not after 15."""
ENDED = {signal.SIGKILL: (-9, ""), signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


_PATCHED = """
import sys
from contrans_dist.cli import main
{}
sys.argv[0] = "contrans"
main()
"""
IMPATIENT = """
from contrans_dist.distributed import crew
assert (crew._HANG_SECONDS, crew._SILENT_SECONDS) == (60, 120)
crew._HANG_SECONDS = crew._SILENT_SECONDS = 5
"""
"""What hangs is waited for 5 seconds."""


def patched(words: list[str], *code: str) -> list[str]:
    """A command whose process runs this code first."""
    return [words[0], "-c", _PATCHED.format("".join(code)), *words[3:]]


@dataclass
class Command:
    """A command at work, and what it says on standard error."""

    process: "subprocess.Popen[bytes]"
    file: Path

    @classmethod
    def start(cls, words: Sequence[str], file: Path, before: Sequence[str] = (), **more: str) -> "Command":
        with file.open("wb") as stream:
            process = subprocess.Popen(
                [*before, *words], stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more},
            )  # fmt: skip
        return cls(process, file)

    @property
    def told(self) -> str:
        return self.file.read_text()

    @property
    def last(self) -> str:
        return self.told.rstrip("\n").rpartition("\n")[2]

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def end(self, number: signal.Signals) -> int:
        """Send a signal to it, as long as it runs; the code that it ends with."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {seconds:g} s: {self.told[-3000:]}") from None

    def wait_for(self, out: Path, shards: int) -> None:
        """Until so many shards are there, or it is over."""
        until(lambda: self.over or len(shard_files(out)) >= shards, f"{shards} shards in {out}: {self.told}")

    def ended_well(self, number: signal.Signals, code: int) -> None:
        """Assert that it ended as a signal makes it end, and said so."""
        wanted, how = ENDED[number]
        assert code == wanted, (code, self.told[-3000:])
        if how:
            line = f"contrans: {how}; what is finished is kept: run the same command again to go on"
            assert self.last == line, self.told[-3000:]


class Bench:
    """A head that lends no core, and nodes that lend one each."""

    def __init__(self, nodes: int = 2, **system: float) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": {**_NOTICED, **system}}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.wanted, self.nodes = nodes, list[Any]()
        self.mend()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def mend(self) -> None:
        """As many nodes as at first, all of them whole."""
        while len(self.nodes) > self.wanted:
            self.lose(0)
        self.nodes += [self.add() for _ in range(self.wanted - len(self.nodes))]

    def add(self) -> Any:
        """A node. Twice, if need be: Ray gives up after 30 seconds, which busy cores may take."""
        before = set(psutil.Process().children())
        try:
            return self.cluster.add_node(num_cpus=1)
        except Exception:
            for late in set(psutil.Process().children()) - before:
                late.kill()
            return self.cluster.add_node(num_cpus=1)

    def lose(self, place: int, raylet_alone: bool = False) -> None:
        """Kill every process of a node, or its raylet alone, which its workers do not outlive."""
        node = self.nodes.pop(place)
        if raylet_alone:
            self.raylet(node).kill()
            time.sleep(0.5)
        self.cluster.remove_node(node, allow_graceful=False)

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def place_of(self, actor: psutil.Process) -> int:
        """Which of its nodes an actor is on."""
        on = [actor in self.raylet(node).children(recursive=True) for node in self.nodes]
        return on.index(True)

    def actors(self) -> list[psutil.Process]:
        """Processes of actors on its nodes."""
        found = list[psutil.Process]()
        for node in self.nodes:
            with suppress(psutil.NoSuchProcess):
                found += filter(is_actor, self.raylet(node).children(recursive=True))
        return found

    def holder(self, actor: psutil.Process) -> int:
        """The place of the node that an actor is on."""
        held = (self.raylet(node).children(recursive=True) for node in self.nodes)
        return next(place for place, processes in enumerate(held) if actor in processes)

    def working(self) -> psutil.Process:
        """An actor that has a model by now: another one would have no work to lose."""
        until(self.actors, "an actor on the cluster")
        return max(self.actors(), key=_worked)


def _worked(process: psutil.Process) -> float:
    """Seconds on a processor; of one that is gone, none."""
    try:
        return float(process.cpu_times().user)
    except psutil.NoSuchProcess:
        return -1.0


@dataclass(frozen=True)
class Passes:
    """Forward passes of a harvest."""

    of_shard: int
    """Of the texts of a shard, and of one of them alone."""
    tries: int
    """With which each process tries its model."""


WHOLE = Passes(2, 1)
STREAMED = Passes(2 * (1 + N_BLOCKS), 5)
"""Through the embeddings and each block by itself. The first block is tried when it is there."""
IN_TWO_STAGES = Passes(2 * (1 + 2), 5)
"""Through the embeddings and each stage."""


class Trace:
    """Forward passes of the paced model, in all processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kind, self.before = WHOLE, 0

    @property
    def passes(self) -> int:
        """But for those with which each process tries its model."""
        return sum(max(0, path.stat().st_size - self.kind.tries) for path in self.folder.iterdir())

    def begin(self, kind: Passes = WHOLE) -> None:
        self.kind = kind
        self.before = self.passes

    def again(self, shards: int) -> int:
        """Of the passes since `begin`, those that so many shards did not need, in shards."""
        needed = self.kind.of_shard * shards
        return max(0, -(-(self.passes - self.before - needed) // self.kind.of_shard))
