"""Tensors from one device to another, so that neither waits for more than the copy, and the host for none.

PyTorch runs a copy between two GPUs on the current streams of both, and each then waits for all that the
other has queued. What every block is told (masks, rotary tables) comes from the first GPU: it would not
begin the next batch before the last GPU is through with this one. On streams of their own, copies wait for
what they copy, and only who uses it waits for them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host, or one that is there already, on a device; the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a GPU copies from such memory while the host goes on
    return tensor.to(device, non_blocking=True)


class OnHost:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)
        self._there: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            # Such a one leaves the processor to others while it is waited for.
            self._there = torch.cuda.Event(blocking=True)
            self._there.record(torch.cuda.current_stream(tensor.device))

    def tensor(self) -> Tensor:
        """Itself, once it is there."""
        if self._there is not None:
            self._there.synchronize()
        return self._host


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on another device, as soon as it is computed here; the host does not wait."""
    if tensor.device.type != "cuda" or device.type != "cuda":
        return tensor.to(device, non_blocking=True)
    leaving, arriving = copy_streams(tensor.device)[0], copy_streams(device)[1]
    leaving.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(arriving), torch.cuda.stream(leaving):
        copy = tensor.to(device, non_blocking=True)
    user = torch.cuda.current_stream(device)
    user.wait_stream(arriving)
    # Both belong to one stream and are used on another: their memory must not go before that is through.
    tensor.record_stream(leaving)
    copy.record_stream(user)
    return copy


@cache
def copy_streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """For what leaves a GPU, and for what arrives: the same ones every time, as the allocator gives no stream
    what another has freed."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class Crossing:
    """Brings each block its inputs before accelerate's own hooks do, and what all blocks are told but once
    to a device."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        devices = [_device_of(block) for block in blocks]
        spread = len(set(devices)) > 1 and not {"cpu", "meta"} & {device.type for device in devices}
        self.blocks = list(zip(blocks, devices, strict=True)) if spread else []
        self.known: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        """(original, copy) of what came with this batch, by the original's id and the device"""

    def register(self) -> list[Any]:
        """Hooks onto the blocks; nothing where the model is on one device, or offloaded."""
        return [
            block.register_forward_pre_hook(self._bringing(device), with_kwargs=True)
            for block, device in self.blocks
        ]

    def forget(self) -> None:
        """Another batch begins."""
        self.known = {}

    def _bringing(self, device: torch.device) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return self._there(args, device), {name: self._there(v, device) for name, v in named.items()}

        return hook

    def _there(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._there(part, device) for part in value)
        if not isinstance(value, Tensor) or value.device == device:
            return value
        key = id(value), device
        if key not in self.known:
            self.known[key] = value, copied(value, device)
        return self.known[key][1]


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("meta"))
