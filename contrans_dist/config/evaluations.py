"""Evaluations of the steered target: what all have. What a benchmark adds stands in the benchmark's file."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, FiniteFloat, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from contrans_dist.config.base import Settings
from contrans_dist.config.benchmarks import DEFAULT, find_benchmark
from contrans_dist.errors import UserError

_BUDGET = 1.1


class SearchSettings(Settings):
    """The strength of each condition is chosen on the evaluation's validation items; where `perplexity` names
    a text, under a perplexity budget."""

    perplexity: str | None = None
    """Text whose perplexity a strength may raise; None sets no budget."""
    budget: float = Field(_BUDGET, gt=1)
    """Most that the perplexity may grow, as a factor."""
    limit: int | None = Field(20_000, ge=2)
    """Tokens of that text."""

    @model_validator(mode="after")
    def _budget_of_a_text(self) -> Self:
        if self.perplexity is None and self.budget != _BUDGET:
            raise ValueError("`perplexity`, a text, where `budget` is given")
        return self


class EvaluationSettings(Settings):
    """What every evaluation of the steered target has; each benchmark adds its own settings."""

    benchmark: str = DEFAULT
    """What is asked and how it is scored."""
    texts: str | None = None
    """What is scored: a file or folder. `truthfulqa`, `toxigen` and `perplexity` take theirs from the hub
    without it; `lm-eval` takes none; the others need it."""
    strengths: tuple[FiniteFloat, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    """Coefficients of the vector."""
    conditions: tuple[str, ...] = (
        "vector",
        "random",
        "shuffled-map",
        "other-concept",
        "self-align",
    )
    """By name, or `from:<name>`: the vector of one of the recipe's further sources. In a recipe without a
    source the default is `self-align`, `random` and, with several concepts, `other-concept`."""
    concepts: tuple[str, ...] | None = None
    """Of the recipe's concepts, those that are steered here; None steers all that the benchmark knows."""
    instruction: str | None = None
    """What stands before every prompt of the baseline that is an instruction."""
    search: SearchSettings | None = None
    """Choose each condition's strength on validation items, instead of reporting all of them."""
    examples: int = Field(0, ge=0)
    """Prompts a concept that are continued, unsteered and steered, for the report."""
    token_changes: int = Field(0, ge=0)
    """Prompts a concept on which the tokens are found whose probability rises and falls most."""
    only_unseen: bool = False
    """Leave out items that the vectors or the map have seen, so that the rest is held out."""
    sample: int | None = Field(None, ge=1)
    """Score only so many items, evenly spread over all of them."""
    seed: int = 0
    """Of everything that is drawn: items, shots, random directions."""

    files: ClassVar[tuple[str, ...]] = ("texts",)
    """The settings that name a file or folder. What is scored is known by its items, not by these names."""

    @property
    def has_validation(self) -> bool:
        """Whether there are items, other than those that are scored, to choose blocks and strengths on."""
        return False

    @property
    def drawn_apart(self) -> bool:
        """Whether the validation items come from the same data, drawn so that they cannot be scored ones."""
        return False

    def on_validation(self) -> Self:
        """The same evaluation on its validation items, asked in the same way; only where there are some."""
        raise NotImplementedError


class ValidatedEvaluation(EvaluationSettings):
    """An evaluation that may be given items to choose on."""

    validation: str | None = None
    """Items of the same form as `texts`, on which block pair and strengths may be chosen."""

    files: ClassVar[tuple[str, ...]] = ("texts", "validation")

    @property
    def has_validation(self) -> bool:
        return self.validation is not None

    def on_validation(self) -> Self:
        return self.model_copy(update={"texts": self.validation, "validation": None})


def evaluation_class(content: Any) -> type[EvaluationSettings]:
    """The settings class of the benchmark that a mapping names. Raises UserError as `find_benchmark`."""
    name = content.get("benchmark", DEFAULT) if isinstance(content, dict) else DEFAULT
    settings_class: type[EvaluationSettings] = find_benchmark(str(name)).settings_class
    return settings_class


def _by_its_benchmark(content: Any) -> Any:
    if isinstance(content, EvaluationSettings):
        return content
    try:
        chosen = evaluation_class(content)
    except UserError as error:
        raise PydanticCustomError("benchmark", "{why}", {"why": str(error)}) from error
    return chosen.model_validate(content)


AnyEvaluation = Annotated[SerializeAsAny[EvaluationSettings], BeforeValidator(_by_its_benchmark)]
"""Settings of whatever benchmark a mapping names."""
