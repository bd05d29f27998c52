"""Memory that runs out, clocks that jump, and texts that no model survives."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from tests.faults.bench import Bench, Command, Trace
from tests.faults.tally import Tally
from tests.faults.trial import Trial
from tests.faults.world import BEYOND, KILLS, SPOILS, Compared, World, read_set
from tests.harvests import shard_files, stamps
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
_CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def no_memory() -> Iterator[Path]:
    """A control group in which there is none: the kernel kills what asks for more in it."""
    group = _CGROUPS / f"faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("1000000")
    except OSError as error:
        pytest.skip(f"no control group for memory can be made ({error})")
    yield group
    with suppress(OSError):
        group.rmdir()


def test_out_of_memory(no_memory: Path, bench: Bench, trial: Trial) -> None:
    """The kernel kills an actor for want of memory, again and again."""
    rows, out, draw = 100 * trial.times + 60, trial.out, random.Random(7)
    hungry = trial.trace.folder / "hungry"
    command = trial.start(trial.command(rows, bench.address))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 20))
        if command.over:
            break
        poor = bench.working()
        (no_memory / "cgroup.procs").write_text(str(poor.pid))
        hungry.touch()
        until(lambda poor=poor: command.over or not poor.is_running(), "the kernel kills it")
        hungry.unlink()
    trial.ends("out of memory (killed by the kernel)", rows, command)
    assert command.told.count("an actor was lost at ") == trial.made


_MARGIN = 4 << 30
"""Bytes between what is used of this machine's memory and what Ray grants."""
_EATER = "import sys, time; held = b'x' * int(sys.argv[1]); time.sleep(600)"


@pytest.fixture
def watchful(trace: Trace) -> Iterator[Bench]:
    """A cluster whose nodes end workers where `_MARGIN` more is used of this machine's memory than now."""
    memory = psutil.virtual_memory()
    if memory.available < 2 * _MARGIN:
        pytest.skip(f"takes {2 * _MARGIN >> 30} GB of memory, {memory.available >> 30} GB are free")
    threshold = (memory.total - memory.available + _MARGIN) / memory.total
    ray.shutdown()
    bench = Bench(memory_usage_threshold=threshold, memory_monitor_refresh_ms=100)
    yield bench
    bench.cluster.shutdown()


def test_rays_memory_monitor(watchful: Bench, trial: Trial) -> None:
    """A stranger eats the machine's memory, again and again: Ray ends actors before the kernel does."""
    rows, out, draw = 100 * trial.times + 60, trial.out, random.Random(11)
    command = trial.start(trial.command(rows, watchful.address))
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + draw.randint(5, 20))
        if command.over:
            break
        poor = watchful.working()
        eater = subprocess.Popen([sys.executable, "-c", _EATER, str(_MARGIN + (1 << 30))])
        try:
            until(lambda poor=poor: command.over or not poor.is_running(), "Ray ends it")
        finally:
            eater.kill()
            eater.wait()
    trial.ends("out of memory (ended by Ray)", rows, command)


@pytest.fixture
def clock(tmp_path: Path) -> dict[str, str]:
    """The environment of processes whose clock is as many seconds off as the file `FAULTS_CLOCK` says."""
    compiler, library = shutil.which("cc"), tmp_path / "clock.so"
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler for the library that sets the clock of a process")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    (tmp_path / "clock").write_text("0")
    return {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(tmp_path / "clock")}


@pytest.fixture
def elsewhen(clock: dict[str, str], trace: Trace) -> Iterator[Bench]:
    """A cluster of which each process has such a clock."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.items():
            patch.setenv(name, value)
        bench = Bench()
    yield bench
    bench.cluster.shutdown()


def test_clock_jumps(elsewhen: Bench, clock: dict[str, str], trial: Trial) -> None:
    """The time of day that driver and actors are told jumps forth and back, by up to days."""
    rows, draw, out = 60 * trial.times + 60, random.Random(9), trial.out
    command = trial.start(trial.command(rows, elsewhen.address), **clock)
    for _ in trial.turns():
        command.wait_for(out, len(shard_files(out)) + 8)
        if command.over:
            break
        off = draw.choice([-1, 1]) * draw.choice([1, 400, 7200, 200_000])
        Path(clock["FAULTS_CLOCK"]).write_text(str(off))
    trial.ends("clock jumps by a second to days", rows, command)


def _poisoned(world: World, rows: int, word: str, places: list[int], folder: Path) -> str:
    lines = Path(world.texts(rows)).read_text().splitlines()
    for place in places:
        content = json.loads(lines[place])
        lines[place] = json.dumps({**content, "text": f"{word} {content['text']}"})
    folder.mkdir(exist_ok=True)
    path = folder / "texts.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_text_that_kills(
    streamed: bool, bench: Bench, world: World, tally: Tally, times: int, tmp_path: Path
) -> None:
    """Texts at which the process dies each time, in shards of eight, or two sweeps: they are named when all
    others are done, and left out where that is accepted."""
    shard, draw, out, said = 8, random.Random(10), tmp_path / "set", tmp_path / "said"
    rows = shard * times + 40
    places = [shard * number + draw.randrange(shard) for number in range(times)]
    texts = _poisoned(world, rows, KILLS, places, tmp_path)
    how = ["--shard-size", str(shard), *(["--placement", "stream"] if streamed else [])]
    words = world.command(rows, out, bench.address, 2, *how, texts=texts)
    strict = Command.start(words, said)
    codes = [strict.finish(300 + 120 * times)]  # each text takes many actors along
    assert codes[0] == 1, strict.told[-3000:]
    assert f"{times} of {rows} texts cannot be run" in strict.last
    assert f"{texts}, line {places[0] + 1} " in strict.last
    assert "its process died each time" in strict.last
    assert "--skip-bad leaves these out" in strict.last
    assert not (out / "manifest.json").exists()
    before = stamps(out)
    lenient = Command.start([*words, "--skip-bad"], said)
    codes.append(lenient.finish())
    assert codes[1] == 0, lenient.told[-3000:]
    assert not list(out.glob(".sweep-*"))
    assert {name: stamp for name, stamp in stamps(out).items() if name in before} == before
    # Batches are the same where texts are left out before they are run.
    calm = _poisoned(world, rows, BEYOND, places, tmp_path / "beyond")
    alone = Command.start([*world.alone(rows, tmp_path / "calm", calm), *how, "--skip-bad"], said)
    assert alone.finish() == 0, alone.told[-3000:]
    fault = "streamed harvest: a text that kills its actor" if streamed else "a text that kills its actor"
    _left_out(fault, out, tmp_path / "calm", rows, places, tally, codes)


def test_texts_that_spoil_their_rows(
    bench: Bench, world: World, tally: Tally, times: int, tmp_path: Path
) -> None:
    """Texts that give infinity, in shards of eight: they are named, and left out where that is accepted."""
    shard, draw, out, said = 8, random.Random(13), tmp_path / "set", tmp_path / "said"
    rows = shard * times + 40
    places = [shard * number + draw.randrange(shard) for number in range(times)]
    texts = _poisoned(world, rows, SPOILS, places, tmp_path)
    size = ["--shard-size", str(shard)]
    words = world.command(rows, out, bench.address, 2, *size, texts=texts)
    strict = Command.start(words, said)
    codes = [strict.finish()]
    assert codes[0] == 1, strict.told[-3000:]
    assert f"{texts}, line {places[0] + 1} " in strict.last
    assert f"{times} of {rows} texts cannot be run" in strict.last
    assert not (out / "manifest.json").exists()
    lenient = Command.start([*words, "--skip-bad"], said)
    codes.append(lenient.finish())
    assert codes[1] == 0, lenient.told[-3000:]
    alone = Command.start([*world.alone(rows, tmp_path / "calm", texts), *size, "--skip-bad"], said)
    assert alone.finish() == 0, alone.told[-3000:]
    _left_out("a text that gives infinity", out, tmp_path / "calm", rows, places, tally, codes)


def _left_out(
    fault: str, out: Path, calm: Path, rows: int, places: list[int], tally: Tally, codes: list[int]
) -> None:
    """All texts but those at `places` are there, as an undisturbed process made them."""
    mine = read_set(out)
    numbers = mine.column("row").to_pylist()
    assert numbers == [row for row in range(rows) if row not in places]
    other = 0 if mine.equals(read_set(calm)) else len(numbers)
    tally.add(fault, Compared(len(numbers), 0, 0, other), len(places), None, codes)
    assert not other
