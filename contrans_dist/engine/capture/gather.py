"""Rows from inside a forward pass to the host, without ever waiting for the device."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import numpy as np
import torch

from contrans_dist.engine.prefixes import Packed, Trunk
from contrans_dist.engine.prefixes.trunks import as_arguments, fresh_cache
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel
from contrans_dist.models.crossing import Crossing, OnHost, to_device
from contrans_dist.models.passing import Stop, first_of, unpacked

_IN_FLIGHT = 4
"""Batches whose rows may still be on their way to the host, or one more than devices where those are more:
enough to keep them busy, little memory."""


class Gatherer:
    """Hooks on the wanted blocks that keep each text's row, and stop the forward pass after the highest."""

    def __init__(self, lm: LanguageModel, blocks: list[int], mean: bool) -> None:
        self.lm, self.blocks, self.mean = lm, blocks, mean
        self.crossing = Crossing(lm.blocks[: blocks[-1] + 1])
        devices = {device for _, device in self.crossing.blocks}
        self.ahead = 0 if lm.device.type == "cpu" else max(_IN_FLIGHT, len(devices) + 1)
        """Batches whose rows may still be on their way; none where nothing is computed meanwhile."""
        self.handles: list[Any] = []
        self.rows: dict[int, torch.Tensor] = {}
        self.places: dict[torch.device, torch.Tensor] = {}
        """int64 [2, texts]: row and column of each text's token, on each device; empty while a trunk runs"""

    def __enter__(self) -> Self:
        self.handles += self.crossing.register()
        for block in self.blocks:
            self.handles.append(self.lm.blocks[block].register_forward_hook(self._hook(block)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, block: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            hidden = first_of(output)
            if self.places:
                rows, columns = self._places_on(hidden.device)
                self.rows[block] = gather_rows(hidden, rows, columns, self.mean)
            if block == self.blocks[-1]:
                raise Stop

        return hook

    def _places_on(self, device: torch.device) -> torch.Tensor:
        if device not in self.places:
            self.places[device] = to_device(self.places[torch.device("cpu")], device)
        return self.places[device]

    def run(self, batch: Packed, trunk: Trunk | None = None) -> dict[int, torch.Tensor]:
        """Rows of one batch by block, `[texts, d]` on the block's device."""
        self.rows = {}
        places = torch.stack([batch.rows, batch.columns])[:, batch.index]
        self.places = {torch.device("cpu"): places}
        self._forward(batch.ids, as_arguments(self.lm, batch, trunk))
        idle = [block for block in self.blocks if block not in self.rows]
        if idle:
            raise RunError(f"block {idle[0]} of {self.lm.name} does not run on text alone; leave it out")
        captured, self.rows = self.rows, {}
        return captured

    def trunk(self, ids: Sequence[int]) -> Trunk:
        """Keys and values of a trunk, up to the highest wanted block."""
        self.places, cache = {}, fresh_cache()
        self._forward(torch.tensor([ids]), self.lm.keeping(cache))
        return Trunk.of(cache)

    def _forward(self, ids: torch.Tensor, arguments: dict[str, Any]) -> None:
        self.crossing.forget()
        with torch.no_grad(), unpacked(), suppress(Stop):
            self.lm.decoder(input_ids=to_device(ids, self.lm.device), **arguments)


def gather_rows(hidden: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, mean: bool) -> torch.Tensor:
    """[B, T, d] -> [texts, d]: the states at (row, column); with `mean`, where each row is one text, the
    mean of the row's states up to its column."""
    if not mean:
        return hidden[rows, columns]
    outside = torch.arange(hidden.shape[1], device=hidden.device)[None, :] > columns[:, None]
    return hidden.float().masked_fill(outside[:, :, None], 0).sum(1) / (columns[:, None] + 1)


class Landing:
    """Rows on their way to the host, put into their place once they are there."""

    def __init__(self, blocks: list[int], n_texts: int, d: int) -> None:
        self.arrays = {block: np.empty((n_texts, d), dtype=np.float32) for block in blocks}
        self.flying: deque[list[tuple[list[int], list[int], OnHost]]] = deque()
        """Of each batch, by device: texts, blocks, and their rows `[blocks, texts, d]`"""

    def add(self, texts: list[int], rows: dict[int, torch.Tensor], ahead: int) -> None:
        """Rows of a batch of the texts of these numbers, by block; from each device they go together. Waits
        for all batches but the newest `ahead`."""
        by_device: dict[torch.device, list[int]] = {}
        for block in self.arrays:
            by_device.setdefault(rows[block].device, []).append(block)
        self.flying.append(
            [
                (texts, blocks, OnHost(torch.stack([rows[block] for block in blocks])))
                for blocks in by_device.values()
            ]
        )
        self.land(ahead)

    def land(self, leave: int = 0) -> None:
        """Waits for all batches but the newest `leave`."""
        while len(self.flying) > leave:
            for texts, blocks, rows in self.flying.popleft():
                for block, values in zip(blocks, rows.tensor().float().numpy(), strict=True):
                    self.arrays[block][texts] = values
