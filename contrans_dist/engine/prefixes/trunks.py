"""The keys and values of a trunk, as a cache that no batch adds to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from contrans_dist.engine.prefixes.packing import Packed
from contrans_dist.models import LanguageModel
from contrans_dist.models.crossing import to_device


class _TrunkLayer(DynamicLayer):
    """Keys and values `[C, heads, P, width]` of one block's trunk, before those of whatever batch comes.

    A batch of C * B rows holds the rows of trunk c at c * B and after.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_named: Any) -> Any:
        """The trunk's keys and values with the batch's behind them. Nothing is kept: batches do not follow
        one another, and the keys of all blocks together are far larger than those of one."""
        return _behind(self.keys, key_states), _behind(self.values, value_states)


def _behind(trunk: Tensor, new: Tensor) -> Tensor:
    times, length = len(trunk), trunk.shape[2]
    rows, heads, tokens, width = new.shape
    both = new.new_empty(rows, heads, length + tokens, width)
    by_trunk = both.view(times, rows // times, heads, length + tokens, width)
    by_trunk[:, :, :, :length] = trunk[:, None]
    both[:, :, length:] = new
    return both


class Trunk:
    """Keys and values of a trunk at each block that has run, for C interventions (or one for all)."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        self.layers = list(layers)

    @classmethod
    def of(cls, cache: Cache) -> "Trunk":
        """What a forward pass over the trunk has left in its cache."""
        return cls(
            [
                (layer.keys, layer.values) if getattr(layer, "is_initialized", False) else None
                for layer in cache.layers
            ]
        )

    @classmethod
    def of_all(cls, parts: "Sequence[Trunk]") -> "Trunk":
        """The interventions of one part after those of the other. The parts are empty then: so no more than
        one block's keys and values are there twice."""
        layers: list[tuple[Tensor, Tensor] | None] = []
        for k, same in enumerate(zip(*(part.layers for part in parts), strict=True)):
            there = [layer for layer in same if layer is not None]
            keys, values = zip(*there, strict=True) if there else ((), ())
            layers.append((torch.cat(keys), torch.cat(values)) if there else None)
            for part in parts:
                part.layers[k] = None
        return cls(layers)

    def above(self, upper: "Trunk", start: int, stop: int) -> "Trunk":
        """The lower blocks of this trunk, and of the blocks that `upper` has run the rows of interventions
        `start` to `stop`."""
        size = max(len(self.layers), len(upper.layers))
        low = self.layers + [None] * (size - len(self.layers))
        high = upper.layers + [None] * (size - len(upper.layers))
        return Trunk(
            [
                lower if higher is None else (higher[0][start:stop], higher[1][start:stop])
                for lower, higher in zip(low, high, strict=True)
            ]
        )

    def cache(self) -> Cache:
        """As the cache to give to the model; it may be given again and again."""
        first = next(layer for layer in self.layers if layer is not None)
        cache = DynamicCache()
        # A block that has not run is asked only for its length.
        cache.layers = [_TrunkLayer(*(layer or first)) for layer in self.layers]
        return cache


def fresh_cache() -> Cache:
    """An empty cache that keeps everything, whatever a block's window: the masks do the rest."""
    return DynamicCache()


def as_arguments(
    lm: LanguageModel,
    batch: Packed,
    trunk: Trunk | None = None,
    keep: Cache | None = None,
    times: int = 1,
) -> dict[str, Any]:
    """What a forward pass over a batch is told beside its token ids, the batch being there so many times
    over. `trunk`: what comes before it; `keep`: where its own keys and values are kept."""
    cache = keep if trunk is None else trunk.cache()
    named: dict[str, Any] = {"use_cache": False} if cache is None else lm.keeping(cache)
    positions, mask = batch.positions, batch.mask(lm.dtype)
    if positions is not None and mask is not None:
        positions, mask = (to_device(each, lm.device) for each in (positions, mask))
        if times > 1:  # on the device: what is copied there is the smaller
            positions, mask = positions.repeat(times, 1), mask.repeat(times, 1, 1, 1)
        named["position_ids"], named["attention_mask"] = positions, mask
    return named
