"""Plain functions as tasks: anywhere, on a node that an actor would get, or on each of several nodes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.client import ray as client

from contrans_dist.console import note
from contrans_dist.distributed.actors import let_go
from contrans_dist.distributed.answers import answer, value
from contrans_dist.distributed.cluster import Hope, Replicas, need_ray, surroundings, too_small
from contrans_dist.distributed.nodes import NODE_ID, Node, alive_nodes, node_here
from contrans_dist.errors import RunError, UserError, first_line

_LATER_SECONDS = 30.0
_SAY_SECONDS = 60.0


def as_task(function: Callable[..., Any], once: bool = False) -> Any:
    """A plain function as a Ray task (`.remote(...)`), for which there is room; `once`: each in a process of
    its own, which ends with it."""
    need_ray()
    let_go()
    return ray.remote(max_calls=1)(function) if once else ray.remote(function)


def alone() -> bool:
    """Whether this is the only node: a process of its own would take seconds to start and win nothing."""
    if not ray.is_initialized():
        return True
    # A driver that is a client (`ray://`) is told the node that it is connected to, and may be elsewhere.
    return [node.id for node in alive_nodes()] == [node_here()] and not client.is_connected()


def on_a_node(function: Callable[..., Any], size: Replicas, *arguments: Any) -> Any:
    """What `function` returns on a node that has room for an actor, with the GPUs that one gets.

    Raises as `answer`.
    """
    if size.here or (not size.gpus and alone() and surroundings(size) is None):
        return function(*arguments)
    remote = _like(size, size.selector)

    def ask() -> Any:
        asked = remote.remote(function, *arguments)
        _wait_for_one([asked], size)
        return asked

    return answer(ask)


def on_nodes(function: Callable[[], Any], size: Replicas, nodes: Sequence[Node]) -> dict[str, Any]:
    """What `function` returns on each of these nodes, by its id, or the UserError that it raised there.

    A node that is lost, which Ray tells, or that does not answer half a minute after the first one did, as
    others have its GPUs, is left out. Raises RunError where none answers.
    """
    asked = {_like(size, {NODE_ID: node.id}).remote(function): node.id for node in nodes}
    _wait_for_one(list(asked), size)
    there, late = ray.wait(list(asked), num_returns=len(asked), timeout=_LATER_SECONDS)
    for reference in late:
        ray.cancel(reference)
    found: dict[str, Any] = {}
    lost = RunError("no node answered; run the same command again")
    for reference in there:
        try:
            found[asked[reference]] = value(reference)
        except UserError as error:
            found[asked[reference]] = error
        except RunError as error:
            lost = error
        except RayError as error:
            lost = RunError(f"no node answered ({first_line(error)}); run the same command again")
    if not found:
        raise lost
    return found


def _wait_for_one(asked: list[Any], size: Replicas) -> None:
    """Until one of these tasks has ended, each of which wants the place of an actor; says so while none is
    there. Raises RunError when there is no hope left."""
    hope, said = Hope(), ""
    while not ray.wait(asked, timeout=_SAY_SECONDS)[0]:
        nodes = alive_nodes()
        fits = size.fits(nodes)
        busy = "waiting for a node: all that have room for an actor are busy, or slow to answer"
        told = busy if fits else f"{too_small(size, nodes)}; waiting for one that has room"
        if told != said:
            note(told)
        said = told
        hope.look(fits)


def _like(size: Replicas, selector: Mapping[str, str]) -> Any:
    """A task that gets what an actor gets, on a node with such labels."""
    # CUDA asks only once which GPUs a process has, and gives memory back when it ends.
    return as_task(_call, once=size.gpus > 0).options(
        num_cpus=size.cpus,
        num_gpus=size.gpus,
        label_selector=dict(selector) or None,
        runtime_env=surroundings(size),
    )


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Ray takes plain functions only, not partial ones."""
    return function(*arguments)
