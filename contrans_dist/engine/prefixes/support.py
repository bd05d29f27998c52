"""A model's batches: what fits it, and whether it can share beginnings, which is found out by trying."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contrans_dist.engine.prefixes.groups import Group, Limits, Row, plan_groups
from contrans_dist.engine.prefixes.packing import Packed, pack
from contrans_dist.engine.prefixes.trunks import Trunk, as_arguments, fresh_cache
from contrans_dist.models import LanguageModel
from contrans_dist.models.passing import states_after

LOGIT_BYTES = 256 * 2**20
"""Most that the float32 logits of one forward pass may take."""
KEY_BYTES = 2**30
"""Most that the keys and values of one block may take, with those of the trunk before each row."""
_WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "attention_chunk_size")
_TRUNK = [3, 4]
_TEXTS = [[3, 4, 5, 6, 4], [3, 4, 5, 7, 8, 3], [3, 4, 6, 8]]
_ROWS = [Row((0, 1), 6), Row((2,), 2)]
_UNABLE = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, StopIteration)
"""How models fail that compute in another way."""


def limits_of(lm: LanguageModel, batch_tokens: int, head: bool) -> Limits:
    """What a batch of a model may hold.

    Blocks that look back through a window count places in the row, not in the text, and some from its end: a
    row of several texts is never longer than the shortest window.

    Args:
        lm: The model, whose weights need not be there.
        batch_tokens: Tokens of a batch, padding included.
        head: Whether logits are computed.
    """
    models = (lm, *(lm.guides or ()))
    windows = [getattr(model.config, name, None) for model in models for name in _WINDOWS]
    bounds = [n for n in (*windows, lm.context, lm.split_at) if isinstance(n, int) and n > 0]
    logits = positions_per_pass(lm) if head else None
    # As of a model whose heads share no keys: where some do, many kernels copy them for each head.
    keys = min(KEY_BYTES // (2 * model.d * model.dtype.itemsize) for model in models)
    return Limits(batch_tokens, min(bounds, default=None), lm.split_at, logits, keys)


def positions_per_pass(lm: LanguageModel) -> int:
    """How many positions' logits fit into LOGIT_BYTES."""
    return max(1, LOGIT_BYTES // (4 * int(lm.config.vocab_size)))


def plan_for(
    lm: LanguageModel,
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    batch_tokens: int,
    *,
    head: bool,
    share: bool = True,
) -> list[Group]:
    """`plan_groups` within the model's limits, and without sharing where it cannot."""
    limits = limits_of(lm, batch_tokens, head)
    groups = plan_groups(ids, own_from, limits, share)
    # Tried only where there is something to share.
    if any(group.shares for group in groups) and not can_share(lm, head):
        return plan_groups(ids, own_from, limits, share=False)
    return groups


def can_share(lm: LanguageModel, head: bool) -> bool:
    """Whether three short texts come out the same with their beginnings shared, through the decoder or, with
    `head`, through the whole model. Tried once a model and way."""
    if head not in lm.shares:
        lm.shares[head] = _takes_masks(lm) and _agree(lm, head)
    return lm.shares[head]


def _takes_masks(lm: LanguageModel) -> bool:
    """Not tried on others: given a mask for every pair of tokens, their kernels may fail in a way that takes
    the whole process along."""
    return getattr(lm.config, "_attn_implementation", "eager") in ("eager", "sdpa")


def _agree(lm: LanguageModel, head: bool) -> bool:
    """Whether the states of all that follows the trunk are the same, of each text alone and shared."""
    wanted = [range(len(_TRUNK), len(text)) for text in _TEXTS]
    alone = pack([Row((i,), len(text)) for i, text in enumerate(_TEXTS)], _TEXTS, wanted)
    shared = pack(_ROWS, _TEXTS, wanted, len(_TRUNK))
    trunk = pack([Row((0,), len(_TRUNK))], [_TRUNK], [[0]])
    # Positions counted from the mask (ALiBi), states that are no keys and values, masks of a model's own:
    # each shows as an error or as other numbers.
    try:
        cache = fresh_cache()
        _states(lm, head, trunk, as_arguments(lm, trunk, keep=cache))
        states = _states(lm, head, shared, as_arguments(lm, shared, Trunk.of(cache)))
        expected = _states(lm, head, alone, as_arguments(lm, alone))
    except _UNABLE:
        return False
    rounding = 1e-4 if expected.dtype == torch.float32 else 3e-2
    return bool((states - expected).abs().max() <= rounding * expected.abs().max())


def _states(lm: LanguageModel, head: bool, batch: Packed, arguments: dict[str, Any]) -> Tensor:
    """[N, d]: what the highest loaded block returns at the wanted positions."""
    ids, whole = batch.ids.to(lm.device), lm.model if head else lm.decoder
    states = states_after(lm.blocks[-1], lambda: whole(input_ids=ids, **arguments))
    return states[batch.rows, batch.columns][batch.index]
