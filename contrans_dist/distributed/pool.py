"""One pool of Ray actors for every stage that needs a loaded model: tasks in, results out, losses survived.

The driver owns the retries: an actor's process, or its node, may go at any time. A task is given out again
until it succeeds or has failed `MAX_ATTEMPTS` times; the others go on. One that takes many times longer than
its like is given to another actor as well, and the first answer counts. Tasks run at least once, so what they
publish must not depend on who runs them.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from contrans_dist import errors
from contrans_dist.console import note
from contrans_dist.distributed.actors import Actors, LostError, actors_of, kept, let_go
from contrans_dist.distributed.cluster import Replicas
from contrans_dist.distributed.crew import LOOK_SECONDS, RETRY_SECONDS, Crew
from contrans_dist.distributed.in_process import InProcess
from contrans_dist.distributed.workers import MAX_ATTEMPTS, Outcome, Task, Worker
from contrans_dist.errors import NoAnswerError, OverflowedError, RunError, UserError, first_line

__all__ = ["Outcome", "Task", "run_kept", "run_tasks"]

_PATIENCE_SECONDS = 60.0
_GONE = (
    "an actor's process was gone before it was up: with its node, or killed for want of memory, of which "
    "fewer --actors, a smaller --dtype or --placement stream need less"
)


def run_kept(
    key: Hashable,
    start: Callable[[], Actors | InProcess],
    tasks: Sequence[Task],
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
    on_progress: Callable[[float], None] | None = None,
) -> Outcome:
    """`run_tasks` on the actors that were started under an equal key, if they are still there, else on new
    ones from `start`. Outside `kept_actors` they end with the call."""
    with kept(key, start) as actors:
        if isinstance(actors, InProcess):
            return actors.run(tasks, on_result, shared, on_progress)
        return _run(actors, tasks, on_result, shared, on_progress=on_progress)


def run_tasks(
    actor_class: Any,
    arguments: Sequence[Any],
    tasks: Sequence[Task],
    size: Replicas,
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
    slots: int = 1,
    on_progress: Callable[[float], None] | None = None,
    alike: bool = True,
) -> Outcome:
    """Run every task on a pool of actors.

    Args:
        actor_class: With a method `run(payload)`.
        arguments: Those that an actor is constructed with.
        tasks: Of different names.
        size: How many actors there may be, and what each gets.
        on_result: Called in the driver as results come.
        shared: What all tasks need and is too large to travel with each: `run(payload, shared)`. The driver
            keeps the one copy, so no lost node can take it along.
        slots: Tasks that an actor has at a time, each in a thread of its own.
        on_progress: Called every second or so with the sum of what the actors' `progress()` says of their
            running tasks.
        alike: Whether tasks take as long as others of their size. Else one is taken to hang, not when it
            takes far longer than those, but when its actor does not say how far it is.

    Raises:
        RunError: When no actor can be started, or an actor's construction fails everywhere, or its process is
            killed each time.
        UserError: As a task raised it, or the construction everywhere.
        OverflowedError: As a task raised it.
        NoAnswerError: Where it was raised three times with no task done between.
    """
    let_go()
    actors = actors_of(actor_class, arguments, size, slots)
    try:
        if isinstance(actors, InProcess):
            return actors.run(tasks, on_result, shared, on_progress)
        return _run(actors, tasks, on_result, shared, slots, on_progress, alike)
    finally:
        actors.end()


def _run(
    actors: Actors,
    tasks: Sequence[Task],
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
    slots: int = 1,
    on_progress: Callable[[float], None] | None = None,
    alike: bool = True,
) -> Outcome:
    common = () if shared is None else (ray.put(shared),)
    crew = Crew(actors, slots, deque(tasks), common=common, on_progress=on_progress, alike=alike)
    for actor in actors.handles(len(tasks)):
        crew.hire(Worker(actor))
    names = {task.name for task in tasks}
    assert len(names) == len(tasks), "two tasks have the same name"
    return _drive(crew, names, on_result)


def _drive(crew: Crew, names: set[str], on_result: Callable[[Task, Any], None]) -> Outcome:
    last_event = looked = time.monotonic()
    # The end is when tasks are done, not when actors are: after a lost node one may never come back.
    while len(crew.settled) < len(names):
        crew.wake()
        crew.give()
        if not crew.alive:
            raise RunError(f"no actor is left to work: {crew.dead}")
        waiting = [*crew.starting, *crew.running]
        done = _done_of(waiting)
        if not done:
            time.sleep(0 if waiting else 0.1)
            crew.ask()
        for reference in done:
            if reference in crew.starting:
                _started(crew, reference)
            elif reference in crew.running:  # another may have taken its actor along
                _finish(crew, crew.running[reference], reference, on_result)
        now = time.monotonic()
        if now - looked > LOOK_SECONDS:
            looked = now
            crew.watch()
            crew.look()
        if crew.running:
            last_event = now
        elif now - last_event > _PATIENCE_SECONDS:
            note("waiting for an actor: it loads its model, or the cluster has no free GPUs or cores")
            last_event = now
    return crew.outcome


def _done_of(waiting: list[Any]) -> list[Any]:
    """Those that are done, when one is or a moment has passed."""
    if not waiting or not ray.wait(waiting, timeout=RETRY_SECONDS)[0]:
        return []
    return list(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0])


def _started(crew: Crew, reference: Any) -> None:
    worker = crew.starting.pop(reference)
    try:
        worker.node = ray.get(reference)
    except RayActorError as error:
        if isinstance(error, ActorUnavailableError):
            crew.rest(worker)
        elif error.actor_init_failed:
            crew.refuse(worker, *_construction_error(error))
        else:
            crew.refuse(worker, _GONE, final=False)
    except RayError as error:
        crew.refuse(worker, first_line(error), final=False)
    else:
        worker.up = True
        worker.refused = 0
        crew.outcome.began = crew.outcome.began or time.monotonic()


def _finish(crew: Crew, worker: Worker, reference: Any, on_result: Callable[[Task, Any], None]) -> None:
    """Take in one result; what failed goes back into the queue."""
    given = crew.taken(worker, reference)
    try:
        result = ray.get(reference)
    except (RayActorError, OutOfMemoryError) as error:  # the second: Ray has ended it, to save its node
        gone = not isinstance(error, ActorUnavailableError)
        crew.lose(worker, [given, *worker.running.values()], first_line(error), gone)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | OverflowedError):
            # Bad input stays bad: neither another try nor the other tasks make it good.
            raise error.cause
        if isinstance(error.cause, NoAnswerError):
            crew.unanswered += 1
            if crew.unanswered >= MAX_ATTEMPTS:  # each waited for minutes; the other tasks would as well
                raise error.cause
        reason = first_line(error.cause if error.cause is not None else error)
        if isinstance(error.cause, LostError):
            ray.kill(worker.actor)
            crew.lose(worker, [given, *worker.running.values()], reason, gone=True)
        else:
            crew.fail(given.task, reason)
    except RayError as error:
        # The work may be done and its answer lost, with a node.
        if given.task.name not in crew.settled:
            note(f"the answer of {given.task.name} was lost ({first_line(error)}); it is done again")
        if worker.up and not worker.running:
            crew.rest(worker)
        crew.fail(given.task, first_line(error))
    else:
        if given.task.name not in crew.settled:
            crew.settle(given, worker.node)
            on_result(given.task, result)


def _construction_error(error: RayActorError) -> tuple[str, bool]:
    """The last line of the remote traceback, what a person needs to know; and whether it is bad input."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind, mark, reason = (lines[-1] if lines else "").partition(": ")
    if mark and kind.startswith("contrans_dist.errors."):
        return reason, issubclass(getattr(errors, kind.rpartition(".")[2]), UserError)
    return lines[-1] if lines else "the actor could not be started", False
