"""Whether a model can share beginnings, or leave out positions: found out by trying, not by its name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contrans_dist.engine.prefixes.groups import Group, Row, plan_groups
from contrans_dist.engine.prefixes.narrowing import longest_row, narrowed
from contrans_dist.engine.prefixes.packing import Packed, pack
from contrans_dist.engine.prefixes.trunks import Trunk, as_arguments, fresh_cache
from contrans_dist.models import LanguageModel
from contrans_dist.models.passing import states_after

_TRUNK = (3, 4)
_TEXTS = [[3, 4, 5, 6, 4], [3, 4, 5, 7, 8, 3], [3, 4, 6, 8]]
_ROWS = [Row((0, 1), 6), Row((2,), 2)]
_UNABLE = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, StopIteration)
"""How models fail that compute in another way."""


def plan_for(
    lm: LanguageModel,
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    batch_tokens: int,
    *,
    head: bool,
    share: bool = True,
    positions: Sequence[int] | None = None,
    most_positions: int | None = None,
) -> list[Group]:
    """`plan_groups` for a model: within its context and windows, and without sharing where it cannot."""
    for sharing in (share, False):
        groups = plan_within(
            lm, ids, own_from, batch_tokens, share=sharing, positions=positions, most_positions=most_positions
        )
        # Tried only where there is something to share.
        if not any(group.shares for group in groups) or can_share(lm, head):
            break
    return groups


def plan_within(
    lm: LanguageModel,
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    batch_tokens: int,
    *,
    share: bool,
    positions: Sequence[int] | None = None,
    most_positions: int | None = None,
) -> list[Group]:
    """`plan_groups` within a model's context and windows. Nothing is run: its weights need not be there."""
    return plan_groups(
        ids,
        own_from,
        batch_tokens,
        share=share,
        bound=longest_row(lm),
        split_at=lm.split_at,
        positions=positions,
        most_positions=most_positions,
    )


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
    # Positions counted from the mask (ALiBi), states that are no keys and values, masks of a model's own:
    # each shows as an error or as other numbers.
    try:
        shared = _shared(lm, head)
        alone = [Row((i,), len(text)) for i, text in enumerate(_TEXTS)]
        plain = _states(lm, pack(alone, _TEXTS, _all_places(0)), head)
    except _UNABLE:
        return False
    own = torch.cat([plain[i, len(_TRUNK) : len(text)] for i, text in enumerate(_TEXTS)])
    return _equal(shared, own)


def _equal(found: Tensor, wanted: Tensor) -> bool:
    rounding = 1e-4 if wanted.dtype == torch.float32 else 3e-2
    return bool((found - wanted).abs().max() <= rounding * wanted.abs().max())


def _all_places(start: int) -> list[list[int]]:
    return [list(range(start, len(text))) for text in _TEXTS]


def _run_trunk(lm: LanguageModel, head: bool) -> Trunk:
    cache = fresh_cache()
    _states(lm, pack([Row((0,), len(_TRUNK))], [list(_TRUNK)], [[0]]), head, past_key_values=cache)
    return Trunk.of(cache)


def _shared(lm: LanguageModel, head: bool) -> Tensor:
    """States of every token after the trunk, text by text."""
    packed = pack(_ROWS, _TEXTS, _all_places(len(_TRUNK)), len(_TRUNK))
    return _states(lm, packed, head, _run_trunk(lm, head))[packed.rows, packed.columns][packed.index]


def _states(
    lm: LanguageModel, packed: Packed, head: bool, trunk: Trunk | None = None, k: int = -1, **more: Any
) -> Tensor:
    """[B, T, d] of block k, of the highest loaded one if none is named."""
    arguments = as_arguments(packed.positions, packed.mask(lm.dtype), trunk, lm.device) | more
    if more:
        arguments["use_cache"] = True
    ids, whole = packed.ids.to(lm.device), lm.model if head else lm.decoder
    states = states_after(lm.blocks[k], lambda: whole(input_ids=ids, **arguments))
    return states.float() if lm.dtype == torch.float32 else states


def can_narrow(lm: LanguageModel, k: int, shared: bool) -> bool:
    """Whether block k comes out the same at wanted positions when it runs at them alone (`narrowed`), in
    plain rows or in such as share their beginnings. Tried once a model, block and kind of row."""
    if (k, shared) not in lm.narrows:
        lm.narrows[k, shared] = _takes_masks(lm) and _narrows(lm, k, shared)
    return lm.narrows[k, shared]


def _narrows(lm: LanguageModel, k: int, shared: bool) -> bool:
    ends = [[len(text) - 1] for text in _TEXTS]
    alone = [Row((i,), len(text)) for i, text in enumerate(_TEXTS)]
    try:
        packed, trunk = pack(alone, _TEXTS, ends), None
        if shared:
            packed, trunk = pack(_ROWS, _TEXTS, ends, len(_TRUNK)), _run_trunk(lm, head=False)
        whole = _states(lm, packed, False, trunk, k)
        with narrowed(lm, k, packed.rows, packed.columns, packed.ids.shape, packed.trunk):
            few = _states(lm, packed, False, trunk, k)
    except _UNABLE:
        return False
    places = packed.rows, packed.columns
    return _equal(few[places], whole[places])
