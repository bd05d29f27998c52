"""One pool of Ray actors for every stage that needs a loaded model: tasks in, results out, losses survived.

The driver owns the retries: an actor's process, or its node, may go at any time. A task is given out again
until it succeeds or has failed `MAX_ATTEMPTS` times; the others go on. Tasks run at least once, so what they
publish must not depend on who runs them.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from contrans_dist.actors import Actors, kept, let_go
from contrans_dist.cluster import Replicas, first_line
from contrans_dist.errors import RunError, UserError
from contrans_dist.progress import note

MAX_ATTEMPTS = 3
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Task:
    """A unit of work for an actor's `run`."""

    name: str
    payload: Any


@dataclass
class Outcome:
    """What became of all tasks."""

    failures: dict[str, str] = field(default_factory=dict)
    """Task name to the reason of its last failure."""
    lost_actors: int = 0
    began: float = 0.0
    """When the first actor was up, by `time.monotonic`."""


@dataclass(eq=False)
class _Worker:
    actor: Any
    running: dict[Any, Task] = field(default_factory=dict)
    """By the reference of the result to come."""
    up: bool = False

    def has_room(self, slots: int, attempts: dict[str, int]) -> bool:
        """Whether it may be given one more. A task that has failed runs alone: should it take the actor down
        again, it takes no other task with it."""
        alone = any(attempts.get(task.name) for task in self.running.values())
        return self.up and len(self.running) < slots and not alone


@dataclass
class _Pool:
    slots: int
    """Tasks that an actor has at a time."""
    workers: list[_Worker] = field(default_factory=list)
    common: tuple[Any, ...] = ()
    """Further arguments of every `run`."""
    starting: dict[Any, _Worker] = field(default_factory=dict)
    """By the reference that tells when it is up."""
    resting: list[tuple[float, _Worker]] = field(default_factory=list)
    """(time to ask again, worker) for actors that could not be reached"""
    attempts: dict[str, int] = field(default_factory=dict)
    """Failures so far, by name of the task."""
    outcome: Outcome = field(default_factory=Outcome)
    dead: str = ""
    on_progress: Callable[[float], None] | None = None

    def start(self, worker: _Worker) -> None:
        self.starting[worker.actor.ready.remote()] = worker

    def rest(self, worker: _Worker) -> None:
        worker.up = False
        self.resting.append((time.monotonic() + _RETRY_SECONDS, worker))

    def wake(self) -> None:
        now = time.monotonic()
        due = [worker for moment, worker in self.resting if moment <= now]
        self.resting = [(moment, worker) for moment, worker in self.resting if moment > now]
        for worker in due:
            self.start(worker)

    def give(self, queue: deque[Task]) -> None:
        """Hand out tasks, the least busy actors first."""
        while queue:
            suspect = bool(self.attempts.get(queue[0].name))
            room = [w for w in self.workers if w.has_room(1 if suspect else self.slots, self.attempts)]
            if not room:
                return
            worker, task = min(room, key=lambda w: len(w.running)), queue.popleft()
            worker.running[worker.actor.run.remote(task.payload, *self.common)] = task

    def ask(self) -> None:
        """How far the running tasks are. An actor that cannot say so now is left out."""
        if self.on_progress is None or not self.running:
            return
        asked = [worker.actor.progress.remote() for worker in self.workers if worker.running]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_RETRY_SECONDS)
        total = 0.0
        for reference in answered:
            with suppress(RayError):
                total += ray.get(reference)
        self.on_progress(total)

    @property
    def running(self) -> dict[Any, _Worker]:
        return {reference: worker for worker in self.workers for reference in worker.running}

    @property
    def alive(self) -> bool:
        return bool(self.starting or self.resting) or any(w.up or w.running for w in self.workers)


def run_kept(
    key: Hashable,
    start: Callable[[], Actors],
    tasks: Sequence[Task],
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
) -> Outcome:
    """`run_tasks` on the actors that were started under an equal key, if they are still there, else on new
    ones from `start`. Outside `kept_actors` they end with the call."""
    with kept(key, start) as actors:
        return _run(actors, tasks, on_result, shared)


def run_tasks(
    actor_class: Any,
    arguments: Sequence[Any],
    tasks: Sequence[Task],
    size: Replicas,
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
    slots: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Outcome:
    """Run every task on a pool of `actor_class` actors (methods `ready()` and `run(payload)`).

    With `shared`, which all tasks need and which is too large to travel with each, it is
    `run(payload, shared)`; the driver keeps the one copy, so no lost node can take it along. `slots`: tasks
    that an actor has at a time, each in a thread of its own. `on_progress`, for tasks that take long, is
    called every second or so with the sum of what the actors' `progress()` says of their running tasks.

    `on_result` is called in the driver as results come. Raises RunError when no actor can be started, or
    when an actor's construction fails everywhere; UserError raised by a task is passed on.
    """
    let_go()
    actors = Actors(actor_class, arguments, size, slots + (on_progress is not None))
    try:
        return _run(actors, tasks, on_result, shared, slots, on_progress)
    finally:
        actors.end()


def _run(
    actors: Actors,
    tasks: Sequence[Task],
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
    slots: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Outcome:
    pool = _Pool(slots, common=() if shared is None else (ray.put(shared),), on_progress=on_progress)
    pool.workers = [_Worker(actor) for actor in actors.handles(len(tasks))]
    for worker in pool.workers:
        pool.start(worker)
    return _drive(pool, tasks, on_result)


def _drive(pool: _Pool, tasks: Sequence[Task], on_result: Callable[[Task, Any], None]) -> Outcome:
    queue = deque(tasks)
    last_event = time.monotonic()
    # The end is when tasks are done, not when actors are: after a lost node one may never come back.
    while queue or pool.running:
        pool.wake()
        pool.give(queue)
        if not pool.alive:
            raise RunError(f"no actor is left to work: {pool.dead}")
        waiting = [*pool.starting, *pool.running]
        done, _ = ray.wait(waiting, timeout=_RETRY_SECONDS) if waiting else ([], [])
        if not done:
            time.sleep(0 if waiting else 0.1)
            pool.ask()
            if not pool.running and time.monotonic() - last_event > _PATIENCE_SECONDS:
                note("waiting for an actor to start: does the cluster have free GPUs or cores?")
                last_event = time.monotonic()
            continue
        last_event = time.monotonic()
        if done[0] in pool.starting:
            _started(pool, done[0])
        else:
            _finish(pool, pool.running[done[0]], done[0], queue, on_result)
    return pool.outcome


def _started(pool: _Pool, reference: Any) -> None:
    worker = pool.starting.pop(reference)
    try:
        ray.get(reference)
    except RayActorError as error:
        if isinstance(error, ActorUnavailableError) or not error.actor_init_failed:
            pool.rest(worker)
            return
        pool.dead = _construction_error(error)
        if not pool.alive:
            raise RunError(pool.dead) from error
    else:
        worker.up = True
        pool.outcome.began = pool.outcome.began or time.monotonic()


def _finish(
    pool: _Pool,
    worker: _Worker,
    reference: Any,
    queue: deque[Task],
    on_result: Callable[[Task, Any], None],
) -> None:
    """Take in one result; what failed goes back into the queue."""
    task = worker.running.pop(reference)
    try:
        result = ray.get(reference)
    except RayActorError as error:
        lost = [task, *worker.running.values()]
        worker.running.clear()
        pool.outcome.lost_actors += 1
        pool.rest(worker)
        note(f"an actor was lost at {', '.join(each.name for each in lost)}; another goes on with that")
        for each in lost:
            _failed(pool, queue, each, f"the actor died: {first_line(error)}")
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            # Bad input stays bad: neither another try nor the other tasks make it good.
            raise error.cause
        _failed(pool, queue, task, first_line(error.cause if error.cause is not None else error))
    else:
        on_result(task, result)


def _failed(pool: _Pool, queue: deque[Task], task: Task, reason: str) -> None:
    pool.attempts[task.name] = pool.attempts.get(task.name, 0) + 1
    if pool.attempts[task.name] < MAX_ATTEMPTS:
        queue.append(task)
    else:
        pool.outcome.failures[task.name] = reason


def _construction_error(error: RayActorError) -> str:
    """The last line of the remote traceback: what a person needs to know."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("contrans_dist.errors.") if lines else "the actor could not be started"
