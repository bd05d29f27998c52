"""What the stages of a run are planned from: its recipe, texts and models; and the actors that they get."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from contrans_dist.config import ModelSettings, Recipe
from contrans_dist.distributed.cluster import Replicas, replicas
from contrans_dist.engine.capture.streamed import MEMORY
from contrans_dist.models import CPU_TOKENS, DTYPES
from contrans_dist.models.classifier import BATCH_SIZE
from contrans_dist.models.needs import Needs, activation_bytes, cached_bytes, needs
from contrans_dist.models.placement import Placement, choose_placement, fewest_gpus
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.plan.costs import Cost, Generated
from contrans_dist.pipeline.plan.models import PlannedJudge, PlannedModel
from contrans_dist.pipeline.plan.stages import Actors, Nodes

HEAD_TOKENS = 4096
"""Tokens of a batch in an evaluation."""


class PlannedRun:
    """A run's recipe, texts and models, and the cluster.

    `base_memory`: bytes of an actor's process before it loads anything. `before`: a run whose models serve
    this one as well, each described once.
    """

    def __init__(
        self, recipe: Recipe, texts: RecipeTexts, nodes: Nodes, base_memory: int, before: "PlannedRun | None"
    ) -> None:
        self.texts, self.recipe = texts, recipe
        self.nodes, self.base_memory = nodes, base_memory
        self.placed = texts.placed_recipe()
        """The recipe with the places of its files."""
        self._models: dict[ModelSettings, PlannedModel] = before._models if before else {}
        self._judges: dict[str, PlannedJudge] = before._judges if before else {}
        self._answerers: dict[Any, Actors] = {}

    @cached_property
    def corpus(self) -> pa.Table:
        return self.texts.corpus()

    @cached_property
    def contrast(self) -> pa.Table:
        return self.texts.contrast()

    def model(self, settings: ModelSettings) -> PlannedModel:
        if settings not in self._models:
            self._models[settings] = PlannedModel(settings)
        return self._models[settings]

    def judge(self, name: str) -> PlannedJudge:
        if name not in self._judges:
            self._judges[name] = PlannedJudge(name)
        return self._judges[name]

    def harvesters(self, model: PlannedModel, highest: int, held: int, tokens: int) -> Actors:
        """Actors of a harvest up to a block. `held`: bytes of captured rows in memory; `tokens`: those whose
        states a streamed model keeps."""
        batch = self.recipe.batch_tokens
        gpus, placement = self._placed(model, (), highest, head=False, batch=batch)
        need = _needs(model, highest, False, batch if gpus else min(batch, CPU_TOKENS))
        memory = self.base_memory + held
        if placement.kind == "stream":
            states = min(MEMORY, tokens * model.d * DTYPES[model.dtype].itemsize)
            memory += max(need.embedding, 2 * need.largest_block) + need.activations + states
        elif not gpus:
            memory += need.total
        return self._actors(model.name, "harvest", gpus, placement, need, memory)

    def answerers(self, models: Sequence[PlannedModel], costs: Sequence[Cost] = ()) -> Actors:
        """Actors of an evaluation, or of another system than the target; the model that answers is first.

        With the memory that they take where some of these calls generate texts; a run does not look at that
        when it chooses GPUs.
        """
        generated = max((cost.together for cost in costs if isinstance(cost, Generated)), default=0)
        key = (*(model.settings for model in models), generated)
        if key not in self._answerers:
            first, *beside = models
            gpus, placement = self._placed(first, beside, None, head=True, batch=HEAD_TOKENS)
            batch = HEAD_TOKENS if gpus else min(HEAD_TOKENS, CPU_TOKENS)
            every = [_needs(model, None, True, batch) for model in models]
            need = replace(
                every[0],
                weights=sum(each.weights for each in every),
                activations=max(sum(each.activations for each in every), _generating(models, generated)),
            )
            memory = self.base_memory + (0 if gpus else need.total)
            name, use = " + ".join(model.name for model in models), "generate" if generated else "evaluate"
            self._answerers[key] = self._actors(name, use, gpus, placement, need, memory)
        return self._answerers[key]

    def judges(self, judge: PlannedJudge, length: int) -> Actors:
        """Actors of a classifier of texts of so many tokens: on a GPU each where there are any."""
        gpus = self._size(self.recipe.cluster.one_gpu_each().gpus_per_actor).gpus
        itemsize = DTYPES[judge.dtype].itemsize
        activations = activation_bytes(judge.config, BATCH_SIZE * length, itemsize, head=False)
        need = Needs(judge.weights, activations, 0)
        placement = Placement("resident", "a classifier lies on one device")
        memory = self.base_memory + (0 if gpus else need.total)
        return self._actors(judge.name, "judge", gpus, placement, need, memory)

    def _placed(
        self, model: PlannedModel, beside: Sequence[PlannedModel], highest: int | None, head: bool, batch: int
    ) -> tuple[float, Placement]:
        """(GPUs of an actor, placement), as the run itself will choose them."""
        cluster, nodes, settings = self.recipe.cluster, self.nodes, model.settings
        if head and cluster.placement == "stream":
            cluster = cluster.model_copy(update={"placement": "auto"})

        def choose(gpus: float) -> Placement:
            memories: dict[Any, int] = dict.fromkeys(range(math.ceil(gpus)), nodes.gpu_memory)
            return choose_placement(
                settings,
                highest_block=highest,
                head=head,
                placement=cluster.placement,
                memories=memories | {"cpu": nodes.memory},
                batch_tokens=batch,
                share=self._size(gpus).share,
                beside=[each.settings for each in beside],
            )

        return fewest_gpus(settings.id, cluster, nodes.gpus, head, choose)

    def _size(self, gpus: float | None) -> Replicas:
        """How many actors with so many GPUs the nodes have room for, as the run itself will find."""
        each = {"CPU": self.nodes.cpus, "GPU": self.nodes.gpus}
        cluster = self.recipe.cluster.model_copy(update={"gpus_per_actor": gpus})
        return replicas(cluster, [each] * self.nodes.count)

    def _actors(
        self, name: str, use: str, gpus: float, placement: Placement, need: Needs, memory: int
    ) -> Actors:
        """So many as the nodes have room for, or as were asked for. `memory`: of an actor's process."""
        nodes, size = self.nodes, self._size(gpus)
        fit = nodes.count * max(1, min(size.per_node, int(nodes.memory // memory)))
        count = self.recipe.cluster.actors or fit
        if gpus:  # an actor without its GPUs would never start
            count = min(count, nodes.count * max(1, int(nodes.gpus // gpus)))
        return Actors(
            model=name, use=use, placement=placement.kind, why=placement.reason,
            weights=need.weights, activations=need.activations, memory=memory,
            gpus=gpus, count=count, threads=max(1, int(nodes.cpus * nodes.count // count)),
        )  # fmt: skip


def _needs(model: PlannedModel, highest: int | None, head: bool, batch: int) -> Needs:
    return needs(model.up_to(highest, head), model.settings, batch)


def _generating(models: Sequence[PlannedModel], tokens: int) -> int:
    """Bytes besides the weights for a batch of so many tokens, prompts and what is written after them: keys
    and values in each model, and in one after the other the pass over the prompts."""
    configs = [(model.lm.config, DTYPES[model.dtype].itemsize) for model in models]
    passes = [activation_bytes(config, tokens, size, head=False) for config, size in configs]
    return max(passes) + sum(cached_bytes(config, tokens, size) for config, size in configs)
