"""What the engines are asked to do, and the tokens that their forward passes then take.

Batches are planned by the engines' own rules, so padding counts, and what texts begin with in common counts
once, as far as it is shared. (A few architectures cannot share beginnings; that shows only once they run.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.engine.prefixes import plan_within
from contrans_dist.engine.scoring.batches import positions_per_pass
from contrans_dist.models import LanguageModel

Ids = list[int]


@dataclass(frozen=True)
class Captured:
    """Texts whose states are captured, up to a block."""

    ids: list[Ids]
    highest: int
    once: int
    """Tokens of the passes."""

    @classmethod
    def of(
        cls, lm: LanguageModel, ids: list[Ids], wanted: Sequence[int], mean: bool, highest: int, most: int
    ) -> "Captured":
        """`wanted`: the place in each text that its row is taken from. `most`: tokens of a batch."""
        return cls(ids, highest, _once(lm, ids, wanted, most, share=not mean))

    @property
    def tokens(self) -> int:
        return self.once

    def works(self, n_blocks: int, _head: float) -> tuple[float, ...]:
        """See `Call`."""
        return (self.once * min(self.highest + 1, n_blocks),)


@dataclass(frozen=True)
class Scored:
    """Sequences that are scored under interventions which share what is below the steered blocks."""

    ids: list[Ids]
    wanted: list[int]
    """Positions at each sequence's end whose logits are wanted."""
    blocks: tuple[int | None, ...]
    """The lowest block that each intervention adds something to; None for the base."""
    own: bool
    """Whether each sequence has vectors of its own, so that beginnings are not shared."""
    once: int
    """Tokens of the passes through all blocks, without an intervention."""

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        ids: list[Ids],
        wanted: list[int],
        blocks: Sequence[int | None],
        own: bool,
        most: int,
    ) -> "Scored":
        """`most`: tokens of a batch."""
        starts = [len(each) - n for each, n in zip(ids, wanted, strict=True)]
        once = _once(lm, ids, starts, most, share=not own, positions=wanted)
        return cls(ids, wanted, tuple(blocks), own, once)

    @property
    def steered(self) -> list[int]:
        """Where each intervention's own pass begins, the base's as high as can be."""
        blocks = [block for block in self.blocks if block is not None]
        return [max(blocks) if block is None else block for block in self.blocks] if blocks else []

    @property
    def tokens(self) -> int:
        """Of the passes: one below the steered blocks, and for each intervention one above."""
        return self.once * (1 + len(self.steered))

    def works(self, n_blocks: int, head: float) -> tuple[float, ...]:
        """See `Call`."""
        at_ends = head * sum(self.wanted)
        if not self.steered:
            return (self.once * n_blocks + at_ends,)
        above = sum(n_blocks - 1 - block for block in self.steered)
        return (self.once * (1 + max(self.steered) + above) + at_ends * len(self.steered),)


@dataclass(frozen=True)
class Generated:
    """Prompts that are continued, each so many times; as if no text ended early."""

    ids: list[Ids]
    times: int
    new_tokens: int
    batch_size: int
    first: int
    """Tokens of the passes over prompts, padding included."""
    later: int
    """Tokens of the passes after them, one a text and pass."""
    steps: int
    """Of these passes."""

    @classmethod
    def of(cls, ids: list[Ids], times: int, new_tokens: int, batch_size: int) -> "Generated":
        """`times`: the interventions."""
        lengths = sorted((len(prompt) for prompt in ids for _ in range(times)), reverse=True)
        batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
        first = sum(len(batch) * batch[0] for batch in batches)
        later, steps = len(lengths) * (new_tokens - 1), len(batches) * (new_tokens - 1)
        return cls(ids, times, new_tokens, batch_size, first, later, steps)

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
        """See `Call`: of the passes over prompts, and of those after them."""
        return (
            self.first * n_blocks + head * len(self.ids) * self.times,
            self.later * (n_blocks + head),
        )


@dataclass(frozen=True)
class Classified:
    """Texts that a classifier judges."""

    texts: int
    length: int
    """Tokens of each."""

    @property
    def tokens(self) -> int:
        return self.texts * self.length

    def works(self, n_blocks: int, _head: float) -> tuple[float, ...]:
        """See `Call`."""
        return (self.tokens * n_blocks,)


Call = Captured | Scored | Generated | Classified
"""`tokens` are those of its forward passes. `works(n_blocks, head)` is these times the blocks of a model that
they go through, in parts that differ in what a token costs; `head`: what the language-model head costs at a
position, in blocks."""


def _once(
    lm: LanguageModel,
    ids: Sequence[Ids],
    own_from: Sequence[int],
    most: int,
    share: bool,
    positions: Sequence[int] | None = None,
) -> int:
    """Tokens of the passes that run each text once."""
    most_positions = None if positions is None else positions_per_pass(lm)
    groups = plan_within(
        lm, ids, own_from, most, share=share, positions=positions, most_positions=most_positions
    )
    padded = sum(len(batch) * batch[0].length for group in groups for batch in group.batches)
    return padded + sum(len(group.trunk) for group in groups)
