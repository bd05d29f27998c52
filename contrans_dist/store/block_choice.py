"""How the block was chosen at which a model is steered with its own vectors: `selection/selection.json`."""

from pydantic import FiniteFloat, NonNegativeInt

from contrans_dist.store.provenance import Made
from contrans_dist.store.trials import Outcome, Trials

CHOICE = "selection/selection.json"
"""In the folder of a run."""


class TriedBlock(Outcome):
    """A block and a strength that were tried."""

    block: NonNegativeInt


class BlockChoice(Trials, Made):
    """What was tried, and what was chosen by it."""

    tried_on: str = "validation items"
    """What on, in words: that, or `contrast prompts`."""
    candidates: list[TriedBlock]
    chosen: NonNegativeInt
    """The block."""
    strength: FiniteFloat
    """At which it did best; what is scored follows the evaluation's own strengths."""
