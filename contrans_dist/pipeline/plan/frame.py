"""What all stages of a run are planned from, and the actors that they get."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from contrans_dist.config import ModelSettings, Recipe
from contrans_dist.engine.capture.streamed import MEMORY
from contrans_dist.models import CPU_TOKENS, DTYPES
from contrans_dist.models.classifier import BATCH_SIZE
from contrans_dist.models.needs import Needs, activation_bytes, cached_bytes, needs
from contrans_dist.models.placement import Placement, choose_placement, fewest_gpus, gpu_counts
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.plan.calls import Call, Generated
from contrans_dist.pipeline.plan.parts import Actors, Nodes
from contrans_dist.pipeline.plan.sides import Judge, Models, Side

HEAD_TOKENS = 4096
"""Tokens of a batch in an evaluation."""


class Frame:
    """A run's recipe, texts and models, and the cluster.

    `base_memory`: bytes of an actor's process before it loads anything.
    """

    def __init__(
        self,
        recipe: Recipe,
        texts: RecipeTexts,
        nodes: Nodes,
        base_memory: int,
        models: Models,
    ) -> None:
        self.texts, self.recipe = texts, recipe
        self.nodes, self.base_memory, self.models = nodes, base_memory, models
        self.placed = texts.placed_recipe()
        """The recipe with the places of its files."""
        self.chosen: dict[Any, Actors] = {}

    @cached_property
    def corpus(self) -> pa.Table:
        return self.texts.corpus()

    @cached_property
    def contrast(self) -> pa.Table:
        return self.texts.contrast()

    def side(self, model: ModelSettings) -> Side:
        """The model, described."""
        return self.models.side(model)

    def harvesters(self, side: Side, highest: int, held: int, tokens: int) -> Actors:
        """Actors of a harvest up to a block. `held`: bytes of captured rows in memory; `tokens`: those whose
        states a streamed model keeps."""
        batch = self.recipe.batch_tokens
        gpus, placement = self._placed(side, (), highest, head=False, batch=batch)
        need = self._needs(side, highest, False, batch if gpus else min(batch, CPU_TOKENS))
        memory = self.base_memory + held
        if placement.kind == "stream":
            states = min(MEMORY, tokens * side.d * DTYPES[side.dtype].itemsize)
            memory += max(need.embedding, 2 * need.largest_block) + need.activations + states
        elif not gpus:
            memory += need.total
        return self._actors(side.name, "harvest", gpus, placement, need.weights, need.activations, memory)

    def answerers(self, sides: Sequence[Side], calls: Sequence[Call] = ()) -> Actors:
        """Actors of an evaluation, or of another system than the target; the model that answers is first.

        With the memory that they take where some of these calls generate texts; a run does not look at that
        when it chooses GPUs.
        """
        generated = max((call.together for call in calls if isinstance(call, Generated)), default=0)
        key = (*(side.model for side in sides), generated)
        if key not in self.chosen:
            first, *beside = sides
            gpus, placement = self._placed(first, beside, None, head=True, batch=HEAD_TOKENS)
            batch = HEAD_TOKENS if gpus else min(HEAD_TOKENS, CPU_TOKENS)
            found = [self._needs(side, None, True, batch) for side in sides]
            weights = sum(need.weights for need in found)
            activations = max(sum(need.activations for need in found), _generating(sides, generated))
            memory = self.base_memory + (0 if gpus else weights + activations)
            name, use = " + ".join(side.name for side in sides), "generate" if generated else "evaluate"
            self.chosen[key] = self._actors(name, use, gpus, placement, weights, activations, memory)
        return self.chosen[key]

    def judges(self, judge: Judge, length: int) -> Actors:
        """Actors of a classifier of texts of so many tokens: on a GPU each where there are any."""
        asked, any_gpus = self.recipe.cluster.one_gpu_each().gpus_per_actor, float(self.nodes.gpus > 0)
        gpus = any_gpus if asked is None else asked
        activations = judge.activations(BATCH_SIZE * length)
        memory = self.base_memory + (0 if gpus else judge.weights + activations)
        placement = Placement("resident", "a classifier lies on one device")
        return self._actors(judge.name, "judge", gpus, placement, judge.weights, activations, memory)

    def _needs(self, side: Side, highest: int | None, head: bool, batch: int) -> Needs:
        return needs(side.at(highest, head), side.dtype, side.model.quantization, batch, head)

    def _placed(
        self, side: Side, beside: Sequence[Side], highest: int | None, head: bool, batch: int
    ) -> tuple[float, Placement]:
        """(GPUs of an actor, placement), as the run itself will choose them."""
        cluster, nodes = self.recipe.cluster, self.nodes

        def choose(gpus: float) -> Placement:
            memories: dict[Any, int] = dict.fromkeys(range(math.ceil(gpus)), nodes.gpu_memory)
            return choose_placement(
                side.model.id,
                **side.model.model_dump(exclude={"id"}),
                highest_block=highest,
                head=head,
                asked="auto" if head and cluster.placement == "stream" else cluster.placement,
                memories=memories | {"cpu": nodes.memory},
                batch_tokens=batch,
                share=min(gpus, 1.0) if gpus else 1.0 / self._by_cores(),
                beside=[each.model for each in beside],
            )

        return fewest_gpus(gpu_counts(cluster.gpus_per_actor, nodes.gpus), choose, side.model.id, head)

    def _by_cores(self) -> int:
        """Actors without GPUs that a node's cores have room for."""
        cluster, nodes = self.recipe.cluster, self.nodes
        shared = max(1, nodes.cpus * nodes.count // cluster.actors) if cluster.actors else nodes.cpus
        return max(1, int(nodes.cpus // (cluster.cpus_per_actor or min(shared, nodes.cpus))))

    def _actors(
        self,
        name: str,
        use: str,
        gpus: float,
        placement: Placement,
        weights: int,
        activations: int,
        memory: int,
    ) -> Actors:
        """So many as the nodes have room for, or as were asked for. `memory`: of an actor's process."""
        nodes, asked = self.nodes, self.recipe.cluster.actors
        by_node = int(nodes.gpus // gpus) if gpus else self._by_cores()
        fit = nodes.count * max(1, min(by_node, int(nodes.memory // memory) or 1))
        count = min(asked or fit, fit) if gpus else asked or fit
        return Actors(
            model=name,
            use=use,
            placement=placement.kind,
            why=placement.reason,
            weights=weights,
            activations=activations,
            memory=memory,
            gpus=gpus,
            count=count,
            threads=max(1, int(nodes.cpus * nodes.count // count)),
        )


def _generating(sides: Sequence[Side], tokens: int) -> int:
    """Bytes besides the weights for a batch of so many tokens, prompts and what is written after them: keys
    and values in each model, and in one after the other the pass over the prompts."""
    configs = [(side.lm.config, DTYPES[side.dtype].itemsize) for side in sides]
    passes = [activation_bytes(config, tokens, size, head=False) for config, size in configs]
    return max(passes) + sum(cached_bytes(config, tokens, size) for config, size in configs)
