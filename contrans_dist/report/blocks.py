"""How the block was chosen at which a model is steered with its own vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.evaluation.analysis import Evaluation, number, strength_text
from contrans_dist.report.maps import CONTRAST_CAPTION, metric_in
from contrans_dist.report.parts import Cell, Table
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
    rows = []
    for trial in sorted(choice.candidates, key=lambda trial: (trial.block, trial.strength)):
        taken = (trial.block, trial.strength) == (choice.chosen, choice.strength)
        score = number(trial.score, kind.percent, 1 if kind.percent else 2)
        cost = "" if trial.perplexity is None else f"{trial.perplexity:.2f}"
        over = choice.over(trial)
        rows.append(
            [
                Cell(str(trial.block)),
                Cell(strength_text(trial.strength)),
                Cell(score, kind="best" if taken else ""),
                Cell(cost, "over the budget" if over else "", "warn" if over else ""),
                Cell("chosen" if taken else "", kind="apart" if taken else ""),
            ]
        )
    costed = any(trial.perplexity is not None for trial in choice.candidates)
    table = Table(
        ["Block", "Strength", kind.title, "Perplexity", ""],
        rows,
        f"Every block and strength that was tried, on {choice.tried_on}."
        + (CONTRAST_CAPTION if choice.tried_on == "contrast prompts" else ""),
        compact=True,
    )
    return BlockView(text, table.with_columns([True, True, True, costed, True]))
