"""What a recipe will take: memory, disk and hours, from its texts and the models without their weights.

The benchmarks and the engine are asked what they would run.
"""

from functools import cache, partial
from pathlib import Path

from contrans_dist.config import Recipe
from contrans_dist.config.recipe import runs_of
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.plan.actors import ActorNeeds, Nodes, Placing
from contrans_dist.pipeline.plan.evaluations import evaluation_stages
from contrans_dist.pipeline.plan.harvests import harvest_stages
from contrans_dist.pipeline.plan.models import PlannedJudge, PlannedModel
from contrans_dist.pipeline.plan.stages import PlannedRun, Stage, actor_memory, as_content
from contrans_dist.pipeline.plan.times import from_rate, from_samples

__all__ = ["Nodes", "Stage", "actor_memory", "as_content", "from_rate", "from_samples", "plan_runs"]


def plan_runs(recipe: Recipe, folder: Path, nodes: Nodes, base_memory: int) -> list[Stage]:
    """The stages of every run of a recipe, without their seconds; harvests that runs share are there once.

    Args:
        recipe: What is to be run.
        folder: A place for bundled texts.
        nodes: What it is to run on.
        base_memory: Bytes of an actor's process before it loads anything (`actor_memory`).

    Returns:
        The stages that run a model: the harvests, then the evaluations, run by run.

    Raises:
        UserError: For texts or models that are not there, and for a model that the nodes cannot hold.
    """
    stages: list[Stage] = []
    shared = set[str]()
    model, judge = cache(PlannedModel), cache(PlannedJudge)
    for name, one in runs_of(recipe).items():
        placing = Placing(one.cluster, nodes, base_memory)
        on_gpu = nodes.gpus > 0 and one.cluster.gpus_per_actor != 0
        run = PlannedRun(one, RecipeTexts(one, folder), placing, partial(model, on_gpu=on_gpu), judge)
        harvests = [stage for stage in harvest_stages(run) if stage.key not in shared]
        if recipe.runs:
            shared |= {stage.key for stage in harvests}
        for stage in [*harvests, *evaluation_stages(run)]:
            stage.run = name if recipe.runs else ""
            stage.begins = not (stages and _kept(stages[-1].actors, stage.actors))
            stages.append(stage)
    return stages


def _kept(before: ActorNeeds, actors: ActorNeeds) -> bool:
    """Whether a stage goes on with the actors of the one before: two harvests of one model made together, and
    whatever the same models answer, as a run keeps those until others are wanted."""
    answering = {actors.use, before.use} <= {"evaluate", "generate"}
    return actors is before or (answering and (actors.model, actors.gpus) == (before.model, before.gpus))
