"""Bytes that a model takes, from its configuration alone."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contrans_dist.config import ModelSettings
from contrans_dist.models.blocks import find_blocks, text_config
from contrans_dist.models.loading import Described
from contrans_dist.models.precision import DTYPES, computed_in

_SCALE = 4
"""Bytes of a scale: int8 has one for each output of a layer."""
_NF4_BLOCK = 64
"""Weights that share a scale."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a model takes."""

    weights: int
    activations: int
    """Of one batch, on the device that runs it."""
    largest_block: int
    embedding: int = 0
    """Of the weights, the input embeddings."""
    read: int = 0
    """Of the weights in their own precision, as they are read."""
    plain: int = 0
    """Of a quantised model's weights, those that are not quantised."""

    @property
    def total(self) -> int:
        return self.weights + self.activations


def needs(
    described: Described, model: ModelSettings, batch_tokens: int, on_gpu: bool = False, narrow: bool = False
) -> Needs:
    """What a model takes, run in the precision and quantisation of its settings on batches of so many tokens.

    Args:
        described: The model, with or without its head and its higher blocks.
        model: Its settings.
        batch_tokens: Tokens of a batch, padding included.
        on_gpu: Whether it runs on a GPU.
        narrow: Whether its blocks are held in the precision of the weights, as `load_model` has it.

    Raises:
        UserError: For a checkpoint in a precision that no model is run in, unless the settings say another.
    """
    dtype = DTYPES[computed_in(described, model, on_gpu)]
    empty, itemsize = as_held(described, model.quantization, dtype), dtype.itemsize
    _, blocks = find_blocks(empty)
    weights = sum(p.nbytes for p in empty.parameters())
    largest = max(sum(p.nbytes for p in block.parameters()) for block in blocks)
    held = DTYPES[described.dtype(model.dtype)].itemsize
    if narrow and held < itemsize:
        weights += largest - (itemsize - held) * sum(
            p.numel() for block in blocks for p in block.parameters()
        )
    quantised = model.quantization is not None
    return Needs(
        weights,
        activation_bytes(text_config(described.config), batch_tokens, itemsize, described.head),
        largest,
        empty.get_input_embeddings().weight.nbytes,  # type: ignore[operator, union-attr, arg-type]
        weights if quantised else held * sum(p.numel() for p in empty.parameters()),
        sum(p.nbytes for p in empty.parameters() if p.is_floating_point()) if quantised else 0,
    )


def as_held(described: Described, quantization: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, each parameter with the bytes that it takes.

    bitsandbytes quantises the weights of linear layers, but of the head. Experts are no linear layers where
    all of a block lie in one tensor, and stay as they are.

    Args:
        described: The model.
        quantization: `int8`, `nf4` or None.
        dtype: Precision of what is not quantised.
    """
    model = described.empty().to(dtype)
    head = model.get_output_embeddings()
    for layer in list(model.modules()) if quantization is not None else []:
        if layer is head or not (type(layer) is nn.Linear or isinstance(layer, Conv1D)):
            continue
        count = layer.weight.numel()
        if quantization == "int8":
            size = count + _SCALE * (layer.nf if isinstance(layer, Conv1D) else layer.out_features)
        else:
            size = count // 2 + _SCALE * -(-count // _NF4_BLOCK)
        held = torch.empty(size, dtype=torch.uint8, device="meta")
        layer.weight = nn.Parameter(held, requires_grad=False)
    return model


def activation_bytes(config: PretrainedConfig, tokens: int, itemsize: int, head: bool) -> int:
    """Bytes of one block's activations at their peak.

    Sixteen widths and five feed-forward widths a token: what a pass was measured to take, with what the
    allocator keeps.

    Args:
        config: The text decoder's.
        tokens: Tokens of the batch, padding included.
        itemsize: Bytes of a number in the model's precision.
        head: Whether logits are computed, in float32: of an eighth of the tokens.
    """
    d = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * d
    inner = max(inner) if isinstance(inner, list) else inner
    active = getattr(config, "num_experts_per_tok", None) or 1
    wide = getattr(config, "moe_intermediate_size", None) or inner
    count = tokens * itemsize * (16 * d + 5 * max(inner, active * wide))
    return count + (tokens // 8 * config.vocab_size * 4 if head else 0)


def cached_bytes(config: PretrainedConfig, tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values of so many tokens in every block, each number of `itemsize` bytes."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = (getattr(config, "num_key_value_heads", None) or heads) * width
    return tokens * 2 * config.num_hidden_layers * kept * itemsize
