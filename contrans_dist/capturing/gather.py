"""Rows from inside a forward pass to the host, without ever waiting for the device."""

from collections import deque
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel

_IN_FLIGHT = 4
"""Batches whose rows may still be on their way to the host: enough to keep a device busy, little memory."""


class _Stop(Exception):
    """The highest block has run; nothing above it is wanted."""


class Gatherer:
    """Hooks on the wanted blocks that keep each text's row, and stop the forward pass after the highest."""

    def __init__(self, lm: LanguageModel, blocks: list[int], mean: bool) -> None:
        self.lm, self.blocks, self.mean = lm, blocks, mean
        self.handles: list[Any] = []
        self.rows: dict[int, torch.Tensor] = {}
        self.index: dict[torch.device, torch.Tensor] = {}

    def __enter__(self) -> Self:
        for block in self.blocks:
            self.handles.append(self.lm.blocks[block].register_forward_hook(self._hook(block)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, block: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            self.rows[block] = self._gather(hidden)
            if block == self.blocks[-1]:
                raise _Stop

        return hook

    def _gather(self, hidden: torch.Tensor) -> torch.Tensor:
        """[texts, tokens, d] -> [texts, d]"""
        if hidden.device not in self.index:
            self.index[hidden.device] = self.index[torch.device("cpu")].to(hidden.device, non_blocking=True)
        last = self.index[hidden.device]
        if not self.mean:
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        outside = torch.arange(hidden.shape[1], device=hidden.device)[None, :] > last[:, None]
        return hidden.float().masked_fill(outside[:, :, None], 0).sum(1) / (last[:, None] + 1)

    def run(self, ids: list[list[int]], tokens: list[int]) -> tuple[torch.Tensor, torch.Event | None]:
        """Rows `[blocks, texts, d]` of one batch on the host, and the event after which they are there."""
        # No mask: with padding on the right, no token before it can see it.
        padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for row, text in zip(padded, ids, strict=True):
            row[: len(text)] = torch.tensor(text)
        index = torch.tensor(tokens)
        # An embedding that accelerate keeps on disk is on `meta`; its hook moves the ids.
        device = self.lm.device if self.lm.device.type != "meta" else torch.device("cpu")
        if device.type == "cuda":
            padded, index = padded.pin_memory(), index.pin_memory()
        self.rows, self.index = {}, {torch.device("cpu"): index}
        try:
            with torch.no_grad():
                self.lm.decoder(input_ids=padded.to(device, non_blocking=True), use_cache=False)
        except _Stop:
            pass
        idle = [block for block in self.blocks if block not in self.rows]
        if idle:
            raise RunError(f"block {idle[0]} of {self.lm.name} does not run on text alone; leave it out")
        device = self.rows[self.blocks[-1]].device
        together = torch.stack([self.rows[block].to(device, non_blocking=True) for block in self.blocks])
        self.rows = {}
        host = together.to("cpu", non_blocking=True)
        return host, torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


class Landing:
    """Rows on their way to the host, put into their place once they are there."""

    def __init__(self, blocks: list[int], n_texts: int, d: int) -> None:
        self.arrays = {block: np.empty((n_texts, d), dtype=np.float32) for block in blocks}
        self.flying: deque[tuple[list[int], torch.Tensor, torch.Event | None]] = deque()

    def add(self, texts: list[int], rows: torch.Tensor, event: torch.Event | None) -> None:
        """Rows `[blocks, texts, d]` of the texts of these numbers, there once `event` has happened."""
        self.flying.append((texts, rows, event))
        self.land(_IN_FLIGHT)

    def land(self, leave: int = 0) -> None:
        """Waits for all batches but the newest `leave`."""
        while len(self.flying) > leave:
            texts, rows, event = self.flying.popleft()
            if event is not None:
                event.synchronize()
            for block, values in zip(self.arrays, rows.float().numpy(), strict=True):
                self.arrays[block][texts] = values
