"""The precision that a model is computed in, chosen once for all actors on all nodes, so that it does not
matter which of them makes a row."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import ray
import torch

from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.distributed.cluster import connected, replicas
from contrans_dist.distributed.tasks import on_a_node
from contrans_dist.models.loading import describe
from contrans_dist.models.precision import choice, say
from contrans_dist.models.weight_files import is_quantised


def settled(
    model: ModelSettings,
    cluster: ClusterSettings,
    held: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> ModelSettings:
    """The settings of a model with the precision that it is computed in on whatever node, where there is a
    choice.

    What is set is kept; then what the rows say that are there already, which are gone on with as they were
    begun; else it is measured where an actor would be, and said.

    Args:
        model: The model.
        cluster: Where its actors run.
        held: Gives the model's identity in the rows that are there, if any are.

    Raises:
        UserError: As `load_model`.
        RunError: As `load_model`, and when no cluster answers.
    """
    if model.compute_dtype is not None or model.quantization is not None:
        return model
    described = describe(model.id, head=False, trust_remote_code=model.trust_remote_code)
    weights = described.dtype(model.dtype)
    if weights == "float32" or is_quantised(described.full):
        return model
    recorded = (held() or {}).get("compute_dtype")
    return model.model_copy(update={"compute_dtype": recorded or _measured(model.id, weights, cluster)})


def _measured(name: str, weights: str, cluster: ClusterSettings) -> str:
    """The precision for weights of one that is not float32."""
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and not ray.is_initialized():
        gpus = torch.cuda.is_available() if cluster.gpus_per_actor is None else cluster.gpus_per_actor
        chosen, why = choice(weights, bool(gpus))
    else:
        with connected(cluster.address):
            chosen, why = _on_a_node(weights, cluster, ray.get_runtime_context().get_job_id())
    if why:
        say(name, why)
    return chosen


@cache
def _on_a_node(weights: str, cluster: ClusterSettings, job: str) -> tuple[str, str]:
    """As `choice`, where an actor would be. Once for a connection to Ray, which `job` names: to ask another
    node ends actors that are kept."""
    size = replicas(cluster)
    chosen, why = on_a_node(choice, size, weights, size.gpus > 0)
    return chosen, why
