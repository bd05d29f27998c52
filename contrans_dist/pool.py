"""One pool of Ray actors for every stage that needs a loaded model: tasks in, results out, losses survived.

The driver owns the retries: an actor's process, or its node, may go at any time. A task is given out again
until it succeeds or has failed `MAX_ATTEMPTS` times; the others go on. Tasks run at least once, so what they
publish must not depend on who runs them.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from contrans_dist.config import ClusterSettings
from contrans_dist.errors import RunError, UserError
from contrans_dist.progress import note

MAX_ATTEMPTS = 3
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to Ray for the time of the block; one that is already there is used and left alone.

    `address`: `local`, `auto`, `ray://...`; None follows RAY_ADDRESS (which a submitted job finds set), else
    starts Ray on this machine. Raises RunError when no cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    # Without an explicit "local" Ray would follow the stale address of a cluster long gone.
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        raise RunError(
            f"--address {address}: no Ray cluster answered ({first_line(error)}); "
            "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise RunError when nothing listens at `host:port`: Ray itself would try for minutes."""
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if not mark or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RunError(f"--address {address}: no Ray cluster answered ({error})") from error


@dataclass(frozen=True)
class Replicas:
    """How many actors, and what each gets."""

    actors: int
    gpus: float
    cpus: float


def replicas(cluster: ClusterSettings) -> Replicas:
    """Fit actors to the nodes that are alive. An actor lives on one node, so GPUs are counted by node.

    Raises UserError when no node is large enough for one actor.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = cluster.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if gpus > 0:
        fitting = [int(node.get("GPU", 0) // gpus) for node in nodes]
        _check_fit(cluster, sum(fitting), f"{gpus:g} GPUs", max(n.get("GPU", 0) for n in nodes))
        actors = cluster.actors or sum(fitting)
        shares = [node.get("CPU", 0) / fit for node, fit in zip(nodes, fitting, strict=True) if fit]
        return Replicas(
            actors, gpus, cluster.cpus_per_actor or max(1.0, float(int(min(shares, default=1.0))))
        )
    cores = [node.get("CPU", 0) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise UserError("--cpus-per-actor: no node of the cluster lends a core")
    share = float(max(1, int(sum(cores) // cluster.actors))) if cluster.actors else min(cores)
    cpus = cluster.cpus_per_actor or min(share, max(cores))
    fit = sum(int(node // cpus) for node in cores)
    _check_fit(cluster, fit, f"{cpus:g} cores", max(cores))
    return Replicas(cluster.actors or max(fit, 1), 0.0, cpus)


def _check_fit(cluster: ClusterSettings, fit: int, wanted: str, largest: float) -> None:
    # An autoscaling cluster may still grow to what was asked for; one that cannot fit any is a mistake.
    if fit == 0 and cluster.actors is None:
        raise UserError(f"no node has {wanted} for one actor; the largest has {largest:g}")


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


@dataclass
class _Pool:
    common: tuple[Any, ...] = ()
    """Further arguments of every `run`."""
    idle: deque[Any] = field(default_factory=deque)
    starting: dict[Any, Any] = field(default_factory=dict)
    """ready-reference -> actor"""
    busy: dict[Any, tuple[Any, Task]] = field(default_factory=dict)
    resting: list[tuple[float, Any]] = field(default_factory=list)
    """(time to ask again, actor) for actors that could not be reached"""
    dead: str = ""

    def start(self, actor: Any) -> None:
        self.starting[actor.ready.remote()] = actor

    def wake(self) -> None:
        now = time.monotonic()
        due = [actor for moment, actor in self.resting if moment <= now]
        self.resting = [(moment, actor) for moment, actor in self.resting if moment > now]
        for actor in due:
            self.start(actor)

    @property
    def alive(self) -> int:
        return len(self.idle) + len(self.starting) + len(self.busy) + len(self.resting)


def run_tasks(
    actor_class: Any,
    arguments: Sequence[Any],
    tasks: Sequence[Task],
    size: Replicas,
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
) -> Outcome:
    """Run every task on a pool of `actor_class` actors (methods `ready()` and `run(payload)`).

    With `shared`, which all tasks need and which is too large to travel with each, it is
    `run(payload, shared)`; the driver keeps the one copy, so no lost node can take it along.

    `on_result` is called in the driver as results come. Raises RunError when no actor can be started, or
    when an actor's construction fails everywhere; UserError raised by a task is passed on.
    """
    remote = ray.remote(actor_class).options(
        num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=-1, max_task_retries=0
    )
    actors = [remote.remote(*arguments) for _ in range(min(size.actors, len(tasks)))]
    pool = _Pool(common=() if shared is None else (ray.put(shared),))
    for actor in actors:
        pool.start(actor)
    try:
        return _drive(pool, tasks, on_result)
    finally:
        for actor in actors:
            ray.kill(actor, no_restart=True)


def _drive(pool: _Pool, tasks: Sequence[Task], on_result: Callable[[Task, Any], None]) -> Outcome:
    queue = deque(tasks)
    attempts: dict[str, int] = {}
    outcome = Outcome()
    last_event = time.monotonic()
    # The end is when tasks are done, not when actors are: after a lost node one may never come back.
    while queue or pool.busy:
        pool.wake()
        while queue and pool.idle:
            actor, task = pool.idle.popleft(), queue.popleft()
            pool.busy[actor.run.remote(task.payload, *pool.common)] = (actor, task)
        if not pool.alive:
            raise RunError(f"no actor is left to work: {pool.dead}")
        waiting = [*pool.starting, *pool.busy]
        done, _ = ray.wait(waiting, timeout=_RETRY_SECONDS) if waiting else ([], [])
        if not done:
            time.sleep(0 if waiting else 0.1)
            if not pool.busy and time.monotonic() - last_event > _PATIENCE_SECONDS:
                note("waiting for an actor to start: does the cluster have free GPUs or cores?")
                last_event = time.monotonic()
            continue
        last_event = time.monotonic()
        if done[0] in pool.starting:
            _started(pool, done[0], outcome)
            continue
        actor, task = pool.busy.pop(done[0])
        reason = _finish(pool, actor, task, done[0], on_result, outcome)
        if reason is None:
            continue
        attempts[task.name] = attempts.get(task.name, 0) + 1
        if attempts[task.name] < MAX_ATTEMPTS:
            queue.append(task)
        else:
            outcome.failures[task.name] = reason
    return outcome


def _started(pool: _Pool, reference: Any, outcome: Outcome) -> None:
    actor = pool.starting.pop(reference)
    try:
        ray.get(reference)
    except RayActorError as error:
        if isinstance(error, ActorUnavailableError) or not error.actor_init_failed:
            pool.resting.append((time.monotonic() + _RETRY_SECONDS, actor))
            return
        pool.dead = _construction_error(error)
        if not pool.alive:
            raise RunError(pool.dead) from error
    else:
        pool.idle.append(actor)


def _finish(
    pool: _Pool,
    actor: Any,
    task: Task,
    reference: Any,
    on_result: Callable[[Task, Any], None],
    outcome: Outcome,
) -> str | None:
    """Take in one result; the reason when there is none."""
    try:
        result = ray.get(reference)
    except RayActorError as error:
        outcome.lost_actors += 1
        note(f"an actor was lost at {task.name}; it is given to another")
        pool.resting.append((time.monotonic() + _RETRY_SECONDS, actor))
        return f"the actor died: {first_line(error)}"
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            # Bad input stays bad: neither another try nor the other tasks make it good.
            raise error.cause
        pool.idle.append(actor)
        return first_line(error.cause if error.cause is not None else error)
    pool.idle.append(actor)
    on_result(task, result)
    return None


def _construction_error(error: RayActorError) -> str:
    """The last line of the remote traceback: what a person needs to know."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("contrans_dist.errors.") if lines else "the actor could not be started"


def first_line(error: BaseException) -> str:
    """An exception as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
