"""How the block was chosen at which a model is steered with its own vectors: `selection/selection.json`."""

from pydantic import FiniteFloat, NonNegativeInt

from contrans_dist.config import FileModel
from contrans_dist.store.provenance import Made

CHOICE = "selection/selection.json"
"""In the folder of a run."""


class TriedBlock(FileModel):
    """A block and a strength that were tried."""

    block: NonNegativeInt
    strength: FiniteFloat
    score: FiniteFloat
    perplexity: FiniteFloat | None = None


class BlockChoice(Made):
    """What was tried, and what was chosen by it."""

    criterion: str
    """The metric."""
    tried_on: str = "validation items"
    """What the candidates were tried on, in words."""
    higher: bool = True
    """Whether more of it is wanted."""
    budget: FiniteFloat | None = None
    """Most that the perplexity may grow, as a factor; None without a budget."""
    base_perplexity: FiniteFloat | None = None
    candidates: list[TriedBlock]
    chosen: NonNegativeInt
    """The block."""
    strength: FiniteFloat
    """At which it did best; what is scored follows the evaluation's own strengths."""

    @property
    def limit(self) -> float | None:
        """The perplexity that is allowed; None without a budget."""
        if self.budget is None or self.base_perplexity is None:
            return None
        return self.budget * self.base_perplexity

    def over(self, trial: TriedBlock) -> bool:
        """Whether a trial is over the budget."""
        return self.limit is not None and trial.perplexity is not None and trial.perplexity > self.limit
