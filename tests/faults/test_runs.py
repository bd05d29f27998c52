"""`contrans run`, killed at random moments until it is done, on a disk and on a store; on a store in trouble;
and with an actor and a node that are lost while it evaluates."""

import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from tests.faults.bench import Bench, Command, Trace
from tests.faults.stores import Store
from tests.faults.tally import Tally
from tests.faults.world import Compared, World, read_set
from tests.recipes import CONCEPTS, tiny_world
from tests.sets import write_lines
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world(tmp_path_factory.mktemp("recipe")).recipe


def _command(recipe: str, out: Path | str, *more: str) -> list[str]:
    words = ["run", recipe, "--out", str(out), "--set", "cluster.cpus_per_actor=1", *more]
    return [sys.executable, "-m", "contrans_dist", *words]


@pytest.fixture(scope="module")
def calm(
    recipe: str, trace: Trace, one_bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """The run that nothing disturbs, and the seconds that it took."""
    one_bench.mend()
    out = tmp_path_factory.mktemp("calm") / "run"
    began = time.monotonic()
    command = Command.start(_command(recipe, out, "--address", one_bench.address), out.parent / "said")
    assert command.finish() == 0, command.told
    return out, time.monotonic() - began


def _values(folder: Path) -> dict[str, Any]:
    """What the files of a run hold, but for its activations: times, costs and places left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(("activations", ".")) or path.is_dir():
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: array.tobytes() for key, array in load_file(path).items()}
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pydict()
        elif path.name == "metrics.json":
            found[name] = json.loads(path.read_text())["conditions"]
        elif path.suffix == ".html":
            found[name] = path.read_text().count("<table")
    return found


def _compared(folder: Path, calm: Path) -> Compared:
    """All activation sets of two runs; assert that whatever else they hold is the same."""
    rows = lost = doubled = other = 0
    for made in sorted((calm / "activations").iterdir()):
        theirs, mine = read_set(made), read_set(folder / "activations" / made.name)
        numbers = mine.column("row").to_pylist()
        rows += len(set(numbers))
        lost += len(set(theirs.column("row").to_pylist()) - set(numbers))
        doubled += len(numbers) - len(set(numbers))
        other += 0 if mine.equals(theirs) else theirs.num_rows
    mine, theirs = _values(folder), _values(calm)
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        assert repr(mine[name]) == repr(value), name
    return Compared(rows, lost, doubled, other)


def _kill_until_done(
    words: Callable[[str], list[str]], fetched: Callable[[str], Path], calm: tuple[Path, float], times: int,
    name: str, tally: Tally, said: Path,
) -> None:  # fmt: skip
    """Kill one run after the other; one that is done before all kills are made is followed by another."""
    draw, codes, place, ends = random.Random(12), list[int](), 0, list[str]()
    while len(codes) < times:
        command = Command.start(words(f"run-{place}"), said)
        end = time.monotonic() + draw.uniform(3, max(6.0, calm[1]))
        while time.monotonic() < end and not command.over:
            time.sleep(0.05)
        code = command.end(signal.SIGKILL)
        assert code in (0, -9), command.told[-3000:]
        codes += [code] if code else []
        if code == 0:
            ends.append(f"run-{place}")
            place += 1
    code = (final := Command.start(words(f"run-{place}"), said)).finish()
    assert code == 0, final.told[-3000:]
    for end_ in [*ends, f"run-{place}"]:
        compared = _compared(fetched(end_), calm[0])
        tally.add(name, compared, again=None)
        assert compared.same
    tally.add(name, times=times, again=None, codes=codes)


def test_run_killed_at_random(
    recipe: str, calm: tuple[Path, float], bench: Bench, tally: Tally, times: int, tmp_path: Path
) -> None:
    _kill_until_done(
        lambda name: _command(recipe, tmp_path / name, "--address", bench.address),
        lambda name: tmp_path / name, calm, times, "contrans run killed at random", tally, tmp_path / "said",
    )  # fmt: skip


def test_run_on_a_store_killed_at_random(
    recipe: str,
    calm: tuple[Path, float],
    store: Store,
    bench: Bench,
    tally: Tally,
    times: int,
    tmp_path: Path,
) -> None:
    """Harvests, reduction, evaluation and report."""
    _kill_until_done(
        lambda name: _command(recipe, store.place(name), "--address", bench.address),
        lambda name: store.fetch(name, tmp_path / name),
        calm, times, "contrans run on a store killed at random", tally, tmp_path / "said",
    )  # fmt: skip


_TROUBLES = {
    "throttles": "contrans run, store throttles (503)",
    "fails": "contrans run, store answers 500",
    "drops": "contrans run, store drops connections",
}
_STAGES = {"refine": 60, "fit": 40, "evaluate": 90, "report": 100}
"""And how many of its connections pass at most before the trouble: fewer than it makes."""


@pytest.mark.parametrize("mood", _TROUBLES)
def test_run_on_a_store_in_trouble(
    mood: str, recipe: str, calm: tuple[Path, float], store: Store, bench: Bench, tally: Tally, times: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    """For seconds in the middle of reduction, map, evaluation and report; the harvests are there."""
    draw = random.Random(mood)
    for repetition in range(times):
        name, met = f"{mood}-{repetition}", 0
        store.put(calm[0] / "activations", f"{name}/activations")
        words = _command(recipe, store.place(name), "--address", bench.address)
        command = Command.start(words, tmp_path / "said")
        for stage, connections in _STAGES.items():
            until(lambda c=command, stage=stage: c.over or f"== {stage}\n" in c.told, stage)
            store.proxy.falls(mood, after=draw.randint(0, connections), seconds=3.0)
            until(lambda c=command: c.over or store.proxy.mood == "well", f"trouble in {stage}")
            met += store.proxy.mood == "well"
        code = command.finish()
        store.proxy.mood = "well"
        assert code == 0, command.told[-3000:]
        compared = _compared(store.fetch(name, tmp_path / name), calm[0])
        tally.add(_TROUBLES[mood], compared, met, None, [code])
        assert compared.same
        assert met == len(_STAGES)
        assert "hush" not in command.told
        assert not [key for key in store.keys(name) if "/.tmp-" in key]


_LOST = "an actor was lost at "


@pytest.fixture
def paced(world: World, tmp_path: Path) -> str:
    """A recipe whose target takes its time, and which evaluates it in four parts."""
    tiny = tiny_world(tmp_path)
    texts = [json.loads(line) for line in Path(tiny.scenarios).read_text().splitlines()]
    more = [{**text, "text": f"{when} {text['text']}"} for when in ("Now", "Then", "Once") for text in texts]
    recipe = yaml.safe_load(Path(tiny.recipe).read_text())
    recipe["target"] = {"id": world.model, "trust_remote_code": True}
    recipe["map"] = {"blocks": "1:1"}
    del recipe["cluster"]
    recipe["evaluations"]["emotions"] |= {
        "texts": write_lines(tmp_path / "more.jsonl", more),
        "per_concept": len(more) // len(CONCEPTS),
        "strengths": [0, 1, 2],
        "conditions": ["vector", "random", "shuffled-map", "self-align"],
    }
    (tmp_path / "paced.yaml").write_text(yaml.safe_dump(recipe))
    return str(tmp_path / "paced.yaml")


def test_run_loses_actors_while_it_evaluates(
    paced: str, bench: Bench, tally: Tally, times: int, tmp_path: Path
) -> None:
    """An actor is killed, and then the node of the other one, which has a part in hand by then."""
    calm = tmp_path / "calm"
    alone = [sys.executable, "-m", "contrans_dist", "run", paced, "--out", str(calm)]
    command = Command.start(alone, tmp_path / "said", FAULTS_PACE="0")
    assert command.finish() == 0, command.told[-3000:]
    for repetition in range(times):
        out = tmp_path / f"run-{repetition}"
        shutil.copytree(calm / "activations", out / "activations")
        words = _command(paced, out, "--set", "cluster.actors=2", "--address", bench.address)
        command = Command.start(words, tmp_path / "said")
        parts = out / "evaluations" / "emotions" / "parts"
        until(lambda c=command, parts=parts: c.over or len(list(parts.glob("part-*"))) > 0, "a part")
        assert not command.over, command.told[-3000:]
        bench.working().kill()
        until(lambda c=command: c.over or c.told.count(_LOST) == 1, "an actor is lost")
        bench.lose(bench.place_of(bench.working()))
        bench.nodes.append(bench.add())
        code = command.finish()
        compared = _compared(out, calm)
        tally.add("contrans run, actor killed and node lost in evaluate", compared, 1, None, [code])
        assert code == 0, command.told[-3000:]
        assert compared.same
        assert command.told.count(_LOST) >= 2
