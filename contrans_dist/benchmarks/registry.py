"""The benchmark that settings name."""

from contrans_dist.benchmarks import Benchmark
from contrans_dist.config import (
    BehaviourEvaluation,
    EmotionEvaluation,
    EvaluationSettings,
    HarnessEvaluation,
    PerplexityEvaluation,
    ToxigenEvaluation,
    TruthfulQAEvaluation,
)
from contrans_dist.errors import UserError


def load_benchmark(settings: EvaluationSettings) -> Benchmark:
    """The benchmark, over every concept of its data. Raises UserError for data that are missing or wrong.

    Each is imported when it is named: nobody waits for what is not asked for, and extras may be absent.
    """
    match settings:
        case EmotionEvaluation():
            from contrans_dist.benchmarks.emotions import EmotionBenchmark

            return EmotionBenchmark.load(
                settings.texts,
                protocol=settings.protocol,
                template=settings.template,
                shots=settings.shots,
                per_concept=settings.per_concept,
                labels=settings.labels or None,
                seed=settings.seed,
            )
        case TruthfulQAEvaluation():
            from contrans_dist.benchmarks.truthfulqa import TruthfulQABenchmark

            return TruthfulQABenchmark.load(settings)
        case BehaviourEvaluation():
            from contrans_dist.benchmarks.behaviours import BehaviourBenchmark

            return BehaviourBenchmark.load(settings)
        case ToxigenEvaluation():
            from contrans_dist.benchmarks.toxigen import ToxigenBenchmark

            return ToxigenBenchmark.load(settings)
        case PerplexityEvaluation():
            from contrans_dist.benchmarks.perplexity import PerplexityBenchmark

            return PerplexityBenchmark.load(settings)
        case HarnessEvaluation():
            from contrans_dist.benchmarks.lm_eval import HarnessBenchmark

            return HarnessBenchmark.load(settings)
    raise UserError(f"benchmark {settings.benchmark}: not known")
