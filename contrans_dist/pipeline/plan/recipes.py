"""The stages of a recipe that run a model: its harvests, then its evaluations, run by run."""

from pathlib import Path

from contrans_dist.config import Recipe
from contrans_dist.config.recipe import runs_of
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.plan.evaluations import evaluation_stages
from contrans_dist.pipeline.plan.harvests import harvest_stages
from contrans_dist.pipeline.plan.run import PlannedRun
from contrans_dist.pipeline.plan.stages import Actors, Nodes, Stage


def plan_runs(recipe: Recipe, folder: Path, nodes: Nodes, base_memory: int) -> list[Stage]:
    """The stages of every run of a recipe, without their seconds; harvests that runs share are there once.

    Args:
        folder: a place for bundled texts.
        base_memory: bytes of an actor's process before it loads anything.

    Raises:
        UserError: for texts or models that are not there, and for a model that the nodes cannot hold.
    """
    stages: list[Stage] = []
    shared, run = set[str](), None
    for name, one in runs_of(recipe).items():
        run = PlannedRun(one, RecipeTexts(one, folder), nodes, base_memory, run)
        harvests = [stage for stage in harvest_stages(run) if stage.key not in shared]
        if recipe.runs:
            shared |= {stage.key for stage in harvests}
        for stage in [*harvests, *evaluation_stages(run)]:
            stage.run = name if recipe.runs else ""
            stage.begins = not (stages and _kept(stages[-1].actors, stage.actors))
            stages.append(stage)
    return stages


def _kept(before: Actors, actors: Actors) -> bool:
    """Whether a stage goes on with the actors of the one before: two harvests of one model made together, and
    whatever the same models answer, as a run keeps those until others are wanted."""
    answering = {actors.use, before.use} <= {"evaluate", "generate"}
    return actors is before or (answering and (actors.model, actors.gpus) == (before.model, before.gpus))
