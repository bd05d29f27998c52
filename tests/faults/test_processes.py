"""Processes and nodes that are killed, stopped or late: nothing is lost, doubled or left out."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Command, Trace
from tests.faults.tally import Tally
from tests.faults.world import SHARD, World
from tests.harvests import shard_files, stamps

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
_NAMES = {
    signal.SIGKILL: "driver killed",
    signal.SIGTERM: "driver terminated",
    signal.SIGINT: "driver interrupted",
}


@pytest.mark.parametrize("number", _NAMES)
def test_driver_ended(
    number: signal.Signals, bench: Bench, world: World, trace: Trace, tally: Tally, times: int, tmp_path: Path
) -> None:
    """Ended again and again, at its start or in the middle of its work, and run again until it is done."""
    rows = 60 * times + 60
    out, said, codes, draw = tmp_path / "set", tmp_path / "said", [], random.Random(int(number))
    words = world.command(rows, out, "--address", bench.address, "--actors", "2")
    trace.begin()
    for repetition in range(times):
        before = stamps(out)
        command = Command.start(words, said)
        if repetition % 4 == 3:
            time.sleep(draw.uniform(3, 9))
        else:
            command.wait_for(out, len(before) + draw.randint(1, 12))
        codes.append(command.end(number))
        command.ended_well(number, codes[-1])
        assert world.compared(out, rows).other == 0
        assert before.items() <= stamps(out).items()  # what was there is not made again
    before = stamps(out)
    assert (final := Command.start(words, said)).finish() == 0, final.told[-3000:]
    assert before.items() <= stamps(out).items()
    compared = world.compared(out, rows)
    tally.add(_NAMES[number], compared, times, trace.again(rows // SHARD), codes)
    assert compared.same
    assert not [path for path in out.iterdir() if path.name.startswith(".claim")]


def test_actors_killed(
    bench: Bench, world: World, trace: Trace, tally: Tally, times: int, tmp_path: Path
) -> None:
    """One harvest, in which the actor that has worked most is killed again and again."""
    rows = 100 * times + 40
    out, draw = tmp_path / "set", random.Random(1)
    words = world.command(rows, out, "--address", bench.address, "--actors", "2")
    trace.begin()
    command = Command.start(words, tmp_path / "said")
    for _ in range(times):
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 25))
        assert not command.over, command.told[-3000:]
        bench.working().kill()
    code = command.finish()
    compared = world.compared(out, rows)
    tally.add("actor killed", compared, times, trace.again(rows // SHARD), [code])
    assert code == 0, command.told[-3000:]
    assert compared.same
    assert command.told.count("an actor was lost at ") == times


@pytest.mark.parametrize("raylet_alone", [False, True])
def test_nodes_lost(
    raylet_alone: bool, bench: Bench, world: World, trace: Trace, tally: Tally, times: int, tmp_path: Path
) -> None:
    """One harvest, in which a node is lost and another joins, again and again."""
    rows = 100 * times + 40
    out, draw = tmp_path / "set", random.Random(2)
    words = world.command(rows, out, "--address", bench.address, "--actors", "2")
    trace.begin()
    command = Command.start(words, tmp_path / "said")
    for _ in range(times):
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 25))
        assert not command.over, command.told[-3000:]
        bench.lose(0, raylet_alone)
        bench.nodes.append(bench.add())
    code = command.finish()
    compared = world.compared(out, rows)
    name = "raylet killed" if raylet_alone else "node lost, another joins"
    tally.add(name, compared, times, trace.again(rows // SHARD), [code])
    assert code == 0, command.told[-3000:]
    assert compared.same
