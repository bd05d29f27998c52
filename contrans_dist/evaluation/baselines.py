"""Ways to answer that are no vectors: another model, an instruction, or three models' logits together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from contrans_dist.config import EvaluationSettings, ModelSettings, Recipe

if TYPE_CHECKING:  # reports name baselines and need no torch
    from contrans_dist.benchmarks import ScoredItem
    from contrans_dist.models import LanguageModel
    from contrans_dist.models.placement import Placement

TARGET = "target"
"""The system that vectors steer; every other one is a condition of its own."""


@dataclass(frozen=True)
class System:
    """A model, perhaps guided by two others, perhaps with an instruction before every prompt."""

    name: str
    """`target`, or the condition whose rows it gives."""
    model: ModelSettings
    guides: tuple[ModelSettings, ...] = ()
    """(tuned, plain) of proxy-tuning."""
    instruction: str = ""

    @property
    def models(self) -> tuple[ModelSettings, ...]:
        """Every model that is loaded for it, the one that answers first."""
        return (self.model, *self.guides)

    def load(self, placement: "Placement") -> "LanguageModel":
        """The model that answers, where `placement` has it, and its guides, where that has them beside it."""
        from contrans_dist.models import guided, load_model

        lm, *guides = (
            load_model(model.id, **model.model_dump(exclude={"id"}), device=device, narrow=placement.narrow)
            for model, device in zip(
                self.models, (placement.device_map, *map(_device, placement.beside)), strict=True
            )
        )
        return guided(lm, *guides) if guides else lm

    def instructed(self, items: "Sequence[ScoredItem]") -> "list[ScoredItem]":
        """The items with the instruction before their prompts, as a line of its own."""
        if not self.instruction:
            return list(items)
        return [
            replace(item, prompt=f"{self.instruction}\n{item.prompt}")  # type: ignore[type-var]
            for item in items
        ]


@dataclass(frozen=True)
class Available:
    """What the baselines are made of, as far as it is there."""

    target: ModelSettings
    instruct: ModelSettings | None = None
    """The target after alignment training."""
    instruction: str = ""
    guides: tuple[ModelSettings, ...] = ()
    """(tuned, plain): a small model after and before alignment training."""

    @classmethod
    def of(cls, recipe: Recipe, settings: EvaluationSettings) -> "Available":
        pair = (recipe.source, recipe.source_base)
        guides = tuple(model for model in pair if model is not None) if all(pair) else ()
        return cls(recipe.target, recipe.target_instruct, settings.instruction or "", guides)


def align_training(given: Available) -> System | None:
    """The instruct model answers."""
    return None if given.instruct is None else System("", given.instruct)


def inst_align(given: Available) -> System | None:
    """The target answers with an instruction before every prompt."""
    return System("", given.target, instruction=given.instruction) if given.instruction else None


def proxy_tuning(given: Available) -> System | None:
    """The target answers with the guides' difference of logits added (arXiv 2401.08565)."""
    return System("", given.target, guides=given.guides) if given.guides else None


def in_turn(target: System, others: Sequence[System]) -> list[System]:
    """The order in which systems answer: right after the target those that its own model answers for, while
    that is loaded."""
    return [target, *sorted(others, key=lambda other: other.models != target.models)]


def _device(place: int | str) -> str:
    return f"cuda:{place}" if isinstance(place, int) else place
