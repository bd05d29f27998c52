"""Processes and nodes that are killed, stopped or late: nothing is lost, doubled or left out."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.bench import IMPATIENT, Bench, Command, Trace, patched
from tests.faults.tally import Tally
from tests.faults.trial import Trial
from tests.faults.world import SHARD, World
from tests.harvests import shard_files, stamps
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
_NAMES = {
    signal.SIGKILL: "driver killed",
    signal.SIGTERM: "driver terminated",
    signal.SIGINT: "driver interrupted",
}


@pytest.mark.parametrize("number", _NAMES)
def test_driver_ended(number: signal.Signals, bench: Bench, trial: Trial) -> None:
    """Ended again and again, at its start or in the middle of its work, and run again until it is done."""
    rows, out = 60 * trial.times + 60, trial.out
    codes, draw = list[int](), random.Random(int(number))
    words = trial.command(rows, bench.address)
    for repetition in range(trial.times):
        before = stamps(out)
        command = trial.start(words)
        if repetition % 4 == 3:
            time.sleep(draw.uniform(3, 9))
        else:
            command.wait_for(out, len(before) + draw.randint(1, 12))
        codes.append(command.end(number))
        command.ended_well(number, codes[-1])
        assert trial.whole(rows)
        assert before.items() <= stamps(out).items()  # what was there is not made again
    before = stamps(out)
    trial.ends(_NAMES[number], rows, trial.start(words), codes)
    assert before.items() <= stamps(out).items()
    assert not [path for path in out.iterdir() if path.name.startswith(".claim")]


def test_actors_killed(bench: Bench, trial: Trial) -> None:
    """One harvest, in which the actor that has worked most is killed again and again."""
    rows, out, draw = 100 * trial.times + 40, trial.out, random.Random(1)
    command = trial.start(trial.command(rows, bench.address))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 25))
        if command.over:
            break
        bench.working().kill()
    trial.ends("actor killed", rows, command)
    assert command.told.count("an actor was lost at ") == trial.made


@pytest.mark.parametrize("raylet_alone", [False, True])
def test_nodes_lost(raylet_alone: bool, bench: Bench, trial: Trial) -> None:
    """One harvest, in which a node is lost and another joins, again and again."""
    rows, out, draw = 100 * trial.times + 40, trial.out, random.Random(2)
    command = trial.start(trial.command(rows, bench.address))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 25))
        if command.over:
            break
        bench.lose(0, raylet_alone)
        bench.nodes.append(bench.add())
    trial.ends("raylet killed" if raylet_alone else "node lost, another joins", rows, command)


def test_nodes_that_join_later(bench: Bench, trial: Trial) -> None:
    """A harvest that asks for three actors, of which one node holds one; two nodes join, and leave again."""
    rows, out = 60 * trial.times + 60, trial.out
    bench.lose(0)
    command = trial.start(trial.command(rows, bench.address, 3))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + 5)
        only = bench.working()
        only.suspend()  # or it might have done all the work by then
        bench.nodes += [bench.add(), bench.add()]
        until(lambda: command.over or len(bench.actors()) == 3, "three actors")
        only.resume()
        if command.over:
            break
        command.wait_for(out, len(shard_files(out)) + 10)
        bench.lose(2)
        bench.lose(1)
    bench.nodes.append(bench.add())
    trial.ends("two nodes join, and leave", rows, command)


def test_actors_that_hang(bench: Bench, trial: Trial) -> None:
    """An actor's process is stopped, again and again; it is waited for 5 seconds here, not 60."""
    rows, out, draw = 100 * trial.times + 60, trial.out, random.Random(3)
    command = trial.start(patched(trial.command(rows, bench.address), IMPATIENT))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(10, 25))
        if command.over:
            break
        stopped = bench.working()
        stopped.suspend()
        until(lambda actor=stopped: command.over or not actor.is_running(), "the actor that hangs is ended")
    trial.ends("actor stopped (hangs)", rows, command)
    assert command.told.count("another actor gets it as well") >= trial.made


def test_two_at_once(
    bench: Bench, world: World, trace: Trace, tally: Tally, times: int, tmp_path: Path
) -> None:
    """Two of the same harvest, one begun a little later."""
    rows, draw = 60, random.Random(4)
    for repetition in range(times):
        out = tmp_path / f"set-{repetition}"
        words = world.command(rows, out, bench.address, 1)
        trace.begin()
        both = [Command.start(words, tmp_path / "first")]
        time.sleep(draw.uniform(0, 3))
        both.append(Command.start(words, tmp_path / "second"))
        codes = [command.finish() for command in both]
        compared = world.compared(out, rows)
        tally.add("two runs at once", compared, 1, trace.again(rows // SHARD), codes)
        assert codes == [0, 0], [command.told for command in both]
        assert compared.same
