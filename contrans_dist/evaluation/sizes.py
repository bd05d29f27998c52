"""How much work an evaluation is, about: by which it is decided whether actors are started for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contrans_dist.benchmarks import Judged
from contrans_dist.config import ClusterSettings
from contrans_dist.distributed.cluster import Replicas, replicas
from contrans_dist.distributed.here import operations, stays_here, this_process
from contrans_dist.evaluation.baselines import System
from contrans_dist.models.classifier import describe_classifier
from contrans_dist.models.loading import describe

if TYPE_CHECKING:
    from contrans_dist.evaluation.actors import EvaluationSpec, WorkUnit

_NEW_TOKENS = 64
"""Of a text that is judged, about."""


@dataclass(frozen=True)
class Texts:
    """How much is run, counted as often as it is run: characters that are read, tokens that are written."""

    characters: int
    tokens: int = 0


def texts_of(spec: "EvaluationSpec", units: "Sequence[WorkUnit]") -> Texts:
    """All that is run for these units, about; each of a unit's items has its texts within its fields."""
    trials = [(unit.trials(spec), unit) for unit in units]
    new = _NEW_TOKENS if isinstance(spec.benchmark, Judged) else 0
    return Texts(
        characters=sum(count * len(repr(item)) for count, unit in trials for item in unit.items),
        tokens=sum(count * new * len(unit.items) for count, unit in trials),
    )


def operations_of(system: System, texts: Texts) -> float:
    if any(model.quantization for model in system.models):
        return math.inf
    described = (describe(model.id, trust_remote_code=model.trust_remote_code) for model in system.models)
    parameters = sum(model.parameters for model in described)
    return operations(parameters, texts.characters, texts.tokens)


def judges(name: str, cluster: ClusterSettings, texts: Texts) -> Replicas:
    """The actors of a classifier that judges so much."""
    work = operations(describe_classifier(name).parameters, texts.characters, texts.tokens)
    return this_process() if stays_here(cluster, work) else replicas(cluster.one_gpu_each())
