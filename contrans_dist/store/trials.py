"""What was tried, blocks or strengths, and by what it was judged: common to three files."""

from collections.abc import Iterable
from typing import TypeVar

from pydantic import Field, FiniteFloat

from contrans_dist.config import FileModel


class Outcome(FileModel):
    """What came of one trial; a subclass says what was tried."""

    strength: FiniteFloat
    score: FiniteFloat
    perplexity: FiniteFloat | None = None


O = TypeVar("O", bound=Outcome)  # noqa: E741 -- an outcome


class Trials(FileModel):
    """By what trials were judged."""

    criterion: str
    """The metric."""
    higher: bool = True
    """Whether more of it is wanted."""
    budget: FiniteFloat | None = None
    """The most that the perplexity may be, as a factor of `base_perplexity`; None without a budget."""
    base_perplexity: FiniteFloat | None = None
    lost: list[tuple[str, FiniteFloat]] = Field(default_factory=list)
    """Condition, as it was tried, and strength of each trial that has no score: the logits overflowed."""

    @property
    def limit(self) -> float | None:
        """The highest perplexity that is allowed; None without a budget."""
        if self.budget is None or self.base_perplexity is None:
            return None
        return self.budget * self.base_perplexity

    def over(self, trial: Outcome) -> bool:
        """Whether a trial is over the budget, as one without a perplexity is where there is one."""
        return self.limit is not None and (trial.perplexity is None or trial.perplexity > self.limit)

    def within(self, trials: Iterable[O]) -> list[O]:
        """Those within the budget; all where there is none."""
        return [trial for trial in trials if not self.over(trial)]

    def gain(self, trial: Outcome) -> float:
        """The score, with its sign turned where less is wanted."""
        return trial.score if self.higher else -trial.score
