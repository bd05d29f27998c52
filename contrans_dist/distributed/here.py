"""Work that stays in the driver's own process: it takes less time than Ray takes to start."""

import os

import ray
import torch

from contrans_dist.config import ClusterSettings
from contrans_dist.distributed.cluster import Replicas

_MOST_OPERATIONS = 1e13
"""Of floating point; a minute or two of two cores. What ends the driver's process ends the work with it, and
is not survived as the loss of an actor is: little of it must be at stake."""
_CHARACTERS = 3
"""That a token has at least, in most texts."""


def stays_here(cluster: ClusterSettings, operations: float) -> bool:
    """Whether work is done in this process: there is little of it, nobody asked for a cluster or for actors,
    there is no GPU, and Ray is not up.

    `operations`: of floating point, estimated; too many rather than too few.
    """
    actors = (cluster.actors, cluster.gpus_per_actor, cluster.cpus_per_actor)
    asked = cluster.address or os.environ.get("RAY_ADDRESS") or any(actors)
    asked = asked or cluster.placement in ("stream", "pipeline")
    return not (asked or operations > _MOST_OPERATIONS or ray.is_initialized() or torch.cuda.is_available())


def operations(parameters: int, characters: float, tokens: float = 0.0) -> float:
    """Of floating point, for texts of so many characters, and further tokens, through a model: two for each
    weight and token."""
    return 2.0 * parameters * (characters / _CHARACTERS + tokens)


def this_process() -> Replicas:
    """One actor in this process, with as many threads as the matrix library takes."""
    return Replicas(1, 0.0, float(torch.get_num_threads()), here=True)
