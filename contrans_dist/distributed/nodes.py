"""The nodes of a cluster as they are now: what each has, how it is labelled, whether it is about to go."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import ray
from ray._private.worker import global_worker

from contrans_dist.config.labels import matches

NODE_ID = "ray.io/node-id"
"""Ray's own label of a node."""
_ACCELERATOR = "ray.io/accelerator-type"


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    resources: Mapping[str, float]
    """`CPU`, `GPU`, `memory` in bytes, and others."""
    id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    leaving: bool = False
    """Whether it is being drained, as one is that is to be preempted: no actor is started there."""

    def has(self, name: str) -> float:
        return self.resources.get(name, 0.0)

    def carries(self, selector: Mapping[str, str]) -> bool:
        """Whether its labels are those that are asked for."""
        return all(matches(self.labels.get(name), wanted) for name, wanted in selector.items())

    @property
    def kind(self) -> tuple[float, float, int, str]:
        """What nodes that hold the same models have in common: cores, GPUs, memory in GB, type of GPU."""
        memory = round(self.has("memory") / 1e9)
        return self.has("CPU"), self.has("GPU"), memory, self.labels.get(_ACCELERATOR, "")


def alive_nodes() -> list[Node]:
    """Those of the cluster that Ray is connected to."""
    leaving = _leaving()
    return [
        Node(node["Resources"], node["NodeID"], node.get("Labels") or {}, node["NodeID"] in leaving)
        for node in ray.nodes()
        if node["Alive"]
    ]


def _leaving() -> set[str]:
    # There is no public name for it; Ray Serve asks the same.
    ask = getattr(getattr(global_worker, "gcs_client", None), "get_draining_nodes", None)
    return set(ask()) if ask is not None else set()


def node_here() -> str:
    """The node of the process that calls."""
    return str(ray.get_runtime_context().get_node_id())
