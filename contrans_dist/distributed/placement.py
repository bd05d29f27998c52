"""What an actor gets and how it holds its model: found out where an actor will be."""

import math
from collections.abc import Sequence
from functools import partial

from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.console import note
from contrans_dist.distributed.actors import on_a_node
from contrans_dist.distributed.cluster import Replicas, most_gpus, replicas
from contrans_dist.distributed.in_process import stays_here, this_process
from contrans_dist.models.placement import Placement, choose_placement, fewest_gpus


def place(
    model: ModelSettings,
    cluster: ClusterSettings,
    *,
    head: bool,
    highest_block: int | None = None,
    batch_tokens: int = 4096,
    beside: Sequence[ModelSettings] = (),
    operations: float = math.inf,
) -> tuple[Replicas, Placement]:
    """The actors of a stage, each with the fewest GPUs that hold the model unless their number was asked for.

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
        UserError: For a model that cannot be held (see `fewest_gpus`).
    """

    here = stays_here(cluster, operations)

    def size_with(gpus: float) -> Replicas:
        return this_process() if here else replicas(cluster.model_copy(update={"gpus_per_actor": gpus}))

    def choose(gpus: float) -> Placement:
        size = size_with(gpus)
        choice = partial(
            choose_placement,
            model,
            highest_block=highest_block,
            head=head,
            placement=cluster.placement,
            batch_tokens=batch_tokens,
            share=size.share,
            beside=tuple(beside),
        )
        placement: Placement = on_a_node(choice, size)
        return placement

    gpus, placement = fewest_gpus(model.id, cluster, 0.0 if here else most_gpus(), head, choose)
    note(f"{model.id}: {placement.reason}")
    return size_with(gpus), placement
