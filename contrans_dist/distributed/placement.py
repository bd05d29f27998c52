"""What an actor gets and how it holds its model: found out where an actor will be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from contrans_dist.config import BATCH_TOKENS, ClusterSettings, ModelSettings
from contrans_dist.console import count_of, note
from contrans_dist.distributed.cluster import Replicas, most_gpus, replicas
from contrans_dist.distributed.here import stays_here, this_process
from contrans_dist.distributed.nodes import NODE_ID, Node, alive_nodes
from contrans_dist.distributed.tasks import on_a_node, on_nodes
from contrans_dist.errors import NoGpuError, UserError
from contrans_dist.models.devices import check_gpus
from contrans_dist.models.placed import fewest_gpus
from contrans_dist.models.placement import Placement, choose_placement, needs_nodes


def place(
    model: ModelSettings,
    cluster: ClusterSettings,
    *,
    head: bool,
    highest_block: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    beside: Sequence[ModelSettings] = (),
    operations: float = math.inf,
) -> tuple[Replicas, Placement]:
    """The actors of a stage, each with the fewest GPUs that hold the model unless their number was asked for,
    and on the nodes that hold it.

    Says what was chosen, and why.

    Args:
        model: The one that each actor runs.
        cluster: What was asked for.
        head: Whether its head for predicting tokens is loaded.
        highest_block: Above which no block is loaded; None loads all.
        batch_tokens: Tokens in one forward pass.
        beside: Models that each actor loads as well.
        operations: Of floating point, all that is to be done; little of it is done in this process (see
            `stays_here`).

    Raises:
        UserError: For a model that cannot be held (see `fewest_gpus`), and where torch cannot use the GPUs
            that Ray has.
    """
    here = stays_here(cluster, operations)
    excluded: dict[float, list[str]] = {}

    def size_with(gpus: float, memory: int = 0) -> Replicas:
        if here:
            return this_process()
        return replicas(cluster.model_copy(update={"gpus_per_actor": gpus}), memory=memory)

    def choose(gpus: float) -> Placement:
        size = size_with(gpus)
        choice = partial(
            _chosen,
            size.gpus,
            model,
            highest_block=highest_block,
            head=head,
            placement=cluster.placement,
            batch_tokens=batch_tokens,
            share=size.share,
            beside=tuple(beside),
        )
        placement, excluded[gpus] = _judged(choice, size)
        return placement

    gpus, placement = fewest_gpus(model.id, cluster, 0.0 if here else most_gpus(cluster), head, choose)
    note(f"{model.id}: {placement.reason}")
    return (
        size_with(gpus) if here else _on_holding(model.id, size_with, gpus, placement, excluded[gpus])
    ), placement


def _on_holding(
    model: str,
    size_with: Callable[..., Replicas],
    gpus: float,
    placement: Placement,
    excluded: Sequence[str],
) -> Replicas:
    """The actors on the nodes that hold the model: not on the `excluded` ones, and with their memory set
    apart, so that no node gets more of them than it holds."""
    nodes = [node for node in alive_nodes() if node.id not in excluded]
    size = size_with(gpus)
    # Ray counts as memory what it does not keep for objects: a model may take more of a node than that.
    most = min((int(node.has("memory") // size.per_node) for node in nodes if size.room_on(node)), default=0)
    size = size_with(gpus, min(placement.memory, most))
    line = len(placement.stages) or 1
    if excluded:
        note(f"{count_of(len(excluded), 'node')} of the cluster cannot hold the model so, and get none")
        size = replace(size, selector={**size.selector, NODE_ID: f"!in({','.join(excluded)})"})
        size = replace(size, actors=max(1, size.room(nodes)))
    if line > 1:
        places = sum(map(size.room_on, nodes))
        if size.follows and places < line:
            raise UserError(needs_nodes(model, line, places))
        size = replace(size, line=line, actors=places // line if size.follows else size.actors)
    return size


def _chosen(gpus: float, model: ModelSettings, **options: Any) -> Placement:
    """As `choose_placement`, in a process that has so many GPUs."""
    check_gpus(gpus)
    return choose_placement(model, **options)


def _judged(choice: Any, size: Replicas) -> tuple[Placement, list[str]]:
    """How a model is placed on the nodes that hold it best, and the ids of the others."""
    nodes = [] if size.here else [node for node in alive_nodes() if size.room_on(node)]
    kinds: dict[Any, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.kind, []).append(node)
    if len(kinds) < 2:
        return on_a_node(choice, size), []
    found = on_nodes(choice, size, [same[0] for same in kinds.values()])
    placements = {node: each for node, each in found.items() if isinstance(each, Placement)}
    if not placements:
        raise next(iter(found.values()))
    for error in found.values():
        if isinstance(error, NoGpuError):
            note(str(error))
    holding = {node: each for node, each in placements.items() if each.kind != "stream"} or placements
    # What holds it where least is free holds it on the others.
    chosen = min(holding.values(), key=lambda each: each.free)
    return chosen, [node.id for same in kinds.values() if same[0].id not in holding for node in same]
