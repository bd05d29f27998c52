"""Running a model's own forward with some of its blocks replaced for the time of the call.

Embeddings, masks, positions and rotary tables stay the model's own; calling blocks by hand with copied
arguments breaks on one architecture or the next.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
        for k, own in before.items():
            if own is None:
                del blocks[k].forward
            else:
                blocks[k].forward = own


def handing(function: Callable[[Tensor], object]) -> Callable[..., object]:
    """`function` of the residual stream as a block's forward; the stream comes first, or by its name."""

    def forward(*args: Any, **named: Any) -> object:
        return function(args[0] if args else named["hidden_states"])

    return forward


@contextmanager
def unpacked() -> Iterator[None]:
    """Spare transformers its look, on the host, for several texts in one row: it would wait for the device at
    the beginning of every forward pass, and rows that hold several texts come with a mask of their own."""
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
