"""What a recipe will take: memory, disk and hours, from its texts and the models' configurations alone.

The benchmarks and the engine are asked what they would run, with models that have no weights.
"""

from contrans_dist.pipeline.plan.recipes import plan_runs
from contrans_dist.pipeline.plan.stages import Nodes, Stage, actor_memory, as_content
from contrans_dist.pipeline.plan.times import from_rate, from_samples

__all__ = ["Nodes", "Stage", "actor_memory", "as_content", "from_rate", "from_samples", "plan_runs"]
