"""The stages of a recipe that run a model."""

from pathlib import Path

from contrans_dist.config import Recipe
from contrans_dist.config.recipe import runs_of
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.plan.evaluations import evaluation_stages
from contrans_dist.pipeline.plan.frame import Frame
from contrans_dist.pipeline.plan.harvests import harvest_stages
from contrans_dist.pipeline.plan.parts import Actors, Nodes, Stage
from contrans_dist.pipeline.plan.sides import Models


def plan_runs(recipe: Recipe, folder: Path, nodes: Nodes, base_memory: int) -> list[Stage]:
    """The stages of every run of a recipe, without their seconds; harvests that runs share are there once.

    `folder`: a place for bundled texts. `base_memory`: bytes of an actor's process before it loads anything.
    Raises UserError for texts or models that are not there, and for a model that the nodes cannot hold.
    """
    models, shared = Models(), set[str]()
    found: list[Stage] = []
    for name, one in runs_of(recipe).items():
        frame = Frame(one, RecipeTexts(one, folder), nodes, base_memory, models)
        harvests = [stage for stage in harvest_stages(frame) if stage.key not in shared]
        if recipe.runs:
            shared |= {stage.key for stage in harvests}
        for stage in [*harvests, *evaluation_stages(frame)]:
            stage.run = name if recipe.runs else ""
            stage.begins = not (found and _kept(found[-1].actors, stage.actors))
            found.append(stage)
    return found


def _kept(before: Actors, actors: Actors) -> bool:
    """Whether a stage goes on with the actors of the one before: two harvests of one model made together, and
    whatever the same models answer, as a run keeps those until others are wanted."""
    answering = {actors.use, before.use} <= {"evaluate", "generate"}
    return actors is before or (answering and (actors.model, actors.gpus) == (before.model, before.gpus))
