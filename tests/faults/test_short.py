"""The short form of the suite, which runs with every other test: one harvest, ended in three ways."""

import signal
from pathlib import Path

from tests.faults.bench import Bench, Command
from tests.faults.world import SHARD, World
from tests.harvests import manifest_of, shard_files, stamps


def test_driver_actor_and_node_lost(bench: Bench, world: World, tmp_path: Path) -> None:
    """The driver is terminated; its successor loses an actor and a node, and makes what is missing alone."""
    rows, out, said = 160, tmp_path / "set", tmp_path / "said"
    words = world.command(rows, out, bench.address, 2)
    command = Command.start(words, said)
    command.wait_for(out, 3)
    command.ended_well(signal.SIGTERM, command.end(signal.SIGTERM))
    # Its claim is gone; the beginning of a file that an actor was at may stay, until it is swept.
    assert all(path.name.startswith(".tmp-") for path in out.glob(".*"))
    assert not (out / "manifest.json").exists()
    before = stamps(out)
    assert 3 <= len(before) < rows // SHARD
    command = Command.start(words, said)
    command.wait_for(out, len(before) + 5)
    bench.working().kill()
    command.wait_for(out, len(shard_files(out)) + 5)
    assert not command.over
    bench.lose(0)
    assert command.finish() == 0, command.told
    assert world.compared(out, rows).same
    assert before.items() <= stamps(out).items()
    assert f"{len(before)} of {rows // SHARD} shards are there" in command.told
    missing = rows - SHARD * len(before)
    assert f"{missing} of {missing} texts" in command.told
    throughput = manifest_of(out)["throughput"]
    assert throughput["actors"] == 2
    assert 1 <= throughput["lost_actors"] <= 2
