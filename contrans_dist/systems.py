"""Ways to answer that are no vectors: another model, an instruction, or three models' logits together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from contrans_dist.config import ModelSettings
from contrans_dist.models import LanguageModel, guided, load_model

TARGET = "target"
"""The system that vectors steer; every other one is a condition of its own."""


@dataclass(frozen=True)
class System:
    """A model, perhaps guided by two others, perhaps with an instruction before every prompt."""

    name: str
    """`target`, or the condition whose rows it gives."""
    model: ModelSettings
    guides: tuple[ModelSettings, ModelSettings] | None = None
    """(tuned, plain) of proxy-tuning."""
    instruction: str = ""

    @property
    def models(self) -> tuple[ModelSettings, ...]:
        """Every model that is loaded for it, the one that answers first."""
        return (self.model, *(self.guides or ()))

    def load(self, device: str | dict[str, Any] | None) -> LanguageModel:
        """The model that answers. Guides lie on one device: they are small beside what they guide."""
        lm, *guides = (
            load_model(
                model.id,
                **model.model_dump(exclude={"id"}),
                device=device if model is self.model or isinstance(device, str) else None,
            )
            for model in self.models
        )
        return guided(lm, *guides) if guides else lm

    def asked(self, items: Sequence[Any]) -> list[Any]:
        """The items with the instruction before their prompts, as a line of its own."""
        if not self.instruction:
            return list(items)
        return [replace(item, prompt=f"{self.instruction}\n{item.prompt}") for item in items]
