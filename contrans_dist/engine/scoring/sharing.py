"""Prompts under interventions, which share what is below them, and prompts how they begin.

What many prompts begin with is run as a trunk (`prefixes`): once below the steered block, and above it once
for each intervention that adds the same to all prompts. Above its block, one with a vector for each prompt
shares nothing but what prompts with the same vector begin with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrans_dist.console import tell
from contrans_dist.engine.prefixes import (
    Group,
    Limits,
    Packed,
    Row,
    Trunk,
    can_share,
    found_in,
    limits_of,
    pack,
    plan_for,
    positions_per_pass,
    rows_apart,
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
    guides, alike = lm.guides or (), same_rows(offsets)
    share_prefixes = share_prefixes and all(can_share(guide, head=True) for guide in guides)
    done = 0
    for group in plan_for(lm, sequences, own_from, batch_tokens, head=True, share=share_prefixes):
        texts = _Texts(sequences, places, group, alike, limits_of(lm, batch_tokens, head=True))
        runner = _Runner(lm, texts, texts.in_common(offsets))
        guiding = [_Runner(guide, texts, [{}]) for guide in guides]
        for rows in group.batches:
            for batch, runs in runner.run(rows):
                shift = _difference(guiding, batch)
                for members, values in runs:
                    if shift is not None:
                        width = min(values.shape[-1], shift.shape[-1])
                        values[..., :width] += shift[..., :width].to(values.device)
                    yield members, batch, values
                    done += len(members) * len(batch.texts)
                    tell(done / (len(offsets) * len(sequences)))


def _difference(guides: "Sequence[_Runner]", batch: Packed) -> Tensor | None:
    """Logits of a tuned model less those of the plain one, `[1, U, vocabulary]`, for proxy-tuning."""
    if not guides:
        return None
    tuned, plain = (runner.unsteered(batch) for runner in guides)
    width = min(tuned.shape[-1], plain.shape[-1])  # a head may be padded beyond the vocabulary
    return tuned[..., :width] - plain[..., :width].to(tuned.device)


@dataclass(frozen=True)
class _Texts:
    """One group of prompts."""

    sequences: Sequence[Sequence[int]]
    places: Sequence[range]
    """Of each sequence, those whose logits are wanted."""
    group: Group
    alike: Sequence[int] | None
    """As `same_rows` has it."""
    limits: Limits

    def in_common(self, offsets: Sequence[Offsets]) -> list[Offsets]:
        """Offsets with a row for each prompt as one for all of the group, where they are that."""
        if self.alike is None or not self.group.all_alike(self.alike):
            return list(offsets)
        first = self.group.texts[0]
        return [
            {k: row[first] if row.ndim == 2 else row for k, row in vectors.items()} for vectors in offsets
        ]

    def apart(self, rows: Sequence[Row]) -> Iterator[Packed]:
        """The prompts of a batch without a trunk, each row for prompts that get the same."""
        assert self.alike is not None
        own_from = [place.start for place in self.places]
        parts = rows_apart(self.group, rows, self.sequences, own_from, self.alike, self.limits)
        yield from (pack(part, self.sequences, self.places) for part in parts)


_Runs = Iterator[tuple[list[int], Tensor]]
"""Interventions, and their logits `[C, U, vocabulary]`."""


@dataclass
class _Runner:
    """One group of prompts under every intervention."""

    lm: LanguageModel
    texts: _Texts
    offsets: Sequence[Offsets]

    def __post_init__(self) -> None:
        steered = by_lowest_block(self.offsets)
        own = {i for i, vectors in enumerate(self.offsets) if per_prompt(vectors)}
        self.shared = {k: [i for i in members if i not in own] for k, members in steered.items()}
        """By block, the interventions that add the same to all prompts."""
        self.own = {k: [i for i in members if i in own] for k, members in steered.items()}
        self.lower: Trunk | None = None
        self.upper: dict[int, Trunk] = {}
        self.trunk: dict[int, Tensor] = {}
        """The trunk's residual stream at blocks from which interventions go apart, `[P, d]`."""
        if self.texts.group.trunk:
            self._run_trunk(self.texts.group.trunk)

    def _run_trunk(self, ids: Sequence[int]) -> None:
        """Keys and values of the trunk: below the steered blocks, and above each for its interventions."""
        # The logits of one position are computed, which nobody reads.
        trunk = pack([Row((0,), len(ids))], [ids], [[0]])
        cache = fresh_cache()
        keeping = as_arguments(self.lm, trunk, keep=cache)
        states: dict[int, object] = {}
        if self.shared:
            states = lower_states(self.lm, trunk, list(self.shared), keeping)
        else:
            logits(self.lm, trunk, keeping)
        self.lower = Trunk.of(cache)
        self.trunk = {k: first_of(states[k])[0] for k, members in self.own.items() if members}
        for k, members in self.shared.items():
            parts = []
            for chunk in _chunks(members, self.texts.limits.batch_tokens // len(ids)):
                cache = fresh_cache()
                keeping = as_arguments(self.lm, trunk, keep=cache)
                upper_logits(self.lm, trunk, k, states[k], [self.offsets[i] for i in chunk], keeping)
                parts.append(Trunk.of(cache))
            self.upper[k] = Trunk.of_all(parts)

    def unsteered(self, batch: Packed) -> Tensor:
        """`[1, U, vocabulary]`"""
        return logits(self.lm, batch, as_arguments(self.lm, batch, self.lower if batch.trunk else None))

    def run(self, rows: Sequence[Row]) -> Iterator[tuple[Packed, _Runs]]:
        """One of the group's batches, as many interventions at once as fit: once for those that add the same
        to all prompts, and in rows of prompts that get the same for the others."""
        batch = pack(rows, self.texts.sequences, self.texts.places, len(self.texts.group.trunk))
        if not self.shared:
            same = self.unsteered(batch).repeat(len(self.offsets), 1, 1)
            yield batch, iter([(list(range(len(self.offsets))), same)])
            return
        states = lower_states(self.lm, batch, list(self.shared), as_arguments(self.lm, batch, self.lower))
        yield batch, self._run_shared(batch, states)
        for whole in self.texts.apart(rows) if any(self.own.values()) else ():
            yield whole, self._run_own(batch, whole, states)

    def _run_shared(self, batch: Packed, states: Mapping[int, object]) -> _Runs:
        for k, members in self.shared.items():
            start = 0
            for chunk in _chunks(members, self._fit(batch)):
                trunk = None
                if self.lower is not None:
                    trunk = self.lower.above(self.upper[k], start, start + len(chunk))
                start += len(chunk)
                yield chunk, self._above(batch, k, states[k], chunk, trunk)

    def _run_own(self, batch: Packed, whole: Packed, states: Mapping[int, object]) -> _Runs:
        """From the steered blocks on, each prompt's states taken from where the batch has them."""
        index = found_in(batch, whole)
        for k, members in self.own.items():
            if members:
                flat = first_of(states[k]).flatten(0, 1)
                known = torch.cat([self.trunk[k], flat]) if k in self.trunk else flat
                state = like(states[k], known[index.to(known.device)])
                for chunk in _chunks(members, self._fit(whole)):
                    yield chunk, self._above(whole, k, state, chunk)

    def _fit(self, batch: Packed) -> int:
        """How many interventions run at once."""
        by_tokens = self.texts.limits.batch_tokens // batch.ids.numel()
        return min(by_tokens, positions_per_pass(self.lm) // len(batch.rows))

    def _above(
        self, batch: Packed, k: int, output: object, chunk: Sequence[int], trunk: Trunk | None = None
    ) -> Tensor:
        arguments = as_arguments(self.lm, batch, trunk, times=len(chunk))
        return upper_logits(self.lm, batch, k, output, [self.offsets[i] for i in chunk], arguments)


def _chunks(members: Sequence[int], fit: int) -> list[list[int]]:
    return [list(members[start : start + max(1, fit)]) for start in range(0, len(members), max(1, fit))]
