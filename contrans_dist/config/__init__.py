"""The typed, frozen description of what is to be run; YAML in, validated, fingerprint out.

Imports: nothing of ours.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrans_dist.config.base import FileModel, Settings, differing, fingerprint
    from contrans_dist.config.benchmarks import benchmark_names, find_benchmark
    from contrans_dist.config.defaults import BATCH_TOKENS, CHAT_DATE
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
        CorpusSettings,
        MapSettings,
        ModelSettings,
        PlacementChoice,
        Quantization,
    )
    from contrans_dist.config.whole import PublishedSettings, Recipe

__all__ = [
    "BATCH_TOKENS", "CHAT_DATE", "AnyEvaluation", "CaptureSettings", "ClusterSettings", "ConceptSettings",
    "ContrastSettings", "CorpusSettings", "EvaluationSettings", "FileModel", "MapSettings", "ModelSettings",
    "PlacementChoice", "PublishedSettings", "Quantization", "Recipe",
    "SearchSettings", "Settings", "ValidatedEvaluation", "benchmark_names", "differing",
    "evaluation_class", "find_benchmark", "fingerprint",
]  # fmt: skip

_HOMES = ("defaults", "benchmarks", "base", "evaluations", "parts", "whole")


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `contrans --help` is there before pydantic would be."""
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
