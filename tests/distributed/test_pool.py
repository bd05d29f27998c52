"""The actor pool on real Ray: results, failures, killed actors, and a lost node."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.exceptions import OutOfMemoryError

from contrans_dist.cli.main import guarded
from contrans_dist.config import ClusterSettings
from contrans_dist.distributed import cluster, crew, pool, tasks
from contrans_dist.distributed.actors import Actors, actors_of
from contrans_dist.distributed.answers import answer
from contrans_dist.distributed.cluster import Replicas, connected, replicas, too_small
from contrans_dist.distributed.crew import Crew
from contrans_dist.distributed.nodes import Node
from contrans_dist.distributed.pool import Task, run_tasks
from contrans_dist.distributed.tasks import alone, as_task, on_a_node
from contrans_dist.distributed.workers import MAX_ATTEMPTS
from contrans_dist.errors import OverflowedError, RunError, UserError
from contrans_dist.store import patience
from contrans_dist.store.location import Location
from contrans_dist.store.shard_file import DamagedError

# Workers cannot import this file, so the class below travels whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ONE_CORE = Replicas(actors=2, gpus=0, cpus=1)


class Worker:
    """Runs payloads that say what is to happen to it."""

    def __init__(self, folder: str, refuse: bool = False) -> None:
        if refuse:
            raise UserError("no such model: gone")
        self.folder = Path(folder)
        self.steps = 0

    def progress(self) -> float:
        return float(self.steps)

    def run(self, payload: dict[str, Any]) -> int:
        trace = self.folder / payload["name"]
        runs = len(list(self.folder.glob(f"{payload['name']}.*")))
        trace.with_suffix(f".{runs}").touch()
        if runs < payload.get("deaths", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if runs < payload.get("stops", 0):
            os.kill(os.getpid(), signal.SIGSTOP)
        if payload.get("refuse"):
            raise payload["refuse"](f"{payload['name']}: too short")
        if runs < payload.get("errors", 0):
            raise ValueError(f"{payload['name']} went wrong\nwith a second line")
        for step in range(payload.get("steps", 0)):
            self.steps = step + 1
            time.sleep(0.5)
        time.sleep(payload.get("seconds", 0))
        if "meets" in payload:
            # Ends only when the other task has begun.
            end = time.monotonic() + 300
            while not list(self.folder.glob(f"{payload['meets']}.*")) and time.monotonic() < end:
                time.sleep(0.01)
        return int(payload["value"]) ** 2


class OnGpu(Worker):
    """Computes on a GPU, which is broken from some payloads on."""

    def run(self, payload: dict[str, Any]) -> int:
        value = super().run(payload)
        if len(list(self.folder.glob(f"{payload['name']}.*"))) <= payload.get("breaks", 0):
            _break_gpu()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(0)
        return value


def _break_gpu() -> None:
    """From now on this process has a GPU, on which every call fails."""

    def fails(device: object = None) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")

    torch.cuda.is_initialized, torch.cuda.device_count = (lambda: True), (lambda: 1)
    torch.cuda.synchronize = fails


class Fragile(Worker):
    """Its construction fails so many times, over all processes."""

    def __init__(self, folder: str, failures: int) -> None:
        super().__init__(folder)
        tries = len(list(self.folder.glob("start.*")))
        (self.folder / f"start.{tries}").touch()
        if tries < failures:
            raise ConnectionError("the hub is busy")


class Greedy(Worker):
    """The system ends its process so many times while it is constructed."""

    def __init__(self, folder: str, deaths: int) -> None:
        super().__init__(folder)
        tries = len(list(self.folder.glob("start.*")))
        (self.folder / f"start.{tries}").touch()
        if tries < deaths:
            os.kill(os.getpid(), signal.SIGKILL)


class Holder:
    """Its results are large, so they stay on its node until they are fetched."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def run(self, payload: tuple[str, str]) -> tuple[str, bytes]:
        """The task at home ends when both have begun, the other one when the first answer is there."""
        name, home = payload
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{name}.{len(list(self.folder.glob(f'{name}.*')))}").touch()
        wanted = ("a.0", "b.0") if node == home else ("go",)
        while not all((self.folder / each).exists() for each in wanted):
            time.sleep(0.05)
        return node, bytes(8 << 20)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon."""
    for module in (pool, crew):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.4)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(crew, "PAUSES", (0.1, 0.2, 0.3))
    monkeypatch.setattr(patience, "PAUSES", (0.1, 0.2, 0.3))


def go(
    tasks: list[dict[str, Any]],
    folder: Path,
    *arguments: Any,
    slots: int = 1,
    size: Replicas = ONE_CORE,
    on_progress: Callable[[float], None] | None = None,
    alike: bool = True,
    actor_class: type[Worker] = Worker,
) -> tuple[dict[str, int], Any]:
    results: dict[str, int] = {}

    def keep(task: Task, result: int) -> None:
        assert task.name not in results
        results[task.name] = result

    named = [Task(task["name"], task, task.get("size", 1)) for task in tasks]
    return results, run_tasks(
        actor_class, (str(folder), *arguments), named, size, keep,
        slots=slots, on_progress=on_progress, alike=alike,
    )  # fmt: skip


def test_actors_say_how_far_their_tasks_are(local: None, tmp_path: Path) -> None:
    said: list[float] = []
    tasks = [{"name": f"t{i}", "value": i, "steps": 5} for i in range(2)]
    results, _ = go(tasks, tmp_path, on_progress=said.append)
    assert results == {"t0": 0, "t1": 1}
    # Both are asked about while they run, and summed.
    assert len(set(said)) >= 3
    assert 5 < max(said) <= 10


def test_every_task_once_and_its_result(local: None, tmp_path: Path) -> None:
    results, outcome = go([{"name": f"t{i}", "value": i} for i in range(7)], tmp_path)
    assert results == {f"t{i}": i * i for i in range(7)}
    assert len(list(tmp_path.iterdir())) == 7
    assert (outcome.failures, outcome.lost_actors) == ({}, 0)


def test_killed_actors_lose_nothing_but_the_task_that_kills_each(local: None, tmp_path: Path) -> None:
    deaths = {"t0": 99, "t3": 2}
    tasks = [{"name": f"t{i}", "value": i, "deaths": deaths.get(f"t{i}", 0)} for i in range(6)]
    results, outcome = go(tasks, tmp_path)
    assert results == {f"t{i}": i * i for i in range(1, 6)}
    assert (list(outcome.failures), outcome.deaths) == (["t0"], {"t0"})
    assert outcome.lost_actors == MAX_ATTEMPTS + 2
    assert len(list(tmp_path.iterdir())) == 4 + MAX_ATTEMPTS + 3


def test_an_actor_whose_gpu_fails_is_replaced(local: None, tmp_path: Path) -> None:
    """Else it would fail whatever it is given, and be given more, as it is free so soon."""
    tasks = [{"name": f"t{i}", "value": i, "breaks": {1: 99, 4: 1}.get(i, 0)} for i in range(8)]
    results, outcome = go(tasks, tmp_path, slots=2, size=Replicas(1, 0, 1), actor_class=OnGpu)
    assert results == {f"t{i}": i * i for i in range(8) if i != 1}
    assert outcome.failures == {"t1": "the actor died: CUDA error: device-side assert triggered"}
    assert outcome.lost_actors == MAX_ATTEMPTS + 1


def test_an_actor_that_ray_ends_for_want_of_memory_died_of_its_task(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its monitor, which looks at the memory of a whole machine, is played; what it says then is no
    `RayActorError`."""

    def get(reference: Any) -> Any:
        if isinstance(answered := ray.get(reference), int):
            raise OutOfMemoryError("Task was killed due to the node running low on memory.")
        return answered

    played = SimpleNamespace(get=get, put=ray.put, wait=ray.wait, kill=ray.kill)
    monkeypatch.setattr(pool, "ray", played)
    _, outcome = go([{"name": "t", "value": 1}], tmp_path, size=Replicas(1, 0, 1))
    reason = "the actor died: Task was killed due to the node running low on memory."
    assert (outcome.failures, outcome.deaths) == ({"t": reason}, {"t"})
    assert outcome.lost_actors == MAX_ATTEMPTS


def test_an_actor_has_two_tasks_at_a_time(local: None, tmp_path: Path) -> None:
    tasks = [{"name": "a", "value": 1, "meets": "b"}, {"name": "b", "value": 2, "meets": "a"}]
    started = time.monotonic()
    results, outcome = go(tasks, tmp_path, slots=2, size=Replicas(1, 0, 1))
    assert results == {"a": 1, "b": 4}
    assert started < outcome.began < time.monotonic()


def test_two_tasks_of_a_killed_actor_are_given_out_again(local: None, tmp_path: Path) -> None:
    """The one that kills is given up in the end, and takes no other with it: what has failed runs alone."""
    tasks = [{"name": "kills", "value": 0, "deaths": 99, "meets": "t1"}]
    tasks += [{"name": f"t{i}", "value": i, "seconds": 0.3} for i in range(1, 6)]
    results, outcome = go(tasks, tmp_path, slots=2, size=Replicas(1, 0, 1))
    assert results == {f"t{i}": i * i for i in range(1, 6)}
    assert list(outcome.failures) == ["kills"]
    assert outcome.lost_actors == MAX_ATTEMPTS
    assert max(len(list(tmp_path.glob(f"t{i}.*"))) for i in range(1, 6)) <= 2


def _refuses() -> None:
    raise UserError("--model x: no such model")


def test_what_is_asked_of_the_only_node_needs_no_other_process(local: None) -> None:
    assert on_a_node(os.getpid, Replicas(1, 0, 1)) == os.getpid()
    with pytest.raises(UserError, match="--model x: no such model"):
        on_a_node(_refuses, Replicas(1, 0, 1))


def test_a_client_is_not_alone(local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray://` may be used on another machine, with other disks; Ray names the node behind the address."""
    assert alone()
    monkeypatch.setattr(tasks.client, "is_connected", lambda: True)
    assert not alone()


def test_a_damaged_shard_that_a_task_meets_is_bad_input(local: None) -> None:
    """Before, Ray could not read the error, and said that work was lost."""
    shard = Location("", "/set/shard-00001.parquet")

    def read() -> None:
        raise DamagedError(shard, "its content is not what was written")

    with pytest.raises(DamagedError, match=r"/set/shard-00001.parquet: its content is not what was written"):
        answer(lambda: as_task(read).remote())


def test_without_a_node_with_room_a_run_says_so_and_ends(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both where models are placed and where their actors are started, also when --actors says how many."""
    monkeypatch.setattr(cluster, "GIVE_UP_SECONDS", 0.5)
    monkeypatch.setattr(tasks, "_SAY_SECONDS", 0.3)
    size = Replicas(2, gpus=8, cpus=1)
    with pytest.raises(RunError, match="no node of the cluster had room for an actor"):
        on_a_node(os.getpid, size)
    assert "no node has 8 GPUs for one actor, the largest has 0" in capsys.readouterr().err
    elsewhere = replace(size, selector={"market-type": "spot", "zone": "in(a,b)"})
    with pytest.raises(RunError, match="no node of the cluster had room for an actor"):
        on_a_node(os.getpid, elsewhere)
    told = "--label-selector market-type=spot,zone=in(a,b): no node of the cluster has these labels; waiting"
    assert told in capsys.readouterr().err
    with pytest.raises(RunError, match="no node of the cluster had room for an actor"):
        run_tasks(Worker, (str(tmp_path),), [Task("t", {"name": "t", "value": 1})], size, lambda *_: None)


def test_a_task_that_always_fails_is_named_and_the_rest_goes_on(local: None, tmp_path: Path) -> None:
    tasks = [{"name": f"t{i}", "value": i, "errors": 99 if i == 1 else 0} for i in range(5)]
    results, outcome = go(tasks, tmp_path)
    assert sorted(results) == ["t0", "t2", "t3", "t4"]
    assert outcome.failures == {"t1": "t1 went wrong"}
    assert len(list(tmp_path.glob("t1.*"))) == MAX_ATTEMPTS


@pytest.mark.parametrize("kind", [UserError, OverflowedError])
def test_bad_input_found_by_an_actor_is_not_tried_again(
    local: None, tmp_path: Path, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="t0: too short"):
        go([{"name": "t0", "value": 0, "refuse": kind}], tmp_path)
    assert len(list(tmp_path.glob("t0.*"))) == 1


def test_an_actor_that_cannot_start_says_why(local: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no such model: gone$"):
        go([{"name": "t", "value": 1}], tmp_path, True)


def test_an_actor_whose_construction_fails_is_tried_again(
    local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One busy moment of a server must not cost a run its actors."""
    results: dict[str, int] = {}
    tasks = [Task(f"t{i}", {"name": f"t{i}", "value": i}) for i in range(4)]
    one = Replicas(actors=1, gpus=0, cpus=1)
    run_tasks(Fragile, (str(tmp_path), 3), tasks, one, lambda task, got: results.update({task.name: got}))
    assert results == {f"t{i}": i * i for i in range(4)}
    said = capsys.readouterr().err
    assert "an actor could not be started (ConnectionError: the hub is busy); trying again in" in said
    with pytest.raises(RunError, match=r"ConnectionError: the hub is busy; tried 4 times: run the same"):
        run_tasks(Fragile, (str(tmp_path), 99), tasks, one, lambda *_: None)


def test_an_actor_that_is_killed_at_its_start_is_not_tried_for_ever(local: None, tmp_path: Path) -> None:
    results: dict[str, int] = {}
    tasks = [Task("t", {"name": "t", "value": 3})]
    one = Replicas(actors=1, gpus=0, cpus=1)
    run_tasks(Greedy, (str(tmp_path), 2), tasks, one, lambda task, got: results.update({task.name: got}))
    assert results == {"t": 9}
    with pytest.raises(RunError, match=r"gone before it was up.* memory, .*; tried 4 times: run the same"):
        run_tasks(Greedy, (str(tmp_path), 10**6), tasks, one, lambda *_: None)
    assert len(list(tmp_path.glob("start.*"))) == 3 + 4


def test_a_worker_that_hangs_is_said_and_not_waited_for(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process is stopped, so it neither answers nor dies; another actor does its task."""
    monkeypatch.setattr(crew, "_HANG_SECONDS", 1.5)
    tasks = [{"name": f"t{i}", "value": i, "stops": int(i == 3), "seconds": 0.1} for i in range(7)]
    results, outcome = go(tasks, tmp_path)
    assert results == {f"t{i}": i * i for i in range(7)}
    assert not outcome.failures
    assert len(list(tmp_path.glob("t3.*"))) == 2
    said = capsys.readouterr().err
    assert "t3: no answer after" in said
    assert "another actor gets it as well" in said
    assert len(list(tmp_path.iterdir())) == 8


def test_the_only_actor_is_started_anew_when_it_hangs(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crew, "_HANG_SECONDS", 0.6)
    tasks = [{"name": f"t{i}", "value": i, "stops": int(i == 4)} for i in range(6)]
    results, outcome = go(tasks, tmp_path, size=Replicas(1, 0, 1))
    assert results == {f"t{i}": i * i for i in range(6)}
    assert not outcome.failures
    assert "t4: no answer after" in (said := capsys.readouterr().err)
    assert said.count("its actor is started anew") == 2


def test_long_tasks_are_no_alarm(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the first ones, of which no like is known; nor one that is long because it is large."""
    monkeypatch.setattr(crew, "_HANG_SECONDS", 0.5)
    tasks = [{"name": f"first{i}", "value": i, "seconds": 1} for i in range(2)]
    tasks += [{"name": f"t{i}", "value": i, "seconds": 0.05, "size": 0.05} for i in range(4)]
    tasks += [{"name": "large", "value": 2, "seconds": 6, "size": 5}]
    results, _ = go(tasks, tmp_path)
    assert len(results) == 7
    assert len(list(tmp_path.iterdir())) == 7
    assert "no answer" not in capsys.readouterr().err


def test_a_sweep_that_says_how_far_it_is_is_no_alarm(
    local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that says nothing is found out by that."""
    monkeypatch.setattr(crew, "_HANG_SECONDS", 0.1)
    monkeypatch.setattr(crew, "_SILENT_SECONDS", 2.0)
    tasks = [{"name": f"t{i}", "value": i} for i in range(4)] + [{"name": "long", "value": 5, "steps": 7}]
    results, _ = go(tasks, tmp_path, on_progress=lambda _: None, alike=False)
    assert (len(results), len(list(tmp_path.iterdir()))) == (5, 5)
    assert "nothing for" not in capsys.readouterr().err
    tasks = [{"name": "silent", "value": 5, "stops": 1}, {"name": "other", "value": 1}]
    results, _ = go(tasks, tmp_path, on_progress=lambda _: None, alike=False)
    assert results == {"silent": 25, "other": 1}
    assert "silent: its actor has said nothing for" in capsys.readouterr().err


def test_an_actor_that_was_out_of_reach_says_how_far_it_is_and_does_one_thing_at_a_time(
    local: None, tmp_path: Path
) -> None:
    """Its connection broke while it worked, so it is given the task again while at it. Before, this took
    the thread that it answers in: it was taken to hang, and killed in the end."""
    task = Task("t", {"name": "t", "value": 3, "steps": 8})
    actors = actors_of(Worker, (str(tmp_path),), Replicas(1, 0, 1))
    assert isinstance(actors, Actors)
    said: list[float] = []
    results: list[int] = []

    def told(steps: float) -> None:
        if not any(said) and steps:  # as `_finish` does when Ray says that the actor is unavailable
            (worker,) = its.workers
            its.lose(worker, list(worker.running.values()), "connection reset", gone=False)
        said.append(steps)

    its = Crew(actors, 1, deque([task]), on_progress=told, alike=False)
    its.hire(crew.Worker(None))
    try:
        outcome = pool._drive(its, {"t"}, lambda _task, result: results.append(result))
    finally:
        actors.end()
    assert (results, outcome.failures, outcome.lost_actors) == ([9], {}, 1)
    assert {2.0, 3.0, 4.0, 5.0, 6.0} & set(said)  # answers to what was asked since, while it was at it
    first, second = sorted(path.stat().st_mtime for path in tmp_path.iterdir())
    assert second - first >= 8 * 0.5


@pytest.mark.parametrize("ended", [True, False])
def test_an_actor_that_was_ended_or_out_of_reach_did_not_die_of_its_task(
    local: None, tmp_path: Path, ended: bool
) -> None:
    """Who looks for what kills actors would look among tasks that hang, and wait for them again."""
    task = Task("t", {"name": "t", "value": 3, "steps": 200}, attempts=1)
    actors = actors_of(Worker, (str(tmp_path),), Replicas(1, 0, 1))
    assert isinstance(actors, Actors)

    def told(steps: float) -> None:
        (worker,) = its.workers
        if steps and ended and not worker.ending:  # as where it hangs
            its.replace(worker)
        elif steps and not ended and worker.running:
            its.lose(worker, list(worker.running.values()), "connection reset", gone=False)

    its = Crew(actors, 1, deque([task]), on_progress=told)
    its.hire(crew.Worker(None))
    try:
        outcome = pool._drive(its, {"t"}, lambda _task, _result: None)
    finally:
        actors.end()
    assert (set(outcome.failures), outcome.deaths) == ({"t"}, set())


def test_a_request_to_end_while_ray_waits_is_told_as_such(
    local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, with exit code 1 and without a word: what the handler raises is another exception after Ray."""
    before = signal.getsignal(signal.SIGTERM)
    task = ray.remote(lambda: time.sleep(3)).remote()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with pytest.raises(SystemExit) as end:
            guarded(lambda: ray.wait([task], timeout=20))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 143
    assert capsys.readouterr().err.startswith("contrans: terminated; what is finished is kept")


def test_no_cluster_is_one_line() -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(RunError, match=r"127\.0\.0\.1:1"), connected("127.0.0.1:1"):
        pass


def test_a_lost_node_loses_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two nodes on this machine, both at work; one is taken away in the middle, and a line says so."""
    if ray.is_initialized():
        ray.shutdown()
    # Whether a node that refuses the connection is gone is asked for 3 seconds, not for 15.
    noticed = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": noticed}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with connected(cluster.address):
            assert replicas(ClusterSettings()).actors == 2
            removed: list[Any] = []
            results: dict[str, int] = {}

            def keep(task: Task, result: int) -> None:
                results[task.name] = result
                if not removed:
                    cluster.remove_node(node, allow_graceful=False)
                    removed.append(node)

            tasks = [Task(f"t{i}", {"name": f"t{i}", "value": i, "seconds": 0.5}) for i in range(8)]
            assert on_a_node(os.getpid, ONE_CORE) != os.getpid()
            with pytest.raises(UserError, match="--model x: no such model"):
                on_a_node(_refuses, ONE_CORE)
            with pytest.raises(RunError, match="invalid literal"):
                on_a_node(int, ONE_CORE, "x")
            outcome = run_tasks(Worker, (str(tmp_path),), tasks, ONE_CORE, keep)
            assert results == {f"t{i}": i * i for i in range(8)}
            assert not outcome.failures
            _lose_a_result(cluster, tmp_path / "large")
            said = _until("a node of the cluster was lost (", capfd)
    finally:
        cluster.shutdown()
    starts = (
        "an actor was lost at ",
        # In its own words where it was not up yet.
        "an actor could not be started (an actor's process was gone before it was up: with its node",
        "a node of the cluster was lost (",
        "the answer of ",
    )
    # Ray's own line on a lost object comes from below Python.
    assert [line for line in said if not line.startswith(starts) and "core_worker.cc" not in line] == []


def _until(wanted: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error up to now; waits for one that says what is wanted. None is a result."""
    said, end = "", time.monotonic() + 300
    while wanted not in said:
        assert time.monotonic() < end, said
        time.sleep(0.2)
        out, err = capfd.readouterr()
        assert out == ""
        said += err
    return said.splitlines()


def _lose_a_result(cluster: Cluster, folder: Path) -> None:
    """A node dies when its actor is done and the answer lies on it; a third node takes its place."""
    folder.mkdir()
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    home = ray.get_runtime_context().get_node_id()
    found: dict[str, str] = {}

    def keep(task: Task, result: tuple[str, bytes]) -> None:
        found[task.name] = result[0]
        assert len(result[1]) == 8 << 20
        if len(found) == 1:
            (folder / "go").touch()
            time.sleep(2)
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1)

    tasks = [Task(name, (name, home)) for name in "ab"]
    outcome = run_tasks(Holder, (str(folder),), tasks, ONE_CORE, keep)
    assert set(found) == {"a", "b"}
    assert not outcome.failures
    assert len(list(folder.iterdir())) == 4


class TestReplicas:
    """Actors are counted node by node, never over the whole cluster."""

    @staticmethod
    def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
        there = [{"Alive": True, "NodeID": str(i), "Resources": r} for i, r in enumerate(resources)]
        monkeypatch.setattr(ray, "nodes", lambda: there)

    def test_gpus_of_different_nodes_do_not_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, {"GPU": 3, "CPU": 32}, {"GPU": 3, "CPU": 32}, {"CPU": 8})
        assert replicas(ClusterSettings(gpus_per_actor=2)) == Replicas(2, 2, 32)
        assert replicas(ClusterSettings()).actors == 6
        with pytest.raises(
            UserError, match="4 GPUs for one actor, the largest has 3: fewer --gpus-per-actor"
        ):
            replicas(ClusterSettings(gpus_per_actor=4))

    def test_a_head_with_a_gpu_and_without_cores_gets_no_actor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, {"GPU": 1}, {"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1})
        assert replicas(ClusterSettings()) == Replicas(2, 1, 8)

    def test_why_none_has_room_is_told_of_those_that_may_be_used(self) -> None:
        """Before, of all: a node with a GPU that was not asked for hid that the others have none."""
        spot = {"market-type": "spot"}
        nodes = [
            Node({"CPU": 8, "GPU": 1}),
            Node({"CPU": 8}, labels=spot),
            Node({"CPU": 8, "GPU": 4}, labels=spot, leaving=True),
        ]
        size = Replicas(2, 1, 8, selector=spot)
        assert not size.fits(nodes)
        assert too_small(size, nodes).startswith("no node has 1 GPUs for one actor, the largest has 0")

    def test_cores_are_shared_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, {"CPU": 8})
        assert replicas(ClusterSettings()) == Replicas(1, 0, 8)
        assert replicas(ClusterSettings(actors=2)) == Replicas(2, 0, 4)
        assert replicas(ClusterSettings(cpus_per_actor=2)) == Replicas(4, 0, 2)

    @pytest.mark.parametrize(("cores", "actors", "share"), [([8, 8], 3, 4), ([3, 8], 2, 4), ([2, 1], 9, 1)])
    def test_as_many_as_were_asked_for_find_a_place(
        self, monkeypatch: pytest.MonkeyPatch, cores: list[float], actors: int, share: int
    ) -> None:
        self.nodes(monkeypatch, *({"CPU": each} for each in cores))
        size = replicas(ClusterSettings(actors=actors))
        assert (size.actors, size.cpus) == (actors, share)
        # No larger share would do, by trying all.
        most = [sum(each // cpus for each in cores) for cpus in range(1, 1 + int(max(cores)))]
        assert share == max([cpus for cpus, places in enumerate(most, 1) if places >= actors], default=1)

    def test_a_head_without_cores_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, {}, {"CPU": 4}, {"CPU": 4})
        assert replicas(ClusterSettings()) == Replicas(2, 0, 4)
