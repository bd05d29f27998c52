"""What holds places on the cluster: actors, kept from stage to stage until others need the places.

All of Ray's actors start here, and its tasks in `tasks`, for which these make room: what waits for cores that
kept actors hold would wait for ever.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from contrans_dist.distributed.answers import value
from contrans_dist.distributed.cluster import Replicas, need_ray, surroundings
from contrans_dist.distributed.in_process import InProcess
from contrans_dist.distributed.nodes import Node, alive_nodes, node_here
from contrans_dist.errors import RunError, first_line

_ASKED = "asked"
"""Ray's name for the methods that have a thread of their own, so that an actor answers whatever it is at, and
however often it was given that again."""


class Actors:
    """Actors of one class (method `run(payload)`), which hold what they got until `end`."""

    def __init__(
        self, actor_class: Any, arguments: Sequence[Any], size: Replicas, concurrency: int = 1
    ) -> None:
        need_ray()
        self._class = _placed(actor_class, size)
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
    return ray.remote(concurrency_groups={_ASKED: 1})(actor_class).options(
        num_cpus=size.cpus,
        num_gpus=size.gpus,
        memory=size.memory or None,
        label_selector=dict(size.selector) or None,
        runtime_env=surroundings(size),
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
    options = _options(_placed(actor_class, size), replace(size, selector={}), concurrency=1)
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
            yield value(of_other)
        except RayError as error:
            raise LostError(first_line(error)) from error


def _placed(actor_class: Any, size: Replicas) -> Any:
    """The class, which keeps to its part of a GPU, with a method that tells, once it is constructed, on which
    node; and a `run` that tells the failure of a task from that of a GPU, which would fail all to come. It is
    asked for the node, and for its `progress`, beside its work."""

    # torch takes a second to load: where a map is fitted, or files are read, nobody needs it.
    def init(actor: Any, *arguments: Any) -> None:
        if size.gpus:
            from contrans_dist.models.devices import check_gpus, keep_within

            check_gpus(size.gpus)
            if size.gpus < 1:
                keep_within(size.gpus)
        actor_class.__init__(actor, *arguments)

    def run(actor: Any, *work: Any) -> Any:
        try:
            return actor_class.run(actor, *work)
        except Exception as error:
            from contrans_dist.models.devices import gpus_work

            if gpus_work():
                raise
            raise LostError(first_line(error)) from error

    beside = ray.method(concurrency_group=_ASKED)
    members = {"__init__": init, "ready": beside(lambda _actor: node_here()), "run": run}
    if hasattr(actor_class, "progress"):
        members["progress"] = beside(lambda actor: actor_class.progress(actor))
    return type(actor_class.__name__, (actor_class,), members)


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
