"""An object store that throttles, fails, drops, refuses, falls silent, is slow or cuts what is read."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Command
from tests.faults.stores import Store
from tests.faults.tally import Tally
from tests.faults.trial import Trial
from tests.faults.world import World
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]


_TROUBLES = {
    "throttles": ("store throttles (503)", 3.0),
    "fails": ("store answers 500", 3.0),
    "drops": ("store drops connections", 3.0),
    "slow": ("store is slow", 5.0),
    "silent": ("store says nothing", 25.0),
}


@pytest.mark.parametrize("mood", _TROUBLES)
def test_harvest_to_a_store_in_trouble(mood: str, store: Store, bench: Bench, trial: Trial) -> None:
    """One harvest; the store falls into trouble again and again, and out of it after seconds."""
    rows = 60 * trial.times + 60
    name, seconds = _TROUBLES[mood]
    command = trial.start(trial.world.command(rows, store.place(mood), bench.address, 2))
    for _ in trial.turns():
        there = store.shards(mood)
        until(lambda there=there: command.over or store.shards(mood) >= there + 8, "8 more shards")
        if command.over:
            break
        store.proxy.falls(mood)
        until(lambda: command.over or store.proxy.seen, "somebody meets it")
        time.sleep(seconds)
        store.proxy.mood = "well"
        if not store.proxy.seen:
            break
    trial.ends(name, rows, command, fetch=lambda: store.fetch(mood, trial.out))
    assert "hush" not in command.told
    assert not [key for key in store.keys(mood) if "/.tmp-" in key]


def test_harvest_to_a_store_whose_port_is_closed(store: Store, bench: Bench, trial: Trial) -> None:
    """Connections are refused for a minute, once in each harvest: a try that failed in one such minute, and
    again in the next, would be the last."""
    rows, out, trial.made = 120, trial.out, 1
    for repetition in range(trial.times):
        name, trial.out = f"refused-{repetition}", out / str(repetition)
        trial.trace.begin()
        command = trial.start(trial.world.command(rows, store.place(name), bench.address, 2))
        until(lambda c=command, name=name: c.over or store.shards(name) >= 8, "8 shards")
        assert not command.over, command.told[-3000:]
        store.proxy.shut()
        time.sleep(60)
        assert not command.over, command.told[-3000:]
        store.proxy.open()
        fetch = partial(store.fetch, name, trial.out)
        trial.ends("store refuses connections", rows, command, fetch=fetch)
        assert not [key for key in store.keys(name) if "/.tmp-" in key]


def test_harvest_to_a_store_that_grants_no_more(store: Store, bench: Bench, trial: Trial) -> None:
    """Harvests whose key expires, and is renewed before the next."""
    rows, name, codes = 60 * trial.times + 60, "denied", list[int]()
    words = trial.world.command(rows, store.place(name), bench.address, 2)
    for _ in range(trial.times):
        there = store.shards(name)
        command = trial.start(words)
        until(lambda c=command, there=there: c.over or store.shards(name) >= there + 8, "8 more shards")
        store.proxy.falls("denied")
        codes.append(command.finish())
        store.proxy.mood = "well"
        assert codes[-1] == 1, command.told[-3000:]
        assert "s3://faults/runs/denied" in command.last
        assert "run the same command again" in command.last
        assert "hush" not in command.told
    final = trial.start(words)
    trial.ends("store denies access (403)", rows, final, codes, fetch=lambda: store.fetch(name, trial.out))
    assert not [key for key in store.keys(name) if "/.claim-" in key]


@pytest.mark.parametrize("mood", ["cuts", "slow"])
def test_reading_from_a_store_in_trouble(
    mood: str, store: Store, world: World, tally: Tally, times: int, tmp_path: Path
) -> None:
    """A whole set is verified and its map fitted while what is read breaks off, or comes slowly: what comes
    out is right, or the command fails and says why; a sound shard is never called damaged."""
    truth, name = tmp_path / "truth", f"truth-{mood}"
    subprocess.run(world.alone(300, truth), check=True, capture_output=True)
    store.put(truth, name)
    local = [sys.executable, "-m", "contrans_dist"]
    both = ["--source", truth, "--target", truth, "--blocks", "1:1", "--protocol", "paper"]
    wanted = tmp_path / "wanted.safetensors"
    subprocess.run([*local, "fit", *map(str, both), "--out", str(wanted)], check=True, capture_output=True)
    codes: list[int] = []
    for repetition in range(times):
        made = tmp_path / f"made-{repetition}.safetensors"
        words = ["fit", "--source", store.place(name), "--target", truth, "--blocks", "1:1"]
        words += ["--protocol", "paper", "--out", made] if repetition % 2 == 0 else []
        if repetition % 2:
            words = ["status", store.place(name), "--verify"]
        store.proxy.seen = 0
        command = Command.start([*local, *map(str, words)], tmp_path / "said")
        until(lambda command=command: command.over or store.proxy.seen > 20, "the store is read")
        store.proxy.falls(mood)
        time.sleep(4)
        store.proxy.mood = "well"
        codes.append(command.finish())
        assert codes[-1] == 0, command.told[-3000:]
        assert "damaged" not in command.told
        if repetition % 2 == 0:
            assert _weights(made) == _weights(wanted)
    tally.add("reads cut" if mood == "cuts" else "reads slow", times=times, again=None, codes=codes)


def _weights(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(path).items()}


def test_driver_killed_on_a_store(store: Store, bench: Bench, trial: Trial) -> None:
    """A harvest to a store, killed again and again; its claim there outlives it."""
    rows = 60 * trial.times + 60
    name, codes = "killed", list[int]()
    words = trial.world.command(rows, store.place(name), bench.address, 2)
    for _ in range(trial.times):
        there = store.shards(name)
        command = trial.start(words)
        until(lambda c=command, there=there: c.over or store.shards(name) >= there + 8, "8 more shards")
        codes.append(command.end(signal.SIGKILL))
        command.ended_well(signal.SIGKILL, codes[-1])
    final = trial.start(words)
    trial.ends("driver killed, on a store", rows, final, codes, fetch=lambda: store.fetch(name, trial.out))
    assert not [key for key in store.keys(name) if "/.claim-" in key]
