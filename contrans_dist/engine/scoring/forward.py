"""Running the model's own forward so that interventions share what is below them, and prompts how they begin.

The blocks that are not wanted are replaced, for one call, by functions that hand their input on; the first
wanted block hands out a stored residual stream. What many prompts begin with is run as a trunk (`prefixes`):
once below the steered block, and above it once for each intervention, or in each row anew for one with a
vector for each prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

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
from contrans_dist.engine.scoring.interventions import (
    Intervention,
    by_lowest_block,
    checked_offsets,
    per_prompt,
    same_rows,
)
from contrans_dist.engine.steer import added
from contrans_dist.models import LanguageModel
from contrans_dist.models.passing import first_of, handing, like, replaced, unpacked

Offsets = Mapping[int, Tensor]
"""What one intervention adds at which block: `[d]`, or `[P, d]` with a row for each prompt."""


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
            for members, packed, at, logits in runner.run(rows):
                if shift is not None:
                    width = min(logits.shape[-1], shift.shape[-1])
                    logits[..., :width] += shift[:, at, :width].to(logits.device)
                yield members, packed, logits
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
            states = _lower_states(self.lm, trunk, list(self.steered), keeping)
            self.ends = {k: first_of(state) for k, state in states.items()}
        else:
            _logits(self.lm, trunk, keeping)
        self.lower = Trunk.of(cache)
        for k in self.steered:
            parts = []
            for chunk in _chunks(self._sharing(k), self.batch_tokens // len(self.group.trunk)):
                cache = fresh_cache()
                keeping = as_arguments(self.lm, trunk, keep=cache)
                _upper_logits(self.lm, trunk, k, states[k], [self.offsets[i] for i in chunk], keeping)
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
            logits = _logits(self.lm, batch, arguments)
            yield list(range(len(self.offsets))), batch, everywhere, logits.repeat(len(self.offsets), 1, 1)
            return
        states = _lower_states(self.lm, batch, list(self.steered), arguments)
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
        return _upper_logits(self.lm, batch, k, output, [self.offsets[i] for i in chunk], arguments)


def _chunks(members: Sequence[int], fit: int) -> list[list[int]]:
    return [list(members[start : start + max(1, fit)]) for start in range(0, len(members), max(1, fit))]


def _lower_states(
    lm: LanguageModel, batch: Packed, blocks: Sequence[int], arguments: dict[str, Any]
) -> dict[int, object]:
    """What each of `blocks` returns for the batch, as it returns it; nothing above the highest one runs."""
    top = max(blocks)
    states: dict[int, object] = {}

    def keeping(k: int, forward: Callable[..., object]) -> Callable[..., object]:
        def kept(*args: Any, **named: Any) -> object:
            output = forward(*args, **named)
            # Attention weights and the like are dropped: they would have the wrong batch size later.
            shape = (None,) * len(output) if isinstance(output, tuple) else output
            states[k] = like(shape, first_of(output))
            return output

        return kept

    # Kept inside the forward, not in a hook: a caller's own hooks then act once, when the block is replayed.
    forwards = {k: keeping(k, lm.blocks[k].forward) for k in blocks}
    forwards |= {k: handing(lambda state: like(states[top], state)) for k in range(top + 1, len(lm.blocks))}
    # The head is not wanted here; at one position it costs nothing.
    one = replace(batch, rows=batch.rows[:1], columns=batch.columns[:1])
    with replaced(lm.blocks, forwards):
        _logits(lm, one, arguments)
    return states


def _upper_logits(
    lm: LanguageModel,
    batch: Packed,
    k: int,
    output: object,
    offsets: Sequence[Offsets],
    arguments: dict[str, Any],
) -> Tensor:
    """Logits `[C, U, V]` from block k's output on; each intervention's vectors are added to its own rows."""
    times, state = len(offsets), first_of(output)
    rows = {
        j: _stacked(offsets, j, lm.d, batch, state)
        for j in sorted({j for vectors in offsets for j in vectors} | {k})
    }
    start = state.repeat(times, 1, 1) + rows.pop(k).unsqueeze(1)
    passed = {j: handing(lambda state: like(output, state)) for j in range(k)}
    passed[k] = handing(lambda _state: like(output, start))
    with replaced(lm.blocks, passed), added(lm.blocks, rows):
        return _logits(lm, batch, arguments, times)


def _stacked(offsets: Sequence[Offsets], k: int, d: int, batch: Packed, state: Tensor) -> Tensor:
    """`[C * B, d]`: what each intervention adds at block k to each row of the batch, zero for nothing."""
    rows = []
    for vectors in offsets:
        offset = vectors.get(k, torch.zeros(d))
        # With a vector for each prompt, those of a row have the same.
        rows.append(offset[batch.firsts] if offset.ndim == 2 else offset.expand(len(batch.ids), d))
    return torch.cat(rows).to(device=state.device, dtype=state.dtype)


def _logits(lm: LanguageModel, batch: Packed, arguments: dict[str, Any], times: int = 1) -> Tensor:
    """Float32 logits `[times, U, vocabulary]` at the batch's wanted positions, the batch being there so many
    times over.

    The head runs on those positions alone, inside the model's own forward, so that its soft-capping or scale
    applies. Where `arguments` hold no mask, causal attention is right: under right padding a real position
    never sees the padding.
    """
    head = lm.model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm.model).__name__} has no language-model head: load it with its head")
    copies = torch.arange(times).repeat_interleave(len(batch.rows)) * len(batch.ids)
    rows, columns = copies + batch.rows.repeat(times), batch.columns.repeat(times)

    def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        places = rows.to(hidden.device), columns.to(hidden.device)
        return (hidden[places].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        with unpacked():
            output = lm.model(input_ids=batch.ids.repeat(times, 1).to(lm.device), **arguments)
    finally:
        handle.remove()
    logits: Tensor = output.logits
    if logits.shape[:2] != (1, len(rows)):
        raise ValueError(
            f"{type(lm.model).__name__} computes its logits by another way than its output embeddings"
        )
    return logits.float().reshape(times, len(batch.rows), -1)
