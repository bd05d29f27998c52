"""Actors that outlive a call: the same processes for the same need, and none when another comes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from contrans_dist.distributed.actors import Actors, _placed, kept_actors
from contrans_dist.distributed.cluster import Replicas
from contrans_dist.distributed.pool import Task, run_kept, run_tasks
from contrans_dist.distributed.tasks import as_task
from contrans_dist.errors import UserError

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no other process has this module

pytestmark = pytest.mark.usefixtures("local")
TWO = Replicas(2, 0, 0.5)


class Worker:
    """Says who it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, payload: Any, shared: Any = None) -> tuple[str, int, Any]:
        if payload == "bad":
            raise UserError("bad input")
        if payload.startswith("/"):
            _wait_for_two(Path(payload))
        return self.name, os.getpid(), shared


def start(name: str) -> Callable[[], Actors]:
    return lambda: Actors(Worker, (name,), TWO)


def answers(key: str, count: int = 2, shared: Any = None) -> list[tuple[str, int, Any]]:
    """What so many tasks find; two of them each wait for another actor to be there."""
    found: list[tuple[str, int, Any]] = []
    with TemporaryDirectory() as folder:
        payload = folder if count > 1 else "alone"
        tasks = [Task(str(i), payload) for i in range(count)]
        outcome = run_kept(key, start(key), tasks, lambda _, got: found.append(got), shared)
    assert not outcome.failures
    return found


def _wait_for_two(folder: Path) -> None:
    """Until two actors have been here, at most a minute."""
    (folder / str(os.getpid())).touch()
    for _ in range(600):
        if len(list(folder.iterdir())) > 1:
            return
        time.sleep(0.1)


def pids(found: list[tuple[str, int, Any]]) -> set[int]:
    return {pid for _, pid, _ in found}


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as status:
            if status.read().split()[2] == "Z":
                return True
        time.sleep(0.1)
    return False


def test_the_same_actors_serve_equal_keys_until_another_comes() -> None:
    with kept_actors():
        first = answers("a", shared="one")
        second = answers("a", count=4, shared="two")
        assert pids(first) == pids(second)
        assert len(pids(first)) == 2
        assert {got for *_, got in second} == {"two"}  # nothing of the call before
        third = answers("b")
        assert {name for name, *_ in third} == {"b"}
        assert all(map(gone, pids(first)))
        # A pool of its own needs what the others hold.
        run_tasks(Worker, ("c",), [Task("0", "alone")], TWO, lambda *_: None)
        assert all(map(gone, pids(third)))
        fourth = answers("b")
        assert not pids(fourth) & pids(third)
    assert all(map(gone, pids(fourth)))


def test_without_a_frame_they_end_with_the_call() -> None:
    first = answers("a")
    assert all(map(gone, pids(first)))


def test_more_actors_come_as_tasks_do() -> None:
    with kept_actors():
        (one,) = pids(answers("a", count=1))
        both = pids(answers("a", count=4))
        assert len(both) == 2
        assert one in both


def test_an_actor_lost_between_two_calls_is_there_again() -> None:
    with kept_actors():
        (lost,) = pids(answers("a", count=1))
        os.kill(lost, signal.SIGKILL)
        assert gone(lost)
        (found,) = pids(answers("a", count=1))
        assert found != lost


def test_a_task_gets_the_places_that_kept_actors_hold() -> None:
    """A finished harvest is checked by tasks: with every core held by idle actors they would never start."""
    idle: list[tuple[str, int, Any]] = []
    whole = Replicas(1, 0, ray.cluster_resources()["CPU"])
    with kept_actors():
        one = Task("0", "alone")
        run_kept("a", lambda: Actors(Worker, ("a",), whole), [one], lambda _, got: idle.append(got))
        assert ray.get(as_task(gone).remote(2**22 + 1), timeout=60)  # no process has so high a number
        assert all(map(gone, pids(idle)))


def test_after_an_error_nothing_is_kept() -> None:
    with kept_actors():
        before = pids(answers("a"))
        with pytest.raises(UserError, match="bad input"):
            run_kept("a", start("a"), [Task("0", "bad"), Task("1", "alone")], lambda *_: None)
        assert all(map(gone, before))
        assert not pids(answers("a")) & before


@pytest.mark.parametrize(("gpus", "most"), [(0.25, 20e9 - 5e8), (1, None), (2, None), (0, None)])
def test_an_actor_keeps_to_its_part_of_a_gpu(
    gpus: float, most: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first ones keep what the allocator has once had. A context is outside of what it counts."""
    kept: list[float] = []
    of_80_gb = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: of_80_gb)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, _device: kept.append(80e9 * share)
    )
    assert _placed(Worker, Replicas(4, gpus, 1))("a").name == "a"
    assert kept == ([] if most is None else [pytest.approx(most)] * 2)
