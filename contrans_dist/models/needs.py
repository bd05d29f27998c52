"""Bytes that a model takes, from its configuration alone."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from contrans_dist.config import ModelSettings
from contrans_dist.models.blocks import find_blocks, text_config
from contrans_dist.models.loading import Described
from contrans_dist.models.precision import DTYPES, computed_in

_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""A weight of a block: nf4 has a float32 scale for every 64."""


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
    empty, quantization = described.empty(), model.quantization
    itemsize = DTYPES[computed_in(described, model, on_gpu)].itemsize
    _, blocks = find_blocks(empty)
    weights = itemsize * sum(p.numel() for p in empty.parameters())
    largest = itemsize * max(sum(p.numel() for p in block.parameters()) for block in blocks)
    held = DTYPES[described.dtype(model.dtype)].itemsize
    if narrow and held < itemsize:
        weights += largest - (itemsize - held) * sum(
            p.numel() for block in blocks for p in block.parameters()
        )
    if quantization is not None:
        matrices = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
        weights -= round(matrices * (itemsize - _QUANTISED_BYTES[quantization]))
    return Needs(
        weights,
        activation_bytes(text_config(described.config), batch_tokens, itemsize, described.head),
        largest,
        itemsize * empty.get_input_embeddings().weight.numel(),  # type: ignore[operator, union-attr]
        weights if quantization is not None else held * sum(p.numel() for p in empty.parameters()),
    )


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
