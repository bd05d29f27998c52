"""How the block was chosen at which a model is steered with its own vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.evaluation.analysis import Evaluation, strength_text
from contrans_dist.report.maps import CONTRAST_CAPTION, metric_in
from contrans_dist.report.parts import Table
from contrans_dist.report.tables import trials_table
from contrans_dist.store.block_choice import BlockChoice


@dataclass(frozen=True)
class BlockView:
    """The choice's part of the page."""

    text: str
    candidates: Table


def block_view(choice: BlockChoice, evaluations: Sequence[Evaluation]) -> BlockView:
    """The choice in a sentence, and every block and strength that was tried, by block.

    `evaluations`: of the run, which tell how the metric is read that the block was chosen by.
    """
    kind = metric_in(choice.criterion, evaluations)
    blocks = {trial.block for trial in choice.candidates}
    best = "highest" if choice.higher else "lowest"
    budget = f"the perplexity within {choice.budget:g} times the base's" if choice.limit else ""
    kept = any(not choice.over(trial) for trial in choice.candidates)
    text = (
        f"Block {choice.chosen}, of {len(blocks)} that were tried: at strength "
        f"{strength_text(choice.strength)} it has the {best} {kind.title} on {choice.tried_on}, "
        f"of all blocks and strengths{f' that keep {budget}' if budget and kept else ''}."
        f"{f' None keeps {budget}.' if budget and not kept else ''}"
    )
    tried = sorted(choice.candidates, key=lambda trial: (trial.block, trial.strength))
    table = trials_table(
        choice,
        [(str(trial.block), trial) for trial in tried],
        lambda trial: (trial.block, trial.strength) == (choice.chosen, choice.strength),
        kind,
        "Block",
        f"Every block and strength that was tried, on {choice.tried_on}."
        + (CONTRAST_CAPTION if choice.tried_on == "contrast prompts" else ""),
    )
    return BlockView(text, table)
