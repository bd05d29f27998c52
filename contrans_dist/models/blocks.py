"""Where the decoder blocks of a model are."""

import re
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from contrans_dist.errors import UserError

LOADED = "n_loaded_blocks"
"""Attribute of a model and its decoder that were cut to the lowest blocks: how many there are."""

EXPECTED = "a decoder-only language model with attention blocks is expected"


def model_type(model: Any) -> str:
    """The name that transformers has for a model's architecture."""
    return getattr(model.config, "model_type", "") or type(model).__name__


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes the text decoder (all of it for a model of text alone).

    Raises UserError for encoder-decoder models, and for configurations without a number of blocks.
    """
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model type '{kind}' is an encoder-decoder; a decoder-only language model is expected"
        )
    try:
        text = config.get_text_config(decoder=True)
    except ValueError as error:
        raise UserError(f"model type '{kind}' has no single text decoder: {error}") from error
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        raise UserError(
            f"model type '{kind}' does not say how many decoder blocks it has (num_hidden_layers)"
        )
    return text


def _attentions(block: nn.Module) -> list[nn.Module]:
    return [m for m in block.modules() if re.search("attention|attn", type(m).__name__, re.IGNORECASE)]


def _lists_of(decoder: nn.Module, length: int) -> list[nn.ModuleList]:
    """The shallowest module lists of that length: lists further down (experts) are parts of a block."""
    level: list[nn.Module] = [decoder]
    while level:
        children = [child for module in level for child in module.children()]
        lists = [c for c in children if isinstance(c, nn.ModuleList) and len(c) == length]
        if lists:
            return lists
        level = children
    return []


def find_blocks(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The text decoder of a Hugging Face model (with or without head, or inside a multimodal wrapper) and its
    list of decoder blocks, lowest first.

    Found by structure: the decoder's list of modules as long as the configuration's `num_hidden_layers`,
    whose members hold attention that looks back only. Raises UserError naming the model type where there is
    none.
    """
    text = text_config(model.config)
    kind = model_type(model)
    cut = hasattr(model, LOADED)
    n_blocks = getattr(model, LOADED, text.num_hidden_layers)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = _lists_of(decoder, n_blocks)
    if not lists and text is model.config:
        # Some heads have a layer of their own named `decoder`.
        decoder = model.base_model
        lists = _lists_of(decoder, n_blocks)
    if not lists:
        raise UserError(f"model type '{kind}': no list of {n_blocks} decoder blocks in it; {EXPECTED}")
    # The lowest blocks of a hybrid model may hold no attention: whoever cut it has looked at all of them.
    lists = [blocks for blocks in lists if cut or any(_attentions(block) for block in blocks)]
    if not lists:
        raise UserError(f"model type '{kind}' has no attention in its blocks; {EXPECTED}")
    if len(lists) > 1:
        raise UserError(f"model type '{kind}' has {len(lists)} lists of {n_blocks} blocks; {EXPECTED}")
    for block in lists[0]:
        if any(getattr(m, "is_causal", None) is False for m in _attentions(block)):
            raise UserError(f"model type '{kind}' attends to later tokens; {EXPECTED}")
    return decoder, lists[0]
