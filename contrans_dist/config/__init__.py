"""The typed, frozen description of what is to be run; YAML in, validated, fingerprint out."""

from contrans_dist.config.base import CHAT_DATE, FileModel, Settings, differing, fingerprint
from contrans_dist.config.evaluations import (
    EVALUATIONS,
    AnyEvaluation,
    BehaviourEvaluation,
    EmotionEvaluation,
    EvaluationSettings,
    HarnessEvaluation,
    PerplexityEvaluation,
    SearchSettings,
    ToxigenEvaluation,
    TruthfulQAEvaluation,
    ValidatedEvaluation,
    evaluation_settings,
)
from contrans_dist.config.parts import (
    CaptureSettings,
    ClusterSettings,
    ConceptSettings,
    ContrastSettings,
    CorpusSettings,
    Dtype,
    MapSettings,
    ModelSettings,
    Placement,
    Position,
    Protocol,
    Quantization,
    SourceSettings,
)
from contrans_dist.config.whole import Published, Recipe

__all__ = [
    "CHAT_DATE", "EVALUATIONS", "AnyEvaluation", "BehaviourEvaluation", "CaptureSettings", "ClusterSettings",
    "ConceptSettings", "ContrastSettings", "CorpusSettings", "Dtype",
    "EmotionEvaluation", "EvaluationSettings", "FileModel", "HarnessEvaluation", "MapSettings",
    "ModelSettings",
    "PerplexityEvaluation", "Placement", "Position", "Protocol", "Published", "Quantization", "Recipe",
    "SearchSettings", "Settings", "SourceSettings", "ToxigenEvaluation", "TruthfulQAEvaluation",
    "ValidatedEvaluation", "differing", "evaluation_settings", "fingerprint",
]  # fmt: skip
