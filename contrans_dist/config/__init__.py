"""The typed, frozen description of what is to be run; YAML in, validated, fingerprint out.

Imports: nothing of ours.
"""

from contrans_dist.config.base import CHAT_DATE, FileModel, Settings, differing, fingerprint
from contrans_dist.config.benchmarks import benchmark_names, find_benchmark
from contrans_dist.config.evaluations import (
    AnyEvaluation,
    EvaluationSettings,
    SearchSettings,
    ValidatedEvaluation,
    evaluation_class,
)
from contrans_dist.config.parts import (
    CaptureSettings,
    ClusterSettings,
    ConceptSettings,
    ContrastSettings,
    MapSettings,
    ModelSettings,
    PlacementChoice,
    Quantization,
)
from contrans_dist.config.whole import PublishedSettings, Recipe

__all__ = [
    "CHAT_DATE", "AnyEvaluation", "CaptureSettings", "ClusterSettings", "ConceptSettings", "ContrastSettings",
    "EvaluationSettings", "FileModel", "MapSettings", "ModelSettings",
    "PlacementChoice", "PublishedSettings", "Quantization", "Recipe",
    "SearchSettings", "Settings", "ValidatedEvaluation", "benchmark_names", "differing",
    "evaluation_class", "find_benchmark", "fingerprint",
]  # fmt: skip
