"""Benchmarks: what is asked under which interventions, how it is scored, summed up and shown; statistics.

A benchmark is one file, or a package where it is big: its settings, and a `Benchmark` that nothing else in
the program knows by name (`config.benchmarks` lists them). Settings and names are read by reports and dry
runs: what needs torch is imported inside functions.

Imports: config, store, data, models, engine, vectors.
"""

from contrans_dist.benchmarks.base import Benchmark, Judged, ScoredItem, result_table
from contrans_dist.benchmarks.calls import Call, Completions, Continuations, NextTokens
from contrans_dist.benchmarks.registry import about, load_benchmark, metric_of
from contrans_dist.benchmarks.summary import Metric, mean, proportion
from contrans_dist.config import EvaluationSettings, ValidatedEvaluation

__all__ = [
    "Benchmark", "Call", "Completions", "Continuations", "EvaluationSettings", "Judged", "Metric",
    "NextTokens", "ScoredItem", "ValidatedEvaluation", "about", "load_benchmark", "mean", "metric_of",
    "proportion", "result_table",
]  # fmt: skip
