"""Running a model's own forward with some of its blocks replaced for the time of the call.

Embeddings, masks, positions and rotary tables stay the model's own; calling blocks by hand with copied
arguments breaks on one architecture or the next.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils

_PACKED = "find_packed_sequence_indices"


@contextmanager
def replaced(
    blocks: Sequence[nn.Module] | nn.ModuleList, forwards: Mapping[int, Callable[..., object]]
) -> Iterator[None]:
    """Run `forwards[k]` in place of block k's forward."""
    before: dict[int, Any] = {}
    try:
        for k, forward in forwards.items():
            # accelerate and others also put a forward on the instance: it is put back, not just deleted.
            before[k] = blocks[k].__dict__.get("forward")
            blocks[k].forward = forward  # type: ignore[method-assign, assignment]
        yield
    finally:
        for k, forward in before.items():
            if forward is None:
                del blocks[k].forward
            else:
                blocks[k].forward = forward


def handing(function: Callable[[Tensor], object]) -> Callable[..., object]:
    """`function` of the residual stream as a block's forward."""

    def forward(*args: Any, **named: Any) -> object:
        return function(stream_of(args, named))

    return forward


def stream_of(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The residual stream that a block is given: it comes first, or by its name."""
    stream: Tensor = args[0] if args else named["hidden_states"]
    return stream


def first_of(output: object) -> Tensor:
    """The residual stream in what a block returned: the tensor itself, or a tuple's first element."""
    state = output[0] if isinstance(output, tuple) else output
    if not isinstance(state, Tensor):
        raise TypeError(
            f"a decoder block returned {type(state).__name__}, not a tensor or a tuple of tensors"
        )
    return state


def like(output: object, state: Tensor) -> object:
    """`state` in the structure of `output`: bare, or first in a tuple."""
    return (state, *output[1:]) if isinstance(output, tuple) else state


class Stop(Exception):
    """What was wanted of a forward pass is there; nothing above it runs."""


def states_after(block: nn.Module, run: Callable[[], object]) -> Tensor:
    """What the block returns within `run`, `[B, T, d]`; nothing above it runs."""
    states: list[Tensor] = []

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        states.append(first_of(output))
        raise Stop

    handle = block.register_forward_hook(hook)
    try:
        with torch.no_grad(), suppress(Stop):
            run()
    finally:
        handle.remove()
    return states[0]


@contextmanager
def unpacked() -> Iterator[None]:
    """Spare transformers its look, on the host, for several texts in one row: it would wait for the device at
    the beginning of every forward pass, and rows that hold several texts come with a mask of their own.

    A function of its module is replaced, as no argument spares the look and keeps the rest: it is left out
    where there is a mask (then attention takes slower kernels, and other looks at the mask wait as well) or a
    cache (which some architectures want to be of a class of their own). A transformers without that function,
    or which does not call it, loses nothing but the time. Seen to work with transformers 5.0.0 and 5.24.0.
    """
    before = getattr(masking_utils, _PACKED, None)
    if before is None or before is _none_packed:
        yield
        return
    setattr(masking_utils, _PACKED, _none_packed)
    try:
        yield
    finally:
        setattr(masking_utils, _PACKED, before)


def _none_packed(*_args: Any, **_named: Any) -> None:
    return None
