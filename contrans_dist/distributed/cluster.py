"""A Ray cluster: connecting to it, and what it has room for."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError

from contrans_dist.config import ClusterSettings
from contrans_dist.distributed.local_ray import connect, first_line, local_ray
from contrans_dist.errors import RunError, UserError

_CONNECT_SECONDS = 10.0
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

    @property
    def share(self) -> float:
        """Of the memory of its devices, what one actor may take."""
        return min(self.gpus, 1.0) if self.gpus else 1.0 / self.per_node


def replicas(cluster: ClusterSettings, nodes: Sequence[Mapping[str, float]] | None = None) -> Replicas:
    """Fit actors to nodes. An actor lives on one node, so GPUs are counted by node.

    Args:
        cluster: What was asked for.
        nodes: What each node has, `CPU` and `GPU`; None are those that are alive.

    Raises:
        UserError: When no node is large enough for one actor.
    """
    if nodes is None:
        need_ray()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = cluster.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if gpus > 0:
        fitting = [int(node.get("GPU", 0) // gpus) for node in nodes]
        _check_fit(cluster, sum(fitting), f"{gpus:g} GPUs", max(n.get("GPU", 0) for n in nodes))
        actors = cluster.actors or sum(fitting)
        shares = [node.get("CPU", 0) / fit for node, fit in zip(nodes, fitting, strict=True) if fit]
        cpus = cluster.cpus_per_actor or max(1.0, float(int(min(shares, default=1.0))))
        return Replicas(actors, gpus, cpus, max(1, min(actors, max(fitting))))
    cores = [node.get("CPU", 0) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise UserError("--cpus-per-actor: no node of the cluster lends a core")
    share = float(max(1, int(sum(cores) // cluster.actors))) if cluster.actors else min(cores)
    cpus = cluster.cpus_per_actor or min(share, max(cores))
    fit = sum(int(node // cpus) for node in cores)
    _check_fit(cluster, fit, f"{cpus:g} cores", max(cores))
    actors = cluster.actors or max(fit, 1)
    return Replicas(actors, 0.0, cpus, max(1, min(actors, int(max(cores) // cpus))))


def most_gpus() -> float:
    """GPUs of the node that has most of them."""
    need_ray()
    return max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)


def _check_fit(cluster: ClusterSettings, fit: int, wanted: str, largest: float) -> None:
    # An autoscaling cluster may still grow to what was asked for; one that cannot fit any is a mistake.
    if fit == 0 and cluster.actors is None:
        raise UserError(f"no node has {wanted} for one actor; the largest has {largest:g}")
