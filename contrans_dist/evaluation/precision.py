"""The precision that each model of an evaluation is computed in, which an unfinished one goes on in."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.console import without_credentials
from contrans_dist.distributed.precision import settled
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.parts import identity_in
from contrans_dist.store.location import Location


def settled_system(system: System, cluster: ClusterSettings, out: Location | None = None) -> System:
    """A system with the precision that its models are computed in: see `settled`.

    Args:
        system: The models, and how they answer.
        cluster: Where its actors run.
        out: The folder of an evaluation, which may have been begun.
    """

    @cache
    def held() -> dict[str, Mapping[str, Any]]:
        identity = identity_in(out) if out is not None else None
        return {one["model"]: one for one in reversed(_models(identity or {}))}

    def of(model: ModelSettings) -> ModelSettings:
        return settled(model, cluster, lambda: held().get(without_credentials(model.id)))

    return replace(system, model=of(system.model), guides=tuple(map(of, system.guides)))


def _models(identity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What an evaluation's identity says of each model, the target first."""
    others = [model for system in (identity.get("systems") or {}).values() for model in system["models"]]
    return [model for model in (identity, *others) if "model" in model]
