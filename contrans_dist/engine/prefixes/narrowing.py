"""The highest block that runs, at the wanted positions alone.

Above it nothing needs the other positions: there they matter by their keys and values only. So the block's
own forward runs twice: over the whole batch as far as its cache is handed keys and values, then over the
wanted positions, which look at those. B rows, T tokens a row, Q wanted positions a row, S keys a row.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from contrans_dist.engine.prefixes.trunks import pinned
from contrans_dist.models import LanguageModel
from contrans_dist.models.passing import first_of, like, replaced

WORTH = 0.5
"""Largest share of the positions that is worth it: keys, values and queries are computed of all anyhow."""
_WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "attention_chunk_size")
_CACHES = ("past_key_values", "past_key_value", "layer_past")
_STREAM = "hidden_states"


def longest_row(lm: LanguageModel) -> int | None:
    """Most tokens, trunk included, that a row of several texts may have, and a text to be shared at all; None
    for no bound. Blocks that look back through a window count places in the row, not in the text, and some
    from its end."""
    found = [getattr(lm.config, name, None) for name in _WINDOWS]
    bounds = (x for x in (*found, lm.context, lm.split_at) if isinstance(x, int) and x > 0)
    return min(bounds, default=None)


class _Caught(Exception):
    """The block has handed its keys and values to the cache."""


class _Catching(DynamicCache):
    """Takes the keys and values of the whole batch, behind those of `before`, and stops the block."""

    def __init__(self, before: Cache | None) -> None:
        super().__init__()
        self.before = before
        self.caught: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **named: Any
    ) -> Any:
        self.caught = key_states, value_states
        if self.before is not None:
            self.caught = self.before.update(key_states, value_states, layer_idx, *args, **named)
        raise _Caught


class _Giving(DynamicCache):
    """Gives the keys and values of the whole batch, whatever it is handed."""

    def __init__(self, given: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.given = given

    def update(self, *_args: Any, **_named: Any) -> Any:
        return self.given


@dataclass(frozen=True)
class _Grid:
    """The wanted positions, row by row."""

    columns: Tensor
    """int64 [B, Q] on the host; rows with fewer repeat their first column"""
    tokens: int
    """T"""

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, shape: torch.Size) -> "_Grid | None":
        """None where so many positions are wanted that nothing is gained."""
        counts = torch.bincount(rows, minlength=shape[0])
        most = int(counts.max())
        if most > WORTH * shape[1]:
            return None
        order = torch.argsort(rows, stable=True)
        starts = counts.cumsum(0) - counts
        places = torch.arange(most).expand(shape[0], -1).clone()
        places[places >= counts[:, None]] = 0
        # A row without wanted positions takes some column.
        taken = (starts[:, None] + places).clamp(max=len(rows) - 1)
        chosen = columns[order][taken]
        return cls(pinned(chosen), shape[1])

    def index(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.columns.to(tensor.device, non_blocking=True)
        return torch.arange(len(columns), device=tensor.device)[:, None], columns

    def taken(self, value: Any) -> Any:
        """What a block is told of its tokens (`[B or 1, T, ...]`: positions, rotary tables), of the wanted
        ones; anything else as it is."""
        if isinstance(value, tuple | list):
            return type(value)(self.taken(each) for each in value)
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != self.tokens:
            return value
        if value.shape[0] not in (1, len(self.columns)):
            return value
        return value.expand(len(self.columns), *value.shape[1:])[self.index(value)]

    def mask(self, mask: Tensor | None, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """`[B, 1 or heads, Q, S]`; where the block was given none, its attention is causal."""
        if mask is None:
            first, (_, columns) = keys.shape[2] - self.tokens, self.index(keys)
            later = torch.arange(keys.shape[2], device=keys.device) > first + columns[..., None]
            causal = torch.zeros(later.shape, dtype=dtype, device=keys.device)
            return causal.masked_fill(later, torch.finfo(dtype).min)[:, None]
        if mask.ndim != 4:
            raise TypeError(f"an attention mask of {mask.ndim} dimensions")
        rows, columns = self.index(mask)
        every = mask.expand(len(self.columns), *mask.shape[1:])
        return every.transpose(1, 2)[rows, columns].transpose(1, 2)


@contextmanager
def narrowed(
    lm: LanguageModel, k: int, rows: Tensor, columns: Tensor, shape: torch.Size, trunk: int = 0
) -> Iterator[None]:
    """Within it, block k returns the residual stream at (rows, columns), int64 `[N]`, of a batch of `shape`
    `(B, T)` behind `trunk` tokens, and zeros elsewhere (so that hooks on it see them, too).

    Changes nothing where too many positions are wanted, or where a window may be shorter than a row. For
    models with which it works (`support.can_narrow`).
    """
    grid, longest = _Grid.of(rows, columns, shape), longest_row(lm)
    if grid is None or (longest is not None and trunk + shape[1] > longest):
        yield
        return
    block = lm.blocks[k]
    whole, signature = block.forward, inspect.signature(type(block).forward)

    def forward(*args: Any, **named: Any) -> object:
        return _at(grid, whole, _by_name(signature, args, named))

    with replaced(lm.blocks, {k: forward}):
        yield


def _by_name(signature: inspect.Signature, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments by their names, its cache among them even where it was not given."""
    positional = [name for name in signature.parameters if name != "self"]
    cache = next(name for name in _CACHES if name in signature.parameters)
    return {cache: None} | dict(zip(positional, args, strict=False)) | named


def _at(grid: _Grid, whole: Any, arguments: dict[str, Any]) -> object:
    """What block `whole` returns: computed at the wanted positions, zero elsewhere."""
    cache = next(name for name in _CACHES if name in arguments)
    stream: Tensor = arguments.pop(_STREAM)
    mask = arguments.pop("attention_mask", None)
    catching = _Catching(arguments.pop(cache, None))
    with suppress(_Caught):
        whole(stream, attention_mask=mask, **{cache: catching}, **arguments)
    if catching.caught is None:
        raise TypeError("a block that hands no keys and values to its cache")
    few = {name: grid.taken(value) for name, value in arguments.items()}
    few |= {
        "attention_mask": grid.mask(mask, catching.caught[0], stream.dtype),
        cache: _Giving(catching.caught),
    }
    output = whole(stream[grid.index(stream)], **few)
    # On a model that is cut over devices the stream comes from another one.
    state = first_of(output)
    return like(output, state.new_zeros(stream.shape).index_put_(grid.index(state), state))
