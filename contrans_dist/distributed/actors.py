"""What holds places on the cluster: actors, kept from stage to stage, and tasks, for which those make room.

All of Ray's tasks and actors start here: what waits for cores that kept actors hold would wait for ever.
"""

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from contrans_dist.console import note
from contrans_dist.distributed.cluster import Replicas, first_line, need_ray
from contrans_dist.distributed.in_process import InProcess
from contrans_dist.distributed.nodes import NODE_ID, Node, alive_nodes, node_here
from contrans_dist.distributed.workers import MAX_ATTEMPTS
from contrans_dist.errors import RunError, UserError
from contrans_dist.models.devices import gpus_work

_LATER_SECONDS = 30.0


class Actors:
    """Actors of one class (method `run(payload)`), which hold what they got until `end`."""

    def __init__(
        self, actor_class: Any, arguments: Sequence[Any], size: Replicas, concurrency: int = 1
    ) -> None:
        need_ray()
        self._class = _placed(actor_class)
        self._arguments, self.size, self._concurrency = arguments, size, concurrency
        self._held: list[Any] = []
        self._lines: dict[Any, PlacementGroup] = {}
        """Of actors that are the first of a line: the places of all of it."""

    def handles(self, wanted: int) -> list[Any]:
        """As many of them as `wanted`, as far as there is room; those that are not there yet are started."""
        count = min(self.size.actors, wanted)
        while len(self._held) < count:
            self.another()
        return self._held[:count]

    def another(self) -> Any:
        """One more of them, started."""
        if self.size.line == 1:
            start = _options(self._class, self.size, self._concurrency)
            self._held.append(start.remote(*self._arguments))
            return self._held[-1]
        # All places of a line at once: two half lines would wait for each other for ever.
        group = _places(self.size)
        first = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        bare = replace(self.size, selector={})
        start = _options(self._class, bare, self._concurrency, scheduling_strategy=first)
        self._held.append(start.remote(*self._arguments))
        self._lines[self._held[-1]] = group
        return self._held[-1]

    def drop(self, actor: Any) -> None:
        """Forget one that is gone, or could not be constructed."""
        self._held.remove(actor)
        if actor in self._lines:
            remove_placement_group(self._lines.pop(actor))

    def let_go(self, actor: Any) -> None:
        """End one of them."""
        ray.kill(actor, no_restart=True)
        self.drop(actor)

    def nodes(self) -> list[Node]:
        """Those of the cluster."""
        return alive_nodes()

    def end(self) -> None:
        for actor in list(self._held):
            self.let_go(actor)


def _options(actor_class: Any, size: Replicas, concurrency: int, **place: Any) -> Any:
    """The class with what each of its actors gets."""
    return ray.remote(actor_class).options(
        num_cpus=size.cpus,
        num_gpus=size.gpus,
        memory=size.memory or None,
        label_selector=dict(size.selector) or None,
        max_restarts=0,  # Ray would start for ever what is killed while it loads its model
        max_task_retries=0,
        max_concurrency=concurrency,
        **place,
    )


def _places(size: Replicas) -> PlacementGroup:
    """Room for a line of actors, on as many nodes as there may be."""
    each = {"CPU": size.cpus, "GPU": size.gpus, "memory": float(size.memory)}
    bundles = [{name: count for name, count in each.items() if count}] * size.line
    selectors = [dict(size.selector)] * size.line if size.selector else None
    return placement_group(bundles, strategy="SPREAD", bundle_label_selector=selectors)


def followers(actor_class: Any, arguments: Sequence[Sequence[Any]], size: Replicas) -> list[Any]:
    """From the first actor of a line: the others, when they are up. They end with it.

    Raises what their construction raises.
    """
    options = _options(_placed(actor_class), replace(size, selector={}), concurrency=1)
    others = [options.remote(*each) for each in arguments]
    ray.get([other.ready.remote() for other in others])
    return others


class LostError(RunError):
    """What an actor cannot work without is gone: its GPU, or another actor of its line."""


def handed_down(others: Sequence[Any], work: Any, states: Any) -> Iterator[Any]:
    """What each of a line's other actors makes of `work`, and of the states that the one before it hands on
    without passing them through here: `run(work, states)` returns (states, what it made).

    Raises LostError when one is gone, and what `run` raises.
    """
    work, made = ray.put(work), []
    for other in others:
        states, of_other = other.run.options(num_returns=2).remote(work, states)
        made.append(of_other)
    for of_other in made:
        try:
            yield _value(of_other)
        except RayError as error:
            raise LostError(first_line(error)) from error


def _placed(actor_class: Any) -> Any:
    """The class with a method that tells, once it is constructed, on which node; and a `run` that tells the
    failure of a task from that of a GPU, which would fail all tasks to come."""

    def run(actor: Any, *work: Any) -> Any:
        try:
            return actor_class.run(actor, *work)
        except Exception as error:
            if gpus_work():
                raise
            raise LostError(first_line(error)) from error

    return type(actor_class.__name__, (actor_class,), {"ready": lambda _actor: node_here(), "run": run})


def actors_of(
    actor_class: Any, arguments: Sequence[Any], size: Replicas, concurrency: int = 1
) -> Actors | InProcess:
    """Those that `size` says, none of them started yet."""
    if size.here:
        return InProcess(actor_class, arguments)
    return Actors(actor_class, arguments, size, concurrency)


class _Left:
    """The actors that a use of `kept` left for the next; at most one set, as they hold GPUs."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.actors: Actors | InProcess | None = None

    def end(self) -> None:
        if self.actors is not None:
            self.actors.end()
        self.key = self.actors = None


_LEFT: ContextVar[_Left | None] = ContextVar("left", default=None)


@contextmanager
def kept_actors() -> Iterator[None]:
    """Within it, what `kept` starts lives on until other actors are wanted: a 70B model loads in minutes,
    and a run needs it for one stage after another."""
    if _LEFT.get() is not None:
        yield
        return
    token = _LEFT.set(left := _Left())
    try:
        yield
    finally:
        _LEFT.reset(token)
        left.end()


@contextmanager
def kept(key: Hashable, start: Callable[[], Actors | InProcess]) -> Iterator[Actors | InProcess]:
    """The actors that were started under an equal key, if they are still there, else new ones from `start`.

    Outside `kept_actors`, and after an error, they end with the frame.
    """
    left = _LEFT.get() or _Left()
    if left.actors is None or left.key != key:
        left.end()  # before `start` looks for free memory
        left.key, left.actors = key, start()
    try:
        yield left.actors
    except BaseException:
        left.end()  # a task may still be under way
        raise
    finally:
        if _LEFT.get() is None:
            left.end()


def let_go() -> None:
    """End the actors that `kept` left, if any: something else needs their places."""
    left = _LEFT.get()
    if left is not None:
        left.end()


def as_task(function: Callable[..., Any]) -> Any:
    """A plain function as a Ray task (`.remote(...)`), for which there is room."""
    need_ray()
    let_go()
    return ray.remote(function)


def answer(ask: Callable[[], Any]) -> Any:
    """The values behind the references that `ask` makes of tasks. What was lost, with a node or for want of
    memory, is asked for again.

    Raises a task's UserError or RunError as they are, any other error as RunError.
    """
    reason = ""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return _value(ask())
        except RayError as error:
            reason = first_line(error)
            if attempt == MAX_ATTEMPTS:
                raise RunError(
                    f"work was lost {attempt} times ({reason}); run the same command again"
                ) from error
            note(f"work was lost ({reason}); it is done again")
    raise AssertionError("either returned or raised")


def _value(references: Any) -> Any:
    """The values behind references of tasks. Raises a task's UserError or RunError as they are, any other
    error of it as RunError; and RayError for what was lost."""
    try:
        return ray.get(references)
    except RayError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError) and cause.cause is not None:
            cause = cause.cause
        if isinstance(cause, UserError | RunError):
            raise cause from None
        if not isinstance(cause, RayError) or isinstance(cause, RayTaskError):
            raise RunError(first_line(cause)) from error
        raise cause from None


def of_each(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What `function` returns for each tuple of arguments: from tasks, or threads where no other node is.

    Meant for reading, hashing and arithmetic on arrays, which run beside each other in threads too. Raises as
    `answer`.
    """
    if _alone():
        cores = ray.cluster_resources()["CPU"] if ray.is_initialized() else os.cpu_count() or 1
        with ThreadPoolExecutor(max(1, int(cores))) as threads:
            return list(threads.map(lambda arguments: function(*arguments), calls))
    task = as_task(function)
    return list(answer(lambda: [task.remote(*arguments) for arguments in calls]))


def _alone() -> bool:
    """Whether this is the only node: a process of its own would take seconds to start and win nothing."""
    if not ray.is_initialized():
        return True
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    return bool(nodes == [ray.get_runtime_context().get_node_id()])


def on_a_node(function: Callable[..., Any], size: Replicas, *arguments: Any) -> Any:
    """What `function` returns on a node that has room for an actor, with the GPUs that one gets.

    Raises as `answer`.
    """
    if size.here or (not size.gpus and _alone()):
        return function(*arguments)
    remote = _like(size, size.selector)
    return answer(lambda: remote.remote(function, *arguments))


def on_nodes(function: Callable[[], Any], size: Replicas, nodes: Sequence[Node]) -> dict[str, Any]:
    """What `function` returns on each of these nodes, by its id, or the UserError that it raised there.

    A node that is lost, or that does not answer half a minute after the first one did, as others have its
    GPUs, is left out. Raises RunError where none answers.
    """
    asked = {_like(size, {NODE_ID: node.id}).remote(function): node.id for node in nodes}
    ray.wait(list(asked))
    there, late = ray.wait(list(asked), num_returns=len(asked), timeout=_LATER_SECONDS)
    for reference in late:
        ray.cancel(reference)
    found: dict[str, Any] = {}
    lost = RunError("no node answered")
    for reference in there:
        try:
            found[asked[reference]] = _value(reference)
        except UserError as error:
            found[asked[reference]] = error
        except (RunError, RayError) as error:
            lost = RunError(first_line(error))
    if not found:
        raise lost
    return found


def _like(size: Replicas, selector: Mapping[str, str]) -> Any:
    """A task that gets what an actor gets, on a node with such labels."""
    return as_task(_call).options(
        num_cpus=size.cpus, num_gpus=size.gpus, label_selector=dict(selector) or None
    )


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Ray takes plain functions only, not partial ones."""
    return function(*arguments)
