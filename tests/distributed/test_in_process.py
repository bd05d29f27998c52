"""Work that stays in the driver's process: when it does, and what becomes of a task there."""

import threading
import time
from typing import Any

import pytest
import ray

from contrans_dist.config import ClusterSettings
from contrans_dist.distributed import cluster as clusters
from contrans_dist.distributed.actors import Actors, kept_actors
from contrans_dist.distributed.cluster import connected, need_ray
from contrans_dist.distributed.here import stays_here, this_process
from contrans_dist.distributed.in_process import InProcess
from contrans_dist.distributed.pool import run_kept, run_tasks
from contrans_dist.distributed.workers import Outcome, Task
from contrans_dist.errors import NoAnswerError, OverflowedError, RunError, UserError

SMALL = 1e9


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no other test has started Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Worker:
    """Does what a payload says, and remembers by whom it was asked."""

    made = 0

    def __init__(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error
        Worker.made += 1
        self.threads: set[int] = set()
        self.at = 0.0

    def run(self, payload: Any, shared: Any = None) -> Any:
        self.threads.add(threading.get_ident())
        if isinstance(payload, list):  # fails as long as there is an error
            error = payload.pop(0) if payload else None
            if error is not None:
                raise error
        if isinstance(payload, float):
            self.at = 0.5
            time.sleep(payload)
        return self.threads, shared

    def progress(self) -> float:
        return self.at


def go(*payloads: Any, on_progress: Any = None) -> tuple[list[tuple[str, Any]], Outcome]:
    results: list[tuple[str, Any]] = []
    tasks = [Task(f"t{i}", payload) for i, payload in enumerate(payloads)]
    outcome = run_tasks(
        Worker, (), tasks, this_process(), lambda task, got: results.append((task.name, got)), "shared",
        on_progress=on_progress,
    )  # fmt: skip
    return results, outcome


@pytest.mark.parametrize(
    ("settings", "operations", "stays"),
    [
        ({}, SMALL, True),
        ({"gpus_per_actor": 0}, SMALL, True),
        ({}, 1e15, False),
        ({"address": "local"}, SMALL, False),
        ({"address": "auto"}, SMALL, False),
        ({"actors": 1}, SMALL, False),
        ({"cpus_per_actor": 1}, SMALL, False),
        ({"gpus_per_actor": 1}, SMALL, False),
        ({"placement": "stream"}, SMALL, False),
    ],
)
def test_little_work_stays_here_where_nobody_asked_for_more(
    settings: dict[str, Any], operations: float, stays: bool
) -> None:
    assert stays_here(ClusterSettings(**settings), operations) == stays


def test_it_does_not_where_there_is_a_cluster_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ClusterSettings()
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: True)
        assert not stays_here(asked, SMALL)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "auto")
        assert not stays_here(asked, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        assert not stays_here(asked, SMALL)
    assert stays_here(asked, SMALL)


def test_tasks_run_in_the_calling_thread_where_a_signal_finds_them() -> None:
    results, outcome = go("a", "b")
    assert results == [(name, ({threading.get_ident()}, "shared")) for name in ("t0", "t1")]
    assert not outcome.failures
    assert outcome.lost_actors == 0


def test_what_fails_is_tried_three_times_and_the_rest_goes_on() -> None:
    twice, ever = [ValueError("a"), MemoryError(), None], [RunError("no\nroom")] * 9
    results, outcome = go(twice, ever, "good")
    assert {name for name, _ in results} == {"t0", "t2"}
    assert (twice, len(ever)) == ([], 6)
    assert outcome.failures == {"t1": "no"}


def test_bad_input_and_silence_end_it() -> None:
    wrong = [UserError("line 3: expected a text"), None]
    with pytest.raises(UserError, match="line 3"):
        go(wrong, "good")
    assert wrong == [None]
    beyond = [OverflowedError("strength 9: logits overflow"), None]  # nor does another try make numbers of it
    with pytest.raises(OverflowedError, match="strength 9"):
        go(beyond, "good")
    assert beyond == [None]
    silent = [[NoAnswerError("a store")] for _ in range(4)]
    with pytest.raises(NoAnswerError, match="a store"):
        go(*silent)
    assert [len(left) for left in silent] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (UserError("--model x: no weights there"), UserError, "--model x: no weights there"),
        (RunError("the hub does not answer"), RunError, "the hub does not answer"),
        (OSError("read\nerror"), RunError, "OSError: read; run the same command again to go on"),
    ],
)
def test_an_actor_that_cannot_be_made(error: Exception, raised: type[Exception], said: str) -> None:
    with pytest.raises(raised) as got:
        run_tasks(Worker, (error,), [Task("t", "a")], this_process(), lambda *_: None)
    assert str(got.value) == said


def test_it_says_how_far_its_task_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrans_dist.distributed.in_process._ASK_SECONDS", 0.02)
    said: list[float] = []
    go(0.3, on_progress=said.append)
    assert said
    assert set(said) == {0.5}
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_it_is_kept_for_an_equal_key_and_ends_when_another_comes() -> None:
    def work(key: str) -> None:
        run_kept(key, lambda: InProcess(Worker, ()), [Task("t", "a")], lambda *_: None)

    Worker.made = 0
    with kept_actors():
        work("a")
        work("a")
        assert Worker.made == 1
        work("b")
        work("a")
        assert Worker.made == 3


def test_ray_starts_when_something_needs_it_once_and_ends_with_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    class Started:
        def __enter__(self) -> None:
            happened.append("start")
            monkeypatch.setattr(ray, "is_initialized", lambda: True)

        def __exit__(self, *_: Any) -> None:
            happened.append("end")
            monkeypatch.setattr(ray, "is_initialized", lambda: False)

    monkeypatch.setattr(clusters, "local_ray", Started)
    with connected(None), connected(None):
        assert happened == []
    with connected(None):
        with connected(None):
            need_ray()
            Actors(Worker, (), this_process())
        assert happened == ["start"]
    assert happened == ["start", "end"]
