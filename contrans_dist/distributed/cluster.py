"""A Ray cluster: connecting to it, and what it has room for."""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import ray
from ray.exceptions import RayError

from contrans_dist.config import ClusterSettings
from contrans_dist.distributed.local_ray import connect, local_ray, may_grow
from contrans_dist.distributed.nodes import Node, alive_nodes
from contrans_dist.errors import RunError, UserError, first_line

_CONNECT_SECONDS = 10.0
GIVE_UP_SECONDS = 1800.0
"""Without an actor, or a node that has room for one."""
_ON_NEED: ContextVar[ExitStack | None] = ContextVar("on_need", default=None)
"""Ends what `need_ray` starts, where no cluster was named."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to Ray for the time of the block; one that is already there is used and left alone.

    Args:
        address: `local`, `auto`, `ray://...`; None follows RAY_ADDRESS (which a submitted job finds set),
            else starts Ray on this machine, not before something needs it.

    Raises:
        RunError: When no cluster answers.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized() or (address is None and _ON_NEED.get() is not None):
        yield
        return
    if address is None:
        with ExitStack() as stack:
            token = _ON_NEED.set(stack)
            try:
                yield
            finally:
                _ON_NEED.reset(token)
        return
    if address == "local":
        with local_ray():
            yield
        return
    _check_reachable(address)
    try:
        connect(address)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        raise RunError(
            f"--address {address}: no Ray cluster answered ({first_line(error)}); "
            "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def need_ray() -> None:
    """Start Ray where that was left until something needs it: within `connected`, whose block ends it."""
    on_need = _ON_NEED.get()
    if on_need is not None and not ray.is_initialized():
        on_need.enter_context(local_ray())


def _check_reachable(address: str) -> None:
    """Raise RunError when nothing listens at `host:port`: Ray itself would try for minutes."""
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if not mark or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # a port or name that there cannot be
        raise RunError(f"--address {address}: no Ray cluster answered ({error})") from error


@dataclass(frozen=True)
class Replicas:
    """How many actors, and what each gets."""

    actors: int
    gpus: float
    cpus: float
    per_node: int = field(default=1, compare=False)
    """At most so many on one node."""
    here: bool = False
    """Whether it is one in the driver's own process."""
    memory: int = 0
    """Bytes of its node's memory that each takes, where that is known."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes that they may be on."""
    line: int = 1
    """How many of them make one actor of the pool together, each with such a share."""
    follows: bool = field(default=False, compare=False)
    """Whether there are to be as many as there is room for, also on nodes that come later."""

    @property
    def share(self) -> float:
        """Of the memory of its devices, what one actor may take."""
        return min(self.gpus, 1.0) if self.gpus else 1.0 / self.per_node

    def room_on(self, node: Node) -> int:
        """How many of them a node holds, were nothing else there."""
        if node.leaving or not node.carries(self.selector):
            return 0
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(node.has(name) // each) for name, each in wanted.items() if each)

    def room(self, nodes: Iterable[Node]) -> int:
        """How many of them there may be on these nodes."""
        return self._fitting(nodes) if self.follows else self.actors

    def fits(self, nodes: Iterable[Node]) -> bool:
        """Whether these nodes have room for one at least."""
        return self._fitting(nodes) > 0

    def _fitting(self, nodes: Iterable[Node]) -> int:
        return sum(map(self.room_on, nodes)) // self.line


@dataclass
class Hope:
    """That there will be a node with room for an actor."""

    since: float = field(default_factory=time.monotonic)
    """When there was one last, or an actor."""

    def look(self, there: bool) -> None:
        """Raises RunError when for half an hour there was none."""
        if there:
            self.since = time.monotonic()
        elif time.monotonic() - self.since > GIVE_UP_SECONDS:
            raise RunError(
                f"no node of the cluster had room for an actor for {GIVE_UP_SECONDS / 60:.0f} minutes; run "
                "the same command again when there is one"
            )


def replicas(cluster: ClusterSettings, nodes: Sequence[Node] | None = None, memory: int = 0) -> Replicas:
    """Fit actors to nodes. An actor lives on one node, so GPUs are counted by node.

    Args:
        cluster: What was asked for.
        nodes: What there is; None are the nodes that are alive.
        memory: Bytes of a node's memory that each takes.

    Raises:
        UserError: When no node is large enough for one actor.
    """
    if nodes is None:
        need_ray()
        nodes = alive_nodes()
    selector = cluster.selector
    nodes = [node for node in nodes if node.carries(selector) and not node.leaving]
    if not nodes and cluster.actors is None:
        raise UserError(_no_such_labels(cluster.label_selector))
    gpus = cluster.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if any(node.has("GPU") >= 1 for node in nodes) else 0.0
    size = Replicas(
        0,
        gpus,
        _cores(cluster, gpus, nodes),
        memory=memory,
        selector=selector,
        follows=cluster.actors is None,
    )
    fitting = [size.room_on(node) for node in nodes]
    # An autoscaling cluster may still grow to what was asked for; one that cannot fit any is a mistake.
    if not sum(fitting) and (cluster.actors is None or not may_grow()):
        raise UserError(too_small(size, nodes))
    actors = cluster.actors or sum(fitting)
    return replace(size, actors=actors, per_node=max(1, min(actors, max(fitting, default=1))))


def _cores(cluster: ClusterSettings, gpus: float, nodes: Sequence[Node]) -> float:
    """What one actor gets: what was asked for, else its share of a node's."""
    if cluster.cpus_per_actor:
        return cluster.cpus_per_actor
    if gpus > 0:
        # One that lends no core, as a head may, gets no actor either.
        lending = [node for node in nodes if node.has("GPU") >= gpus and node.has("CPU") > 0]
        shares = [node.has("CPU") / (node.has("GPU") // gpus) for node in lending]
        share = min(shares, default=1.0)
        return float(int(share)) if share >= 1 else share  # there may be fewer cores than GPUs
    cores = [node.has("CPU") for node in nodes if node.has("CPU") >= 1]
    if not cores:
        raise UserError("--cpus-per-actor: no node of the cluster lends a core")
    if not cluster.actors:
        return min(cores)
    # The most of which all of them find a place: each lives on one node.
    fewer = range(int(max(cores)), 1, -1)
    return float(next((s for s in fewer if sum(each // s for each in cores) >= cluster.actors), 1))


def too_small(size: Replicas, nodes: Sequence[Node]) -> str:
    """Why none of the nodes has room for one actor: of those that it may be on."""
    nodes = [node for node in nodes if node.carries(size.selector) and not node.leaving]
    if size.selector and not nodes:
        selector = ",".join(f"{name}={wanted}" for name, wanted in size.selector.items())
        return _no_such_labels(selector)
    smaller = "--dtype, --quantization or --placement stream need less"
    wanted = {
        "GPU": (size.gpus, 1, "GPUs", "fewer --gpus-per-actor, or 0 to run on the processors"),
        "CPU": (size.cpus, 1, "cores", "fewer --cpus-per-actor"),
        "memory": (size.memory, 1e9, "GB of memory", smaller),
    }
    for name, (each, scale, unit, instead) in wanted.items():
        most = max((node.has(name) for node in nodes), default=0.0)
        if each > most:
            told = f"no node has {each / scale:.3g} {unit} for one actor, the largest has {most / scale:.3g}"
            return f"{told}: {instead}"
    return "no node has the GPUs, cores and memory of one actor together"


def _no_such_labels(selector: str | None) -> str:
    return f"--label-selector {selector}: no node of the cluster has these labels"


def surroundings(size: Replicas) -> dict[str, dict[str, str]] | None:
    """Ray's `runtime_env` of one that gets so much: Ray leaves GPUs in sight of who is to have none. None
    where there is nothing to hide: a process with surroundings of its own takes a second longer to start."""
    hide = not size.gpus and any(node.has("GPU") for node in alive_nodes())
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if hide else None


def most_gpus(cluster: ClusterSettings) -> float:
    """GPUs of the node that has most of them, of those that may be used."""
    need_ray()
    return max((node.has("GPU") for node in alive_nodes() if node.carries(cluster.selector)), default=0.0)
