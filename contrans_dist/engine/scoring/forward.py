"""Parts of the model's own forward: up to some blocks, from one on, and the head where it is wanted.

The blocks that are not wanted are replaced, for one call, by functions that hand their input on; the first
wanted block hands out a stored residual stream.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from contrans_dist.engine.prefixes import Packed
from contrans_dist.engine.steer import added
from contrans_dist.models import LanguageModel
from contrans_dist.models.crossing import to_device
from contrans_dist.models.passing import Stop, first_of, handing, like, replaced, unpacked

Offsets = Mapping[int, Tensor]
"""What one intervention adds at which block: `[d]`, or `[P, d]` with a row for each prompt."""

End = Callable[[LanguageModel, Packed, dict[str, Any], int], Tensor]
"""`logits`, or `head_inputs`: what a pass is run for."""


def lower_states(
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
        logits(lm, one, arguments)
    return states


def upper_logits(
    lm: LanguageModel,
    batch: Packed,
    k: int,
    output: object,
    offsets: Sequence[Offsets],
    arguments: dict[str, Any],
    end: End | None = None,
) -> Tensor:
    """Logits `[C, U, V]`, or what another `end` gives, from block k's output on; each intervention's vectors
    are added to its own rows."""
    times, state = len(offsets), first_of(output)
    rows = {
        j: _stacked(offsets, j, lm.d, batch, state)
        for j in sorted({j for vectors in offsets for j in vectors} | {k})
    }
    start = state.repeat(times, 1, 1) + rows.pop(k).unsqueeze(1)
    passed = {j: handing(lambda state: like(output, state)) for j in range(k)}
    passed[k] = handing(lambda _state: like(output, start))
    with replaced(lm.blocks, passed), added(lm.blocks, rows):
        return (end or logits)(lm, batch, arguments, times)


def _stacked(offsets: Sequence[Offsets], k: int, d: int, batch: Packed, state: Tensor) -> Tensor:
    """`[C * B, d]`: what each intervention adds at block k to each row of the batch, zero for nothing."""
    rows = []
    for vectors in offsets:
        offset = vectors.get(k, torch.zeros(d))
        # With a vector for each prompt, those of a row have the same.
        rows.append(offset[batch.firsts] if offset.ndim == 2 else offset.expand(len(batch.ids), d))
    return to_device(torch.cat(rows).to(state.dtype), state.device)


def logits(lm: LanguageModel, batch: Packed, arguments: dict[str, Any], times: int = 1) -> Tensor:
    """Float32 logits `[times, U, vocabulary]` at the batch's wanted positions, the batch being there so many
    times over.

    The head runs on those positions alone, inside the model's own forward, so that its soft-capping or scale
    applies. Where `arguments` hold no mask, causal attention is right: under right padding a real position
    never sees the padding.
    """
    found = _with_head(lm, batch.ids.repeat(times, 1), arguments, _wanted(batch, times))
    return found.reshape(times, len(batch.rows), -1)


def head_inputs(lm: LanguageModel, batch: Packed, arguments: dict[str, Any], times: int = 1) -> Tensor:
    """What the head is given there, `[times, U, d]`, for `head_logits`: the head does not run."""
    kept: list[Tensor] = []
    wanted = _wanted(batch, times)

    def keep(hidden: Tensor) -> Tensor:
        kept.append(wanted(hidden))
        raise Stop

    with suppress(Stop):
        _with_head(lm, batch.ids.repeat(times, 1), arguments, keep)
    return kept[0].reshape(times, len(batch.rows), -1)


def head_logits(lm: LanguageModel, given: Tensor) -> Tensor:
    """Float32 logits `[1, n, vocabulary]` of what `head_inputs` has kept, `[1, n, d]`: the model runs on one
    token, whose place at the head this takes."""
    return _with_head(lm, torch.zeros(1, 1, dtype=torch.int64), {"use_cache": False}, lambda _hidden: given)


def _wanted(batch: Packed, times: int) -> Callable[[Tensor], Tensor]:
    """`[times * B, T, d]` -> `[1, times * U, d]`: the states at the wanted positions."""
    copies = torch.arange(times).repeat_interleave(len(batch.rows)) * len(batch.ids)
    places = torch.stack([copies + batch.rows.repeat(times), batch.columns.repeat(times)])

    def wanted(hidden: Tensor) -> Tensor:
        rows, columns = to_device(places, hidden.device)
        return hidden[rows, columns].unsqueeze(0)

    return wanted


def _with_head(
    lm: LanguageModel, ids: Tensor, arguments: dict[str, Any], chosen: Callable[[Tensor], Tensor]
) -> Tensor:
    """Float32 logits `[1, n, vocabulary]` by the model's own forward, its head on `chosen(states)`."""
    head = lm.model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm.model).__name__} has no language-model head: load it with its head")
    shapes: list[torch.Size] = []

    def choose(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = chosen(args[0])
        shapes.append(given.shape[:2])
        return (given, *args[1:])

    handle = head.register_forward_pre_hook(choose)
    try:
        with unpacked():
            output = lm.model(input_ids=to_device(ids, lm.device), **arguments)
    finally:
        handle.remove()
    found: Tensor = output.logits
    if shapes != [found.shape[:2]]:
        raise ValueError(
            f"{type(lm.model).__name__} computes its logits by another way than its output embeddings"
        )
    return found.float()
