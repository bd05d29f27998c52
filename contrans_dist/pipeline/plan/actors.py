"""The nodes that are planned for, and the actors that models get on them, as a run itself would choose."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from contrans_dist.config import BATCH_TOKENS, ClusterSettings
from contrans_dist.distributed.cluster import Replicas, replicas
from contrans_dist.distributed.nodes import Node
from contrans_dist.engine.capture.streamed import MEMORY
from contrans_dist.errors import UserError
from contrans_dist.harvest.actors import slots_of
from contrans_dist.models import CPU_TOKENS, DTYPES
from contrans_dist.models.classifier import BATCH_SIZE
from contrans_dist.models.devices import gpu_count, host_memory
from contrans_dist.models.needs import Needs, activation_bytes, cached_bytes
from contrans_dist.models.placed import fewest_gpus
from contrans_dist.models.placement import Placement, choose_placement, needs_nodes
from contrans_dist.pipeline.plan.models import PlannedJudge, PlannedModel


@dataclass(frozen=True)
class Nodes:
    """The cluster to plan for: so many nodes of one kind. Memory in bytes."""

    count: int
    cpus: float
    memory: int
    gpus: int = 0
    gpu_memory: int = 0

    @classmethod
    def here(cls) -> "Nodes":
        """This machine."""
        import torch

        gpus = gpu_count()
        room = torch.cuda.get_device_properties(0).total_memory if gpus else 0
        return cls(1, float(os.cpu_count() or 1), host_memory(), gpus, room)


@dataclass(frozen=True)
class ActorNeeds:
    """What one actor of a stage takes, and how many fit. Bytes; of all models that it loads."""

    model: str
    use: str
    """`harvest`, `evaluate`, `generate` or `judge`"""
    placement: str
    why: str
    weights: int
    read: int
    """Of the weights as the checkpoint has them."""
    activations: int
    memory: int
    """Of the node, by its process at the peak."""
    gpus: float
    count: int
    threads: int
    """Of each, where it runs on the CPU."""
    stages: int = 1
    """Over which one lies, which compute beside each other."""

    def batch(self, tokens: int) -> int:
        """Tokens of a batch where so many are wanted."""
        return tokens if self.gpus else min(tokens, CPU_TOKENS)


class Placing:
    """Who runs what on the nodes, with a recipe's settings of the cluster.

    `base_memory`: bytes of an actor's process before it loads anything. Its methods raise UserError for a
    model that the nodes cannot hold.
    """

    def __init__(self, cluster: ClusterSettings, nodes: Nodes, base_memory: int) -> None:
        self.cluster, self.nodes, self.base_memory = cluster, nodes, base_memory
        self._placed = cache(self._choice)

    def harvesters(
        self, model: PlannedModel, highest: int, batch_tokens: int, rows: int, tokens: int
    ) -> ActorNeeds:
        """Actors of a harvest up to a block. `rows`: bytes in memory of the captured rows of each shard that
        an actor has; `tokens`: those whose states a streamed model keeps."""
        gpus, placement = self._placed((model,), highest, False, batch_tokens)
        batch = batch_tokens if gpus else min(batch_tokens, CPU_TOKENS)
        need = model.needs(highest, False, batch, placement.narrow)
        memory = slots_of(placement, gpus) * rows
        if placement.kind == "stream":
            states = min(MEMORY, tokens * model.d * DTYPES[model.dtype].itemsize)
            memory += max(need.embedding, 2 * need.largest_block) + need.activations + states
        elif placement.kind == "pipeline":
            memory += placement.memory
        elif not gpus:
            memory += need.total
        actors = self._actors(model.name, "harvest", gpus, placement, need, memory)
        line = len(placement.stages) or 1
        if actors.count < line:
            raise UserError(needs_nodes(model.name, line, actors.count))
        return replace(actors, count=self.cluster.actors or actors.count // line, stages=line)

    def answerers(self, models: Sequence[PlannedModel], together: int = 0) -> ActorNeeds:
        """Actors of an evaluation, or of another system than the target; the model that answers is first.

        `together`: tokens of the largest batch of texts that they write, which takes memory; a run does not
        look at that when it chooses GPUs.
        """
        gpus, placement = self._placed(tuple(models), None, True, BATCH_TOKENS)
        batch = BATCH_TOKENS if gpus else min(BATCH_TOKENS, CPU_TOKENS)
        needs = [model.needs(None, True, batch, placement.narrow) for model in models]
        need = replace(
            needs[0],
            weights=sum(need.weights for need in needs),
            read=sum(need.read for need in needs),
            activations=max(sum(need.activations for need in needs), _generating(models, together)),
        )
        name = " + ".join(model.name for model in models)
        use = "generate" if together else "evaluate"
        return self._actors(name, use, gpus, placement, need, 0 if gpus else need.total)

    def judges(self, judge: PlannedJudge, length: int) -> ActorNeeds:
        """Actors of a classifier of texts of so many tokens: on a GPU each where there are any."""
        gpus = self._size(self.cluster.one_gpu_each().gpus_per_actor).gpus
        itemsize = DTYPES[judge.dtype].itemsize
        activations = activation_bytes(judge.config, BATCH_SIZE * length, itemsize, head=False)
        need = Needs(judge.weights, activations, 0, read=judge.weights)
        placement = Placement("resident", "a classifier lies on one device")
        return self._actors(judge.name, "judge", gpus, placement, need, 0 if gpus else need.total)

    def _choice(
        self, models: tuple[PlannedModel, ...], highest: int | None, head: bool, batch: int
    ) -> tuple[float, Placement]:
        """(GPUs of an actor, placement) of the first model with the others beside it."""
        nodes, (first, *beside) = self.nodes, [model.settings for model in models]
        cluster = self.cluster.for_steering() if head else self.cluster

        def choose(gpus: float) -> Placement:
            memories: dict[Any, int] = dict.fromkeys(range(math.ceil(gpus)), nodes.gpu_memory)
            return choose_placement(
                first,
                highest_block=highest,
                head=head,
                placement=cluster.placement,
                memories=memories | {"cpu": nodes.memory},
                share=self._size(gpus).share,
                batch_tokens=batch,
                beside=beside,
            )

        return fewest_gpus(first.id, cluster, nodes.gpus, head, choose)

    def _size(self, gpus: float | None) -> Replicas:
        """How many actors with so many GPUs the nodes have room for."""
        node = Node({"CPU": self.nodes.cpus, "GPU": self.nodes.gpus})
        cluster = self.cluster.model_copy(update={"gpus_per_actor": gpus, "label_selector": None})
        return replicas(cluster, [node] * self.nodes.count)

    def _actors(
        self, name: str, use: str, gpus: float, placement: Placement, need: Needs, memory: int
    ) -> ActorNeeds:
        """As many as the nodes have room for, or as are wanted. `memory`: of a process beside its base."""
        nodes, memory = self.nodes, self.base_memory + memory
        fit = nodes.count * max(1, min(self._size(gpus).per_node, int(nodes.memory // memory)))
        count = self.cluster.actors or fit
        if gpus:  # an actor without its GPUs would never start
            count = min(count, nodes.count * max(1, int(nodes.gpus // gpus)))
        return ActorNeeds(
            model=name, use=use, placement=placement.kind, why=placement.reason,
            weights=need.weights, read=need.read, activations=need.activations, memory=memory,
            gpus=gpus, count=count, threads=max(1, int(nodes.cpus * nodes.count // count)),
        )  # fmt: skip


def _generating(models: Sequence[PlannedModel], tokens: int) -> int:
    """Bytes besides the weights for a batch of so many tokens, prompts and what is written after them: keys
    and values in each model, and in one after the other the pass over the prompts."""
    sizes = [(model.config, DTYPES[model.dtype].itemsize) for model in models]
    passes = [activation_bytes(config, tokens, size, head=False) for config, size in sizes]
    return max(passes) + sum(cached_bytes(config, tokens, size) for config, size in sizes)
