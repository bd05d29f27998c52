"""Whether a model's forward pass can share beginnings: found out by trying, not by its name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contrans_dist.models import LanguageModel
from contrans_dist.prefixes.groups import Group, Row, plan_groups
from contrans_dist.prefixes.packing import Packed, pack
from contrans_dist.prefixes.trunks import Trunk, as_arguments, fresh_cache

_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
_TRUNK = (3, 4)
_TEXTS = [[3, 4, 5, 6, 4], [3, 4, 5, 7, 8, 3], [3, 4, 6, 8]]
_ROWS = [Row((0, 1), 1, 6), Row((2,), 0, 2)]


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
        groups = plan_groups(
            ids,
            own_from,
            batch_tokens,
            share=sharing,
            bound=_longest(lm),
            split_at=lm.split_at,
            positions=positions,
            most_positions=most_positions,
        )
        # Tried only where there is something to share.
        if not any(group.shares for group in groups) or can_share(lm, head):
            break
    return groups


def _longest(lm: LanguageModel) -> int | None:
    """Most tokens, trunk included, that a row of several texts may have, and a text to be shared at all; None
    for no bound. Blocks that look back through a window count places in the row, not in the text."""
    found = [getattr(lm.config, name, None) for name in _WINDOWS]
    bounds = (x for x in (*found, lm.context, lm.split_at) if isinstance(x, int) and x > 0)
    return min(bounds, default=None)


def can_share(lm: LanguageModel, head: bool) -> bool:
    """Whether three short texts come out the same with their beginnings shared, through the decoder or, with
    `head`, through the whole model. Tried once a model and way."""
    if head not in lm.shares:
        lm.shares[head] = _agree(lm, head)
    return lm.shares[head]


def _agree(lm: LanguageModel, head: bool) -> bool:
    # Positions counted from the mask (ALiBi), states that are no keys and values, masks of a model's own:
    # each shows as an error or as other numbers.
    try:
        shared = _shared(lm, head)
        alone = [Row((i,), 0, len(text)) for i, text in enumerate(_TEXTS)]
        plain = _states(lm, pack(alone, _TEXTS, _all_places(0)), head)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False
    own = torch.cat([plain[i, len(_TRUNK) : len(text)] for i, text in enumerate(_TEXTS)])
    rounding = 1e-4 if own.dtype == torch.float32 else 3e-2
    return bool((shared - own).abs().max() <= rounding * own.abs().max())


def _all_places(start: int) -> list[list[int]]:
    return [list(range(start, len(text))) for text in _TEXTS]


def _shared(lm: LanguageModel, head: bool) -> Tensor:
    """States of every token after the trunk, text by text."""
    cache = fresh_cache()
    _states(lm, pack([Row((0,), 0, len(_TRUNK))], [list(_TRUNK)], [[0]]), head, past_key_values=cache)
    packed = pack(_ROWS, _TEXTS, [[i for i in places if i >= 3] for places in _all_places(2)], len(_TRUNK))
    states = _states(lm, packed, head, Trunk.of(cache))
    head_token = states[0, :1]
    parts = states[packed.rows, packed.columns].split([2, 3, 1])
    return torch.cat([head_token, parts[0], head_token, parts[1], states[1, :1], parts[2]])


class _Seen(Exception):
    """The highest loaded block has run."""


def _states(lm: LanguageModel, packed: Packed, head: bool, trunk: Trunk | None = None, **more: Any) -> Tensor:
    """[B, T, d] of the highest loaded block."""
    states: list[Tensor] = []

    def hook(_module: Any, _args: Any, output: Any) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])
        raise _Seen

    arguments = as_arguments(packed.positions, packed.mask(lm.dtype), trunk, lm.device) | more
    if more:
        arguments["use_cache"] = True
    handle = lm.blocks[-1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            (lm.model if head else lm.decoder)(input_ids=packed.ids.to(lm.device), **arguments)
    except _Seen:
        pass
    finally:
        handle.remove()
    return states[0].float() if lm.dtype == torch.float32 else states[0]
