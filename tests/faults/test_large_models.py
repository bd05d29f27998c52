"""Models that no node holds, swept block by block or laid over a line of nodes: what is killed, lost or hangs
is made up for, and little is computed again."""

import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.bench import IMPATIENT, IN_TWO_STAGES, STREAMED, Bench, Command, patched
from tests.faults.trial import Trial
from tests.faults.world import SHARD
from tests.harvests import shard_files, stamps
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
_STREAM = ("--placement", "stream")
_ROWS = 60
"""Of a streamed harvest that meets a fault once: two sweeps, each of three seconds for a block."""
_OF_SWEEP = _ROWS // SHARD // 2
_OF_BLOCK = -(-_OF_SWEEP // 4)
"""Shards that are through a block take as long as so many do from their texts to the last of three."""


@pytest.fixture
def trial(trial: Trial) -> Trial:
    trial.truth = trial.world.swept
    return trial


def _sweeper(bench: Bench, out: Path) -> psutil.Process | None:
    """An actor that has saved a block of its sweep, and is at the next."""
    for saved in out.glob(".sweep-*/sweep.json"):
        for actor in bench.actors():
            with suppress(psutil.Error):
                if str(saved.with_name("lock")) in [file.path for file in actor.open_files()]:
                    return actor
    return None


def _sweeping(
    bench: Bench, trial: Trial, words: list[str], draw: random.Random
) -> tuple[Command, psutil.Process]:
    """A streamed harvest, and an actor that is in the middle of a sweep."""
    trial.trace.begin(STREAMED)
    command = trial.start(words)
    found: list[psutil.Process] = []

    def seen() -> bool:
        found.extend(filter(None, [_sweeper(bench, trial.out)]))
        return bool(found) or command.over

    until(seen, "a sweep that has saved a block")
    assert found, command.told[-3000:]
    time.sleep(draw.uniform(0, 2.5))
    trial.made = 1
    return command, found[0]


@pytest.mark.parametrize("with_node", [False, True])
def test_sweeps_lost(with_node: bool, bench: Bench, trial: Trial) -> None:
    """An actor is killed in its sweep, alone or with its node: another goes on behind the block that was
    saved last."""
    draw, folder = random.Random(14), trial.out
    for repetition in range(trial.times):
        trial.out = folder / str(repetition)
        words = trial.command(_ROWS, bench.address, 2, *_STREAM)
        command, actor = _sweeping(bench, trial, words, draw)
        if with_node:
            bench.lose(bench.holder(actor))
            bench.nodes.append(bench.add())
        else:
            actor.kill()
        fault = "node lost, another joins" if with_node else "actor killed"
        again = trial.ends(f"streamed harvest: {fault}", _ROWS, command)
        assert command.told.count("an actor was lost at sweep ") == 1
        assert command.told.count(": going on after block ") == 1
        assert again <= _OF_BLOCK


def test_sweeps_that_hang(bench: Bench, trial: Trial) -> None:
    """An actor's process is stopped in its sweep; nothing is heard of it for 5 seconds here, not 120."""
    draw, folder = random.Random(15), trial.out
    for repetition in range(trial.times):
        trial.out = folder / str(repetition)
        words = patched(trial.command(_ROWS, bench.address, 2, *_STREAM), IMPATIENT)
        command, actor = _sweeping(bench, trial, words, draw)
        actor.suspend()
        until(lambda c=command, a=actor: c.over or not a.is_running(), "the actor that hangs is ended")
        again = trial.ends("streamed harvest: actor stopped (hangs)", _ROWS, command)
        assert "its actor has said nothing for " in command.told
        assert "another actor gets it as well" in command.told
        # It holds its folder: who gets it as well begins anew.
        assert again <= _OF_SWEEP + 1


def test_streamed_harvest_killed(bench: Bench, trial: Trial) -> None:
    """Sweeps over the blocks, killed with their driver, go on behind the last block they saved."""
    rows, draw, codes, folder, place = 120, random.Random(5), list[int](), trial.out, 0
    trial.trace.begin(STREAMED)
    while len(codes) < trial.times:
        trial.out = folder / str(place)
        command = trial.start(trial.command(rows, bench.address, 2, *_STREAM))
        until(lambda sweep=command: sweep.over or bench.actors(), "an actor")
        time.sleep(draw.uniform(2, 12))
        code = command.end(signal.SIGKILL)
        assert code in (0, -9), command.told[-3000:]
        place += code == 0
        codes += [code] if code else []
    final = trial.start(trial.command(rows, bench.address, 2, *_STREAM))
    code, fault = final.finish(), "streamed harvest: driver killed"
    again = trial.trace.again((place + 1) * rows // SHARD)
    trial.tally.add(fault, None, trial.times, again, codes)
    assert code == 0, final.told[-3000:]
    for each in range(place + 1):
        compared = trial.world.compared(folder / str(each), rows, trial.truth)
        trial.tally.add(fault, compared)
        assert compared.same
    # At worst no sweep had saved its first block, which comes with the embeddings.
    assert again <= trial.times * rows // SHARD // 2 + 1
    assert not [path for path in trial.out.iterdir() if path.name.startswith(".sweep")]


_SMALL = """
from functools import partial
from contrans_dist.distributed import placement
placement._chosen = partial(placement._chosen, memories={"cpu": 942_000})
"""
"""Nodes have so little memory that two of the three blocks fit on one."""
_PIPELINE = ("--placement", "pipeline")
_HELD = 3
"""Shards that a line of two has in hand."""
_FIRST, _OTHER = "LineActor", "StageActor"


def _of_line(bench: Bench, kind: str) -> psutil.Process:
    """The actor of this kind of a line that is whole."""

    def found() -> list[psutil.Process]:
        both = bench.actors()
        mine = [actor for actor in both if actor.name().startswith(f"ray::{kind}")]
        return mine if len(both) == 2 else []

    until(found, f"a line with its {kind}")
    return found()[0]


def _line(bench: Bench, trial: Trial, rows: int, *code: str) -> list[str]:
    """A harvest by a line of two actors."""
    trial.trace.begin(IN_TWO_STAGES)
    return patched(trial.command(rows, bench.address, 1, *_PIPELINE), _SMALL, *code)


@pytest.mark.parametrize("kind", [_FIRST, _OTHER])
def test_actors_of_a_line_killed(kind: str, bench: Bench, trial: Trial) -> None:
    """One harvest, in which the actor that hands shards down the line, or the one behind it, is killed again
    and again."""
    rows, out, draw = 50 * trial.times + 30, trial.out, random.Random(16)
    command = trial.start(_line(bench, trial, rows))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(3, 15))
        if command.over:
            break
        _of_line(bench, kind).kill()
    again = trial.ends(
        f"pipeline: {'first' if kind == _FIRST else 'other'} actor of the line killed", rows, command
    )
    assert "2 stages of at most 2 blocks" in command.told
    assert command.told.count("an actor was lost at ") == trial.made
    assert again <= _HELD * trial.made


def test_nodes_of_a_line_lost(bench: Bench, trial: Trial) -> None:
    """One harvest, in which a node of the line is lost and another joins, again and again."""
    rows, out, draw = 50 * trial.times + 30, trial.out, random.Random(17)
    command = trial.start(_line(bench, trial, rows))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(3, 15))
        if command.over:
            break
        bench.lose(0)
        bench.nodes.append(bench.add())
    again = trial.ends("pipeline: node lost, another joins", rows, command)
    assert command.told.count("an actor was lost at ") == trial.made
    assert again <= _HELD * trial.made


def test_actors_of_a_line_that_hang(bench: Bench, trial: Trial) -> None:
    """An actor of the line is stopped, the one behind the first or that one: the line is started anew. It is
    waited for 5 seconds here, not 60."""
    rows, out, draw = 50 * trial.times + 30, trial.out, random.Random(18)
    command = trial.start(_line(bench, trial, rows, IMPATIENT))
    for turn in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 12))
        if command.over:
            break
        stopped = _of_line(bench, _FIRST if turn % 2 else _OTHER)
        stopped.suspend()
        until(lambda actor=stopped: command.over or not actor.is_running(), "the actor that hangs is ended")
    again = trial.ends("pipeline: actor stopped (hangs)", rows, command)
    assert command.told.count("; its actor is started anew in ") >= trial.made
    assert command.told.count("; its actor is started anew\n") >= trial.made
    assert again <= 2 * _HELD * trial.made


def test_driver_of_a_line_killed(bench: Bench, trial: Trial) -> None:
    """Killed in the middle of its work, again and again, and run again until it is done."""
    rows, out = 30 * trial.times + 30, trial.out
    codes, draw, words = list[int](), random.Random(19), _line(bench, trial, rows)
    for _ in range(trial.times):
        before = stamps(out)
        command = trial.start(words)
        command.wait_for(out, len(before) + draw.randint(1, 12))
        codes.append(command.end(signal.SIGKILL))
        command.ended_well(signal.SIGKILL, codes[-1])
        assert trial.whole(rows)
        assert before.items() <= stamps(out).items()  # what was there is not made again
    before = stamps(out)
    again = trial.ends("pipeline: driver killed", rows, trial.start(words), codes)
    assert before.items() <= stamps(out).items()
    assert again <= _HELD * trial.times
