"""Adding a concept vector to the residual stream of a running model (equation 3 of ConTrans)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, find_blocks, text_config
from contrans_dist.models.passing import first_of, like

Vector = Tensor | np.ndarray | Mapping[int, Tensor | np.ndarray]


@contextmanager
def steer(
    model: LanguageModel | nn.Module,
    vector: Vector,
    *,
    block: int | Sequence[int] | None = None,
    strength: float = 1.0,
) -> Iterator[None]:
    """Add `strength * vector` to the output of decoder blocks, at every position, inside a `with`.

    Works under `generate` with a cache. Strength 0 registers no hook at all.

    Args:
        model: A `LanguageModel`, or any Hugging Face model with decoder blocks.
        vector: `[d]` (the same for each block named in `block`), `[n_blocks, d]` (each block its own row;
            without `block` all rows that are not zero) or `{block: [d]}`, in the residual stream's units. It
            is brought to the dtype and device of the block's output.
        block: The block or blocks, from 0.
        strength: The vector's coefficient.

    Raises:
        UserError: For a vector of another width, a block that the model has not, or a vector that is not
            finite.

    Example:
        >>> with steer(model, vector, block=6, strength=2.0):
        ...     model.model.generate(**inputs)
    """
    if isinstance(model, LanguageModel):
        blocks, d = model.blocks, model.d
    else:
        blocks, d = list(find_blocks(model)[1]), int(text_config(model.config).hidden_size)
    rows = _rows_by_block(vector, block, len(blocks), d)
    offsets = {k: strength * row for k, row in rows.items()} if strength != 0 else {}
    with added(blocks, offsets):
        yield


@contextmanager
def added(blocks: Sequence[nn.Module], offsets: Mapping[int, Tensor]) -> Iterator[None]:
    """Hook `offsets[k]` onto block k's output: `[d]` for the whole batch, or `[B, d]`, a row for each row."""
    handles = []
    try:
        for k, offset in offsets.items():
            # First in line: what other hooks see (output_hidden_states, a capture) is the steered stream.
            handles.append(blocks[k].register_forward_hook(_adder(offset), prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows_by_block(
    vector: Vector, block: int | Sequence[int] | None, n_blocks: int, d: int
) -> dict[int, Tensor]:
    """The float32 `[d]` row of each block that the vector is to be added to; see `steer`."""
    if isinstance(vector, Mapping):
        if block is not None:
            raise UserError("give blocks either as the keys of the vector or as `block`, not both")
        rows = {int(k): _tensor(v) for k, v in vector.items()}
    else:
        rows = _rows_of_array(_tensor(vector), block, n_blocks, d)
    for k, row in rows.items():
        check_row(k, row, n_blocks, d)
    return rows


def check_row(k: int, row: Tensor, n_blocks: int, d: int) -> None:
    """Raise UserError unless block `k` exists and `row` is a finite vector as wide as the model."""
    _check_block(k, n_blocks)
    if row.shape != (d,):
        raise UserError(f"vector for block {k} has shape {tuple(row.shape)}, the model's hidden size is {d}")
    if not bool(torch.isfinite(row).all()):
        raise UserError(f"vector for block {k} holds values that are not finite")


def _adder(offset: Tensor):  # type: ignore[no-untyped-def]
    """A forward hook that adds `offset` ([d] or [B, d]) to the block's output."""
    placed = offset if offset.ndim == 1 else offset.unsqueeze(1)

    def hook(_module: nn.Module, _args: object, output: object) -> object:
        nonlocal placed
        state = first_of(output)
        # Moved once, on the first call: a copy from the host in each decoding step would stall a GPU.
        placed = placed.to(device=state.device, dtype=state.dtype)
        return like(output, state + placed)

    return hook


def _rows_of_array(
    array: Tensor, block: int | Sequence[int] | None, n_blocks: int, d: int
) -> dict[int, Tensor]:
    chosen = None if block is None else [block] if isinstance(block, int | np.integer) else list(block)
    if array.ndim == 1:
        if chosen is None:
            raise UserError("a vector of one row needs `block`: the block or blocks to add it to")
        return {int(k): array for k in chosen}
    if array.ndim != 2 or array.shape[0] != n_blocks:
        raise UserError(
            f"vector has shape {tuple(array.shape)}; expected [{d}] or [{n_blocks}, {d}] for this model"
        )
    if chosen is None:
        return {k: row for k, row in enumerate(array) if bool(row.any())}
    for k in chosen:
        _check_block(k, n_blocks)
        if not bool(array[k].any()):
            raise UserError(f"the vector carries nothing at block {k}: its row is zero")
    return {int(k): array[k] for k in chosen}


def _check_block(k: int, n_blocks: int) -> None:
    if not 0 <= k < n_blocks:
        raise UserError(f"block {k}: the model has blocks 0 to {n_blocks - 1}")


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    return torch.as_tensor(values).detach().to(torch.float32)
