"""The cluster, the texts and the tally that the tests of faults share."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from filelock import FileLock

from tests.faults.bench import PACE, Bench, Trace
from tests.faults.stores import Store, troubled_store
from tests.faults.tally import Tally
from tests.faults.trial import Trial
from tests.faults.world import World

_TALLY = pytest.StashKey[Tally]()
_LONGEST = 150
"""Texts for each repetition of the fault that wants most, and for the beginning."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes hands on what it has counted."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["faults"] = json.dumps(session.config.stash[_TALLY].content)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    counted = json.loads(getattr(node, "workeroutput", {}).get("faults", "{}"))
    node.config.stash[_TALLY].take_in(counted)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[_TALLY]
    if not tally.faults:
        return
    terminalreporter.section("faults")
    terminalreporter.write(tally.table())
    if (path := config.getoption("--table")) is not None:
        Path(path).write_text(tally.table())


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[_TALLY]


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> int:
    """How often each fault is made."""
    return int(request.config.getoption("--times"))


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    """What Ray and the commands inherit: one thread, no lower priority, a model at a pace that is traced."""
    folder = tmp_path_factory.mktemp("trace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("FAULTS_PACE", str(PACE))
        patch.setenv("FAULTS_TRACE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        root = str(Path(__file__).resolve().parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield Trace(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, times: int, trace: Trace, worker_id: str) -> World:
    """One for all processes of a run."""
    if worker_id == "master":
        return World.make(tmp_path_factory.mktemp("world"), _LONGEST * (times + 2))
    folder = tmp_path_factory.getbasetemp().parent / "world"
    with FileLock(f"{folder}.lock"):
        return World.made(folder) or World.make(folder, _LONGEST * (times + 2))


@pytest.fixture
def trial(world: World, trace: Trace, tally: Tally, times: int, tmp_path: Path) -> Trial:
    """A harvest of its own, of which passes are counted from now on."""
    trace.begin()
    return Trial(world, trace, tally, times, tmp_path / "set", tmp_path / "said")


@pytest.fixture(scope="module")
def store(new_bucket: Callable[[str], str]) -> Iterator[Store]:
    with troubled_store(new_bucket) as store:
        yield store


@pytest.fixture(scope="session")
def one_bench(trace: Trace) -> Iterator[Bench]:
    if ray.is_initialized():
        ray.shutdown()
    bench = Bench()
    yield bench
    bench.cluster.shutdown()


@pytest.fixture
def bench(one_bench: Bench) -> Bench:
    """A cluster of three nodes, whatever the last test has left of it."""
    one_bench.mend()
    return one_bench
