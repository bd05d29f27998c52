"""Running the model's own forward with some blocks passed over, so that interventions share what lies below.

The blocks that are not wanted are replaced, for one call, by functions that hand their input on; the first
wanted block hands out a stored residual stream. Embeddings, masks, positions and rotary tables stay the
model's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from contrans_dist.models import LanguageModel
from contrans_dist.scoring.batches import Batch, positions_per_pass
from contrans_dist.scoring.interventions import by_lowest_block
from contrans_dist.steering import added, first_of, like


def run_all(
    lm: LanguageModel, batches: Sequence[Batch], offsets: Sequence[Mapping[int, Tensor]], batch_tokens: int
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Every batch under every intervention: (interventions, batch, float32 logits `[C, N, vocabulary]`).

    `offsets[i]` is what intervention i adds at which block. Each batch runs once up to the steered blocks,
    then once more from there for as many interventions as fit `batch_tokens` together. The logits stay on the
    device.
    """
    if lm.model.training:
        raise ValueError("the model is in training mode: call model.eval(), else dropout makes scores random")
    groups = by_lowest_block(offsets)
    for batch in batches:
        if not groups:
            with torch.inference_mode():
                logits = _logits(lm, batch)
            yield list(range(len(offsets))), batch, logits.expand(len(offsets), -1, -1)
            continue
        with torch.inference_mode():
            states = lower_states(lm, batch, list(groups))
        for k, members in groups.items():
            fit = min(
                max(1, batch_tokens // batch.ids.numel()), max(1, positions_per_pass(lm) // len(batch.rows))
            )
            for start in range(0, len(members), fit):
                chunk = members[start : start + fit]
                with torch.inference_mode():
                    logits = _upper_logits(lm, batch, k, states[k], [offsets[i] for i in chunk])
                yield chunk, batch, logits
            del states[k]


def lower_states(lm: LanguageModel, batch: Batch, blocks: Sequence[int]) -> dict[int, object]:
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
    forwards |= {k: _handing(lambda state: like(states[top], state)) for k in range(top + 1, len(lm.blocks))}
    with replaced(lm.blocks, forwards):
        # The head is not wanted here; at one position it costs nothing.
        _logits(lm, Batch(batch.index, batch.ids, batch.rows[:1], batch.columns[:1]))
    return states


def _upper_logits(
    lm: LanguageModel, batch: Batch, k: int, output: object, offsets: Sequence[Mapping[int, Tensor]]
) -> Tensor:
    """Logits `[C, N, V]` from block k's output on; each intervention's vectors are added to its own rows."""
    times, state = len(offsets), first_of(output)
    rows = {
        j: _stacked(offsets, j, lm.d, batch.index, state)
        for j in sorted({j for each in offsets for j in each} | {k})
    }
    start = state.repeat(times, 1, 1) + rows.pop(k).unsqueeze(1)
    passed = {j: _handing(lambda state: like(output, state)) for j in range(k)}
    passed[k] = _handing(lambda _state: like(output, start))
    with replaced(lm.blocks, passed), added(lm.blocks, rows):
        logits = _logits(lm, batch.repeated(times))
    return logits.reshape(times, len(batch.rows), -1)


def _stacked(
    offsets: Sequence[Mapping[int, Tensor]], k: int, d: int, prompts: list[int], state: Tensor
) -> Tensor:
    """`[C * B, d]`: what each intervention adds at block k to each prompt of the batch, zero for nothing."""
    rows = []
    for each in offsets:
        offset = each.get(k, torch.zeros(d))
        rows.append(offset[prompts] if offset.ndim == 2 else offset.expand(len(prompts), d))
    return torch.cat(rows).to(device=state.device, dtype=state.dtype)


@contextmanager
def replaced(blocks: Sequence[nn.Module], forwards: Mapping[int, Callable[..., object]]) -> Iterator[None]:
    """Run `forwards[k]` in place of block k's forward."""
    before: dict[int, Any] = {}
    try:
        for k, forward in forwards.items():
            # accelerate and others also put a forward on the instance: it is put back, not just deleted.
            before[k] = blocks[k].__dict__.get("forward")
            blocks[k].forward = forward  # type: ignore[method-assign, assignment]
        yield
    finally:
        for k, own in before.items():
            if own is None:
                del blocks[k].forward
            else:
                blocks[k].forward = own


def _handing(function: Callable[[Tensor], object]) -> Callable[..., object]:
    """`function` of the residual stream as a block's forward; the stream comes first, or by its name."""

    def forward(*args: Any, **named: Any) -> object:
        return function(args[0] if args else named["hidden_states"])

    return forward


def _logits(lm: LanguageModel, batch: Batch) -> Tensor:
    """Float32 logits `[1, N, vocabulary]` at the batch's wanted positions.

    The head runs on those positions alone, inside the model's own forward, so that its soft-capping or scale
    applies. No attention mask: under right padding a causal model's real positions never see the padding.
    """
    head = lm.model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm.model).__name__} has no language-model head: load it with its head")

    def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        rows, columns = batch.rows.to(hidden.device), batch.columns.to(hidden.device)
        return (hidden[rows, columns].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        output = lm.model(input_ids=batch.ids.to(lm.device), use_cache=False)
    finally:
        handle.remove()
    logits: Tensor = output.logits
    if logits.shape[:2] != (1, len(batch.rows)):
        raise ValueError(
            f"{type(lm.model).__name__} computes its logits by another way than its output embeddings"
        )
    return logits.float()
