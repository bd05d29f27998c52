"""The parts of a plan: runs and their stages; and the whole as plain values, with what limits it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import psutil
import pyarrow as pa

from contrans_dist.benchmarks.calls import Ids
from contrans_dist.config import ModelSettings, Recipe
from contrans_dist.console import size_words
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.plan.actors import ActorNeeds, Nodes, Placing
from contrans_dist.pipeline.plan.costs import Cost
from contrans_dist.pipeline.plan.models import PlannedJudge, PlannedModel


@dataclass(frozen=True)
class PlannedRun:
    """What the stages of a run are planned from."""

    recipe: Recipe
    texts: RecipeTexts
    placing: Placing
    model: Callable[[ModelSettings], PlannedModel]
    judge: Callable[[str], PlannedJudge]

    @cached_property
    def placed(self) -> Recipe:
        """The recipe with the places of its files."""
        return self.texts.placed_recipe()

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """The texts of each of `READS` that the recipe has."""
        return self.texts.tables()


@dataclass
class Stage:
    """One pool of actors, or a part of what it does."""

    name: str
    models: Sequence[PlannedModel | PlannedJudge]
    """Those that run, each for all of the cost."""
    texts: int
    tokens: int
    """Of the texts."""
    cost: Cost
    tasks: int
    """Pieces that the work comes in: more actors are of no use."""
    actors: ActorNeeds
    sample: Sequence[Ids] = ()
    """Some of what is run, for its lengths."""
    run: str = ""
    """Of a recipe with several."""
    key: str = ""
    """What a harvest holds: runs share those that hold the same."""
    begins: bool = True
    """Whether its actors are started for it, not left by the stage before."""
    disk: int = 0
    """Bytes of Parquet."""
    seconds: float = 0.0

    @property
    def passed(self) -> int:
        """Tokens in the forward passes of all its models."""
        return len(self.models) * self.cost.tokens

    @property
    def rounds(self) -> float:
        """Seconds that it takes for a second of work of one actor."""
        return -(-self.tasks // self.actors.count) / max(1, self.tasks)


def actor_memory() -> int:
    """Bytes of a process that has what an actor needs and no model: this one has it too."""
    return int(psutil.Process().memory_info().rss)


def as_content(stages: Sequence[Stage], nodes: Nodes, rate: str) -> dict[str, Any]:
    """The plan as plain values, with what limits it. `rate`: where the seconds come from, in words."""
    largest: dict[tuple[str, str, float], ActorNeeds] = {}
    for actors in (stage.actors for stage in stages):
        key = actors.model, actors.use, actors.gpus
        largest[key] = max(largest.get(key, actors), actors, key=lambda a: a.memory + a.activations)
    return {
        "cluster": asdict(nodes),
        "actors": [asdict(actors) for actors in largest.values()],
        "stages": [
            {
                "run": stage.run,
                "name": stage.name,
                "model": stage.actors.model,
                "texts": stage.texts,
                "tokens": stage.tokens,
                "tokens_in_passes": stage.passed,
                "disk": stage.disk,
                "seconds": round(stage.seconds, 3),
            }
            for stage in stages
        ],
        "disk": sum(stage.disk for stage in stages),
        "hours": sum(stage.seconds for stage in stages) / 3600,
        "rate": rate,
        "limits": limits(stages, nodes),
    }


def limits(stages: Sequence[Stage], nodes: Nodes) -> list[str]:
    """What holds the run back, the longest stage first."""
    longest = max(stages, key=lambda stage: stage.seconds)
    total = sum(stage.seconds for stage in stages) or 1.0
    name = f"{longest.name} of {longest.run}" if longest.run else longest.name
    lines = [f"time: {name} takes {longest.seconds / total:.0%} of it"] if longest.seconds else []
    for stage in stages:
        actors = stage.actors
        taken, room = actors.weights + actors.activations, actors.gpus * nodes.gpu_memory
        if actors.use == "generate" and actors.gpus and taken > room:
            lines.append(
                f"memory: {stage.name} takes {size_words(taken)} with a batch of texts, an actor of "
                f"{actors.model} has {size_words(room)} of GPU memory"
            )
        if actors.placement == "stream":
            lines.append(f"memory: {actors.model} is streamed: {actors.why}")
        elif actors.memory * actors.count > nodes.memory * nodes.count:
            lines.append(
                f"memory: {actors.count} actors of {actors.model} take {size_words(actors.memory)} each, a "
                f"node has {size_words(nodes.memory)}"
            )
        elif actors.gpus and nodes.gpus % actors.gpus:
            lines.append(
                f"GPUs: {actors.model} takes {actors.gpus:g} of a node's {nodes.gpus}; the rest stay idle"
            )
    return list(dict.fromkeys(lines))
