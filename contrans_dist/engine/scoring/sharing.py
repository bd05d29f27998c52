"""Prompts under interventions, which share what is below them, and prompts how they begin.

What many prompts begin with is run as a trunk (`prefixes`): once below the steered block, and above it once
for each intervention, or in each row anew for one with a vector for each prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrans_dist.console import tell
from contrans_dist.engine.prefixes import (
    Group,
    Packed,
    Row,
    Trunk,
    can_share,
    pack,
    plan_for,
    positions_per_pass,
    whole_rows,
)
from contrans_dist.engine.prefixes.trunks import as_arguments, fresh_cache
from contrans_dist.engine.scoring.forward import Offsets, logits, lower_states, upper_logits
from contrans_dist.engine.scoring.interventions import (
    Intervention,
    by_lowest_block,
    checked_offsets,
    per_prompt,
    same_rows,
)
from contrans_dist.models import LanguageModel
from contrans_dist.models.passing import first_of, like


def run_all(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    wanted: Sequence[int],
    interventions: Sequence[Intervention],
    batch_tokens: int,
    share_prefixes: bool = True,
) -> Iterator[tuple[list[int], Packed, Tensor]]:
    """Every sequence under every intervention: (interventions, batch, float32 logits `[C, U, vocabulary]`) at
    the last `wanted[i]` positions of sequence i, those of several sequences once (`Packed.index`).

    Each batch runs once up to the steered blocks, then once more from there for as many interventions as fit
    `batch_tokens` together. The logits stay on the device. To be consumed in inference mode: entered here, a
    consumer's exception would leave it on. Raises as `checked_offsets`.
    """
    if lm.model.training:
        raise ValueError("the model is in training mode: call model.eval(), else dropout makes scores random")
    offsets = checked_offsets(lm, interventions, sequences)
    if not offsets:
        return
    batch_tokens = lm.largest_batch(batch_tokens)
    places = [range(len(text) - n, len(text)) for text, n in zip(sequences, wanted, strict=True)]
    own_from = [place.start for place in places]
    share_prefixes = share_prefixes and all(can_share(guide, head=True) for guide in lm.guides or ())
    done = 0
    for group in plan_for(
        lm, sequences, own_from, batch_tokens, head=True, share=share_prefixes, alike=same_rows(offsets)
    ):
        runner = _Runner(lm, group, sequences, places, offsets, batch_tokens)
        guides = [_Runner(guide, group, sequences, places, [{}], batch_tokens) for guide in lm.guides or ()]
        for rows in group.batches:
            shift = _difference(guides, rows)
            for members, packed, at, values in runner.run(rows):
                if shift is not None:
                    width = min(values.shape[-1], shift.shape[-1])
                    values[..., :width] += shift[:, at, :width].to(values.device)
                yield members, packed, values
                done += len(members) * len(packed.texts)
                tell(done / (len(offsets) * len(sequences)))


def _difference(guides: "Sequence[_Runner]", rows: Sequence[Row]) -> Tensor | None:
    """Logits of a tuned model less those of the plain one, `[1, U, vocabulary]`, for proxy-tuning."""
    if not guides:
        return None
    tuned, plain = (next(runner.run(rows))[-1] for runner in guides)
    width = min(tuned.shape[-1], plain.shape[-1])  # a head may be padded beyond the vocabulary
    return tuned[..., :width] - plain[..., :width].to(tuned.device)


_Ran = tuple[list[int], Packed, slice, Tensor]
"""Interventions, rows, which of their batch's wanted places these have, and logits `[C, U, vocabulary]`."""


@dataclass
class _Runner:
    """One group of prompts under every intervention."""

    lm: LanguageModel
    group: Group
    sequences: Sequence[Sequence[int]]
    places: Sequence[Sequence[int]]
    """Of each sequence, those whose logits are wanted."""
    offsets: Sequence[Offsets]
    batch_tokens: int

    def __post_init__(self) -> None:
        self.steered = by_lowest_block(self.offsets)
        self.lower: Trunk | None = None
        self.upper: dict[int, Trunk] = {}
        self.ends: dict[int, Tensor] = {}
        """The trunk's residual stream at each steered block, `[1, P, d]`."""
        # Above its block, a trunk to which each prompt adds something else is another for each.
        self.apart = {i for i, vectors in enumerate(self.offsets) if self.group.trunk and per_prompt(vectors)}
        if self.group.trunk:
            self._run_trunk()

    def _run_trunk(self) -> None:
        """Keys and values of the trunk: below the steered blocks, and above each for its interventions."""
        # The logits of one position are computed, which nobody reads.
        trunk = pack([Row((0,), len(self.group.trunk))], [self.group.trunk], [[0]])
        cache = fresh_cache()
        keeping = as_arguments(self.lm, trunk, keep=cache)
        if self.steered:
            states = lower_states(self.lm, trunk, list(self.steered), keeping)
            self.ends = {k: first_of(state) for k, state in states.items()}
        else:
            logits(self.lm, trunk, keeping)
        self.lower = Trunk.of(cache)
        for k in self.steered:
            parts = []
            for chunk in _chunks(self._sharing(k), self.batch_tokens // len(self.group.trunk)):
                cache = fresh_cache()
                keeping = as_arguments(self.lm, trunk, keep=cache)
                upper_logits(self.lm, trunk, k, states[k], [self.offsets[i] for i in chunk], keeping)
                parts.append(Trunk.of(cache))
            self.upper[k] = Trunk.of_all(parts)

    def _sharing(self, k: int) -> list[int]:
        """The interventions from block k on that share the trunk."""
        return [i for i in self.steered[k] if i not in self.apart]

    def run(self, rows: Sequence[Row]) -> Iterator[_Ran]:
        """One of the group's batches, as many interventions at once as fit."""
        batch = pack(rows, self.sequences, self.places, len(self.group.trunk))
        arguments, everywhere = as_arguments(self.lm, batch, self.lower), slice(None)
        if not self.steered:
            same = logits(self.lm, batch, arguments).repeat(len(self.offsets), 1, 1)
            yield list(range(len(self.offsets))), batch, everywhere, same
            return
        states = lower_states(self.lm, batch, list(self.steered), arguments)
        for k in self.steered:
            start = 0
            for chunk in _chunks(self._sharing(k), self._fit(batch)):
                trunk = None
                if self.lower is not None:
                    trunk = self.lower.above(self.upper[k], start, start + len(chunk))
                start += len(chunk)
                yield chunk, batch, everywhere, self._above(batch, k, states[k], chunk, trunk)
            yield from self._run_apart(rows, k, states[k])
            del states[k]

    def _run_apart(self, rows: Sequence[Row], k: int, output: object) -> Iterator[_Ran]:
        """From block k's output on, with the trunk in each row, for interventions that cannot share it."""
        members = [i for i in self.steered[k] if i in self.apart]
        row = place = 0
        for part in whole_rows(self.group, rows, self.batch_tokens) if members else ():
            batch, trunk = pack(part, self.sequences, self.places), self.ends[k]
            own = first_of(output)[row : row + len(part), : batch.ids.shape[1] - trunk.shape[1]]
            state = like(output, torch.cat([trunk.expand(len(part), -1, -1), own], dim=1))
            at = slice(place, place + len(batch.rows))
            row, place = row + len(part), at.stop
            for chunk in _chunks(members, self._fit(batch)):
                yield chunk, batch, at, self._above(batch, k, state, chunk)

    def _fit(self, batch: Packed) -> int:
        """How many interventions run at once."""
        by_tokens = self.batch_tokens // batch.ids.numel()
        return min(by_tokens, positions_per_pass(self.lm) // len(batch.rows))

    def _above(
        self, batch: Packed, k: int, output: object, chunk: Sequence[int], trunk: Trunk | None = None
    ) -> Tensor:
        arguments = as_arguments(self.lm, batch, trunk, times=len(chunk))
        return upper_logits(self.lm, batch, k, output, [self.offsets[i] for i in chunk], arguments)


def _chunks(members: Sequence[int], fit: int) -> list[list[int]]:
    return [list(members[start : start + max(1, fit)]) for start in range(0, len(members), max(1, fit))]
