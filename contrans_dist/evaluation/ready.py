"""An evaluation before anything runs: what is scored under what, and what the numbers will depend on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contrans_dist.benchmarks import Benchmark, ScoredItem
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings
from contrans_dist.errors import UserError
from contrans_dist.evaluation.actors import EvaluationSpec
from contrans_dist.evaluation.baselines import TARGET, System
from contrans_dist.evaluation.parts import finished
from contrans_dist.evaluation.precision import settled_system
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.work_units import scored_items
from contrans_dist.models import model_facts
from contrans_dist.models.facts import model_identity
from contrans_dist.store.location import Location
from contrans_dist.store.results import MetricsFile


@dataclass(frozen=True)
class ReadyEvaluation:
    """An evaluation whose input is read and found good, and nothing scored of it yet."""

    spec: EvaluationSpec
    items: list[ScoredItem]
    others: Sequence[System]
    finished: MetricsFile | None
    """The content of metrics.json, where all is done already."""
    replace: bool = False
    """Whether another evaluation in the folder makes way for it."""


def prepared(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: "Location | str",
    cluster: ClusterSettings,
    replace: bool = False,
    others: Sequence[System] = (),
) -> ReadyEvaluation:
    """What `evaluate` does first, for which no Ray is needed. Raises the UserErrors of `evaluate`."""
    out = Location.parse(out)
    if cluster.placement in ("stream", "pipeline"):
        raise UserError(
            f"--placement {cluster.placement}: steering needs the whole model; expected auto or device-map"
        )
    benchmark = load_benchmark(settings)
    items = scored_items(benchmark, settings, steering)
    target = settled_system(System(TARGET, model), cluster, out)
    others = [settled_system(system, cluster, out) for system in others]
    spec = EvaluationSpec(
        system=target,
        benchmark=benchmark,
        steering=steering,
        strengths=settings.strengths,
        identity=_identity(benchmark, settings, steering, items, [target, *others]),
        out=out,
    )
    return ReadyEvaluation(spec, items, others, finished(spec.out, spec.identity, replace), replace)


def _identity(
    benchmark: Benchmark,
    settings: EvaluationSettings,
    steering: Steering,
    items: Sequence[ScoredItem],
    systems: Sequence[System],
) -> dict[str, Any]:
    """What the numbers depend on: the target's model, all that is scored, what is added, every other system.

    And the leak check: the texts that vectors and map have seen.
    """
    identities = [[_model(model, benchmark, items) for model in system.models] for system in systems]
    of_benchmark = settings.model_dump(mode="json", exclude=set(EvaluationSettings.model_fields))
    # Places of files say nothing; the items that came from them are in `items`.
    of_benchmark = {name: value for name, value in of_benchmark.items() if name not in settings.files}
    return {
        "benchmark": settings.benchmark,
        **of_benchmark,
        **benchmark.identity(),
        **identities[0][0],
        "items": content_hash(list(items)),
        "steering": steering.digest(),
        "seen": content_hash([steering.vector_texts, steering.map_texts]),
        "strengths": list(settings.strengths),
        "systems": {
            system.name: {"models": models, "instruction": system.instruction}
            for system, models in zip(systems[1:], identities[1:], strict=True)
        },
    }


def _model(model: ModelSettings, benchmark: Benchmark, items: Sequence[ScoredItem]) -> dict[str, Any]:
    """What a model's numbers depend on, and what the benchmark has to say of it."""
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    return {**model_identity(model, facts), **benchmark.model_identity(facts.reads, items, model.id)}
