"""What calls of the engine cost: the tokens of their forward passes, and the blocks that these go through.

Batches are planned by the engine's own rules, so padding counts, and what texts begin with in common counts
once, as far as it is shared. (A few architectures cannot share beginnings; that shows only once they run.)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from contrans_dist.benchmarks.calls import Ids
from contrans_dist.engine.prefixes import Group, Row, limits_of, plan_groups, rows_apart
from contrans_dist.engine.scoring import Intervention
from contrans_dist.models import LanguageModel

Span = tuple[int, int | None]
"""The block that a pass begins at, and the one before which it ends; None for the model's last."""


@dataclass(frozen=True)
class Cost:
    """Forward passes; the costs of several calls are added."""

    passes: Counter[Span] = field(default_factory=Counter)
    """Tokens of the passes over texts."""
    apart: int = 0
    """The same, where each text has a vector of its own."""
    logits: int = 0
    """Positions in them at which the language-model head is run."""
    later: int = 0
    """New tokens but the first of each text that is written: each goes through all blocks, one a pass."""
    steps: int = 0
    """Those passes, each over a batch of texts."""
    written: int = 0
    """Texts that are written."""
    longest: int = 0
    """New tokens of the longest of them."""
    together: int = 0
    """Tokens of the largest batch of them, at its end."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            passes=self.passes + other.passes,
            apart=self.apart + other.apart,
            logits=self.logits + other.logits,
            later=self.later + other.later,
            steps=self.steps + other.steps,
            written=self.written + other.written,
            longest=max(self.longest, other.longest),
            together=max(self.together, other.together),
        )

    @property
    def tokens(self) -> int:
        """Of all passes."""
        return self.passes.total() + self.later

    def under(self, interventions: Sequence[Intervention]) -> "Cost":
        """The same texts, scored under interventions that share what is below the steered blocks, and a
        common beginning above them unless they have a vector for each text."""
        steered = [each.block for each in interventions if each.block is not None]
        if not steered:
            return self
        once, top = self.passes.total(), max(steered)
        passes: Counter[Span] = Counter({(0, top + 1): once})
        for each in interventions:
            # The base goes on from as high as can be.
            first = top if each.block is None else each.block
            passes[first + 1, None] += self.apart if each.per_item and each.block is not None else once
        return Cost(passes, logits=self.logits * len(interventions))

    def over_texts(self, n_blocks: int, head: float) -> float:
        """Tokens times blocks of the passes over texts. `head`: what the head costs, in blocks."""
        through = sum(
            tokens * (n_blocks if last is None else last) - tokens * first
            for (first, last), tokens in self.passes.items()
        )
        return through + head * self.logits

    def one_by_one(self, n_blocks: int, head: float) -> float:
        """The same of the new tokens that follow."""
        return self.later * (n_blocks + head)


def captured(
    lm: LanguageModel, ids: Sequence[Ids], own_from: Sequence[int], share: bool, highest: int, most: int
) -> Cost:
    """Texts whose states are captured up to block `highest`.

    Args:
        lm: Needs no weights.
        ids: Token ids of each text.
        own_from: The first token of each that may not be run for several texts at once.
        share: Whether what texts begin with may be.
        highest: The block.
        most: Tokens of a batch.
    """
    groups = plan_groups(ids, own_from, limits_of(lm, most, head=False), share)
    return Cost(Counter({(0, highest + 1): _tokens(groups)}))


def scored(
    lm: LanguageModel,
    sequences: Sequence[Ids],
    positions: Sequence[int],
    most: int,
    owners: Sequence[int],
) -> Cost:
    """Sequences of which the last `positions` are scored, without an intervention; `alike` as in
    `rows_apart`, `most` tokens of a batch."""
    own_from = [len(sequence) - n for sequence, n in zip(sequences, positions, strict=True)]
    limits = limits_of(lm, most, head=True)
    groups = plan_groups(sequences, own_from, limits)
    apart = 0
    for group in groups:
        if group.all_alike(owners):
            apart += _tokens([group])
        else:
            for rows in group.batches:
                apart += _padded(rows_apart(group, rows, sequences, own_from, owners, limits))
    return Cost(Counter({(0, None): _tokens(groups)}), apart, sum(positions))


def generated(prompts: Sequence[Ids], times: int, new_tokens: int, batch_size: int) -> Cost:
    """Prompts that are continued, each so many times; as if no text ended early."""
    lengths = sorted((len(prompt) for prompt in prompts for _ in range(times)), reverse=True)
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return Cost(
        Counter({(0, None): sum(len(batch) * batch[0] for batch in batches)}),
        logits=len(lengths),
        later=len(lengths) * (new_tokens - 1),
        steps=len(batches) * (new_tokens - 1),
        written=len(lengths),
        longest=new_tokens,
        together=max((len(batch) * (batch[0] + new_tokens) for batch in batches), default=0),
    )


def _tokens(groups: Sequence[Group]) -> int:
    """Of the passes that run each text once."""
    return sum(_padded(group.batches) + len(group.trunk) for group in groups)


def _padded(batches: Sequence[Sequence[Row]]) -> int:
    return sum(len(rows) * rows[0].length for rows in batches)
