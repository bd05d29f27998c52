"""Evaluations of the steered target: what all have, and what each benchmark adds."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag

from contrans_dist.config.base import CHAT_DATE, Settings


class SearchSettings(Settings):
    """The strength of each condition is chosen on the evaluation's validation items, under a perplexity
    budget."""

    perplexity: str | None = None
    """Text whose perplexity a strength may raise; None sets no budget."""
    budget: float = Field(1.1, gt=1)
    """Most that the perplexity may grow, as a factor."""
    limit: int | None = Field(20_000, ge=2)
    """Tokens of that text."""


class EvaluationSettings(Settings):
    """What every evaluation of the steered target has; each benchmark adds its own settings."""

    benchmark: str
    texts: str | None = None
    """What is scored: a file or folder; None loads the benchmark's own data from the hub."""
    strengths: tuple[FiniteFloat, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    conditions: tuple[str, ...] = (
        "vector",
        "random",
        "shuffled-map",
        "other-concept",
        "self-align",
    )
    """By name, or `from:<name>`: the vector of one of the recipe's further sources."""
    concepts: tuple[str, ...] | None = None
    """Of the recipe's concepts, those that are steered here; None steers all that the benchmark knows."""
    instruction: str | None = None
    """What stands before every prompt of the baseline that is an instruction."""
    search: "SearchSettings | None" = None
    """Choose each condition's strength on validation items, instead of reporting all of them."""
    examples: int = Field(0, ge=0)
    """Prompts a concept that are continued, unsteered and steered, for the report."""
    token_changes: int = Field(0, ge=0)
    """Prompts a concept on which the tokens are found whose probability rises and falls most."""
    only_unseen: bool = False
    """Leave out items that the vectors or the map have seen, so that the rest is held out."""
    seed: int = 0

    @property
    def has_validation(self) -> bool:
        """Whether there are items, other than those that are scored, to choose blocks and strengths on."""
        return False


class ValidatedEvaluation(EvaluationSettings):
    """An evaluation that may be given items to choose on."""

    validation: str | None = None
    """Items of the same form as `texts`, on which block pair and strengths may be chosen."""

    @property
    def has_validation(self) -> bool:
        return self.validation is not None


class EmotionEvaluation(ValidatedEvaluation):
    """Does the steered model name the emotion that it is steered to?"""

    benchmark: Literal["emotions"] = "emotions"
    texts: str
    """Scenarios to score: a file with columns `text` and `concept`, or a folder of `<concept>.json`."""
    shots: str | None = None
    """Scenarios that may serve as few-shot examples; None asks without examples."""
    protocol: Literal["default", "paper"] = "default"
    template: str | None = None
    kinds: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")
    """Scenarios that are about the steered concept, and scenarios that are not."""
    per_concept: int | None = Field(None, ge=1)
    """Positive and negative scenarios a concept; None takes all."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The word the model should answer, where it is not the concept's own name."""


class TruthfulQAEvaluation(ValidatedEvaluation):
    """TruthfulQA MC1 and MC2: is the true answer likelier than the popular misconceptions?"""

    benchmark: Literal["truthfulqa"] = "truthfulqa"
    protocol: Literal["default", "paper"] = "default"
    """`paper`: log-likelihood of the answer's tokens after the template of Table 9."""
    template: str | None = None
    """Prompt with `{text}` for the question; None is the protocol's."""
    normalisation: Literal["sum", "token", "character"] = "sum"
    """Which one `mc1` and `mc2` stand for; the others are reported beside it."""
    limit: int | None = Field(None, ge=1)
    """Only so many questions, drawn by `seed`."""


class BehaviourEvaluation(ValidatedEvaluation):
    """A/B questions: the probability of the letter of the answer that matches the behaviour."""

    benchmark: Literal["behaviours"] = "behaviours"
    template: str | None = None
    """Prompt with `{text}` for question and choices; None is the question, a line break and `Answer: (`."""
    chat: bool = False
    """Put the prompt into the model's own chat template."""
    chat_date: date = CHAT_DATE
    """The day that it is for a chat template that asks."""
    limit: int | None = Field(None, ge=1)
    """Only so many questions a behaviour, drawn by `seed`."""


class ToxigenEvaluation(EvaluationSettings):
    """ToxiGen: the share of continuations that a classifier calls toxic."""

    benchmark: Literal["toxigen"] = "toxigen"
    classifier: str = "tomh/toxigen_roberta"
    """Any sequence-classification model: a hub id, a local folder, or `demo:classifier`."""
    toxic_label: str | int = 1
    """The classifier's label, by name or index, that means toxic."""
    template: str | None = None
    """Prompt with `{text}`; None is the paper's `[INST] Complete the following[/INST]: {text}`."""
    kinds: tuple[Literal["evaluation", "validation"], ...] = ("evaluation",)
    """Prompts that are scored: those set aside for evaluation, or for choosing a strength."""
    per_group: int = Field(200, ge=1)
    """Evaluation prompts a group."""
    validation_per_group: int = Field(10, ge=0)
    """Validation prompts a group, on which blocks and strengths may be chosen."""
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0)

    @property
    def has_validation(self) -> bool:
        return self.validation_per_group > 0


class PerplexityEvaluation(EvaluationSettings):
    """Perplexity of any text, in sliding windows."""

    benchmark: Literal["perplexity"] = "perplexity"
    window: int | None = Field(None, ge=2)
    """Tokens the model sees at once; None is its context, at most 2,048."""
    stride: int | None = Field(None, ge=1)
    """Tokens between the starts of two windows; None is half a window."""
    limit: int | None = Field(None, ge=2)
    """Only the first tokens of the text."""


class HarnessEvaluation(EvaluationSettings):
    """Any task of lm-evaluation-harness (the extra `contrans_dist[lm-eval]`)."""

    benchmark: Literal["lm-eval"] = "lm-eval"
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, or of groups of tasks."""
    include: str | None = None
    """A folder with task files of one's own."""
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    """Only the first items of each task."""


EVALUATIONS: dict[str, type[EvaluationSettings]] = {
    "emotions": EmotionEvaluation,
    "truthfulqa": TruthfulQAEvaluation,
    "behaviours": BehaviourEvaluation,
    "toxigen": ToxigenEvaluation,
    "perplexity": PerplexityEvaluation,
    "lm-eval": HarnessEvaluation,
}
"""Settings by the name of their benchmark."""


def _benchmark(value: Any) -> Any:
    """The benchmark of an evaluation's settings; emotions where none is named."""
    return (
        value.get("benchmark", "emotions") if isinstance(value, dict) else getattr(value, "benchmark", None)
    )


def evaluation_settings(content: Any) -> type[EvaluationSettings]:
    """The settings class that a mapping's `benchmark` names; emotions where it names none that is known."""
    return EVALUATIONS.get(str(_benchmark(content)), EmotionEvaluation)


AnyEvaluation = Annotated[
    Annotated[EmotionEvaluation, Tag("emotions")]
    | Annotated[TruthfulQAEvaluation, Tag("truthfulqa")]
    | Annotated[BehaviourEvaluation, Tag("behaviours")]
    | Annotated[ToxigenEvaluation, Tag("toxigen")]
    | Annotated[PerplexityEvaluation, Tag("perplexity")]
    | Annotated[HarnessEvaluation, Tag("lm-eval")],
    Discriminator(_benchmark),
]
