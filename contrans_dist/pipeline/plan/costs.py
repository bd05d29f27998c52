"""What calls of the engine cost: tokens in forward passes, and how many blocks of the model these go through.

Batches are planned by the engine's own rules, so padding counts, and what texts begin with in common counts
once, as far as it is shared. (A few architectures cannot share beginnings; that shows only once they run.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.engine.prefixes import limits_of, plan_groups
from contrans_dist.models import LanguageModel

Ids = list[int]


@dataclass(frozen=True)
class Captured:
    """Texts whose states are captured, up to a block."""

    ids: list[Ids]
    highest: int
    tokens: int

    @classmethod
    def of(
        cls, lm: LanguageModel, ids: list[Ids], wanted: Sequence[int], share: bool, highest: int, most: int
    ) -> "Captured":
        """`wanted`: the place in each text that its row is taken from; `share`: whether what texts begin with
        is run once. `most`: tokens of a batch."""
        return cls(ids, highest, _tokens(lm, ids, wanted, most, share))

    def works(self, n_blocks: int, _head: float) -> tuple[float, ...]:
        return (self.tokens * min(self.highest + 1, n_blocks),)


@dataclass(frozen=True)
class Scored:
    """Sequences that are scored under interventions which share what is below the steered blocks."""

    ids: list[Ids]
    positions: list[int]
    """At each sequence's end, those whose logits are wanted."""
    blocks: tuple[int | None, ...]
    """The lowest block that each intervention adds something to; None for the base."""
    apart: bool
    """Whether each sequence has vectors of its own, so that beginnings are not shared."""
    once: int
    """Tokens of the passes through all blocks, without an intervention."""

    @classmethod
    def of(
        cls, lm: LanguageModel, ids: list[Ids], positions: list[int], blocks: Sequence[int | None],
        apart: bool, most: int,
    ) -> "Scored":  # fmt: skip
        """`most`: tokens of a batch."""
        wanted = [len(text) - n for text, n in zip(ids, positions, strict=True)]
        return cls(ids, positions, tuple(blocks), apart, _tokens(lm, ids, wanted, most, not apart, head=True))

    @property
    def steered(self) -> list[int]:
        """Where each intervention's own pass begins, the base's as high as can be."""
        blocks = [block for block in self.blocks if block is not None]
        return [max(blocks) if block is None else block for block in self.blocks] if blocks else []

    @property
    def tokens(self) -> int:
        """One pass below the steered blocks, and for each intervention one above."""
        return self.once * (1 + len(self.steered))

    def works(self, n_blocks: int, head: float) -> tuple[float, ...]:
        at_ends = head * sum(self.positions)
        if not self.steered:
            return (self.once * n_blocks + at_ends,)
        above = sum(n_blocks - 1 - block for block in self.steered)
        return (self.once * (1 + max(self.steered) + above) + at_ends * len(self.steered),)


@dataclass(frozen=True)
class Generated:
    """Prompts that are continued, each so many times; as if no text ended early."""

    ids: list[Ids]
    times: int
    """The interventions."""
    new_tokens: int
    batch_size: int

    @property
    def first(self) -> int:
        """Tokens of the passes over prompts, padding included."""
        lengths = sorted((len(prompt) for prompt in self.ids for _ in range(self.times)), reverse=True)
        batches = [lengths[i : i + self.batch_size] for i in range(0, len(lengths), self.batch_size)]
        return sum(len(batch) * batch[0] for batch in batches)

    @property
    def later(self) -> int:
        """Tokens of the passes after them, one a text and pass."""
        return len(self.ids) * self.times * (self.new_tokens - 1)

    @property
    def steps(self) -> int:
        """Of these passes."""
        return -(-len(self.ids) * self.times // self.batch_size) * (self.new_tokens - 1)

    @property
    def rows(self) -> int:
        """Of the largest batch."""
        return min(self.batch_size, len(self.ids) * self.times)

    @property
    def together(self) -> int:
        """Tokens of the largest batch, at its end."""
        return self.rows * (max(map(len, self.ids), default=0) + self.new_tokens)

    @property
    def tokens(self) -> int:
        return self.first + self.later

    def works(self, n_blocks: int, head: float) -> tuple[float, ...]:
        """Of the passes over prompts, and of those after them."""
        return (
            self.first * n_blocks + head * len(self.ids) * self.times,
            self.later * (n_blocks + head),
        )


@dataclass(frozen=True)
class Classified:
    """Texts that a classifier judges, each of so many tokens."""

    texts: int
    length: int

    @property
    def tokens(self) -> int:
        return self.texts * self.length

    def works(self, n_blocks: int, _head: float) -> tuple[float, ...]:
        return (self.tokens * n_blocks,)


Cost = Captured | Scored | Generated | Classified
"""`tokens` are those of its forward passes. `works(n_blocks, head)` is these times the blocks of a model that
they go through, in parts that differ in what a token costs; `head`: what the language-model head costs at a
position, in blocks."""


def _tokens(
    lm: LanguageModel, ids: Sequence[Ids], wanted: Sequence[int], most: int, share: bool,
    head: bool = False,
) -> int:  # fmt: skip
    """Tokens of the passes that run each text once."""
    groups = plan_groups(ids, wanted, limits_of(lm, most, head), share)
    padded = sum(len(batch) * batch[0].length for group in groups for batch in group.batches)
    return padded + sum(len(group.trunk) for group in groups)
