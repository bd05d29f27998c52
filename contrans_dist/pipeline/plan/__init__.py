"""What a recipe will take: memory, disk and hours, from its texts and the models' configurations alone."""

from contrans_dist.pipeline.plan.content import as_content
from contrans_dist.pipeline.plan.parts import Nodes, Stage, actor_memory
from contrans_dist.pipeline.plan.stages import plan_runs

__all__ = ["Nodes", "Stage", "actor_memory", "as_content", "plan_runs"]
