"""Where the decoder blocks of a model are, and which of them a user means."""

import math
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


def matched_depth(n_blocks: int, fraction: float = 0.75) -> int:
    """The block, from 0, at a share of a model's depth: 24 of 32, 30 of 40, 60 of 80 at 0.75, as in the
    papers' code."""
    return min(max(round(fraction * n_blocks), 0), n_blocks - 1)


def upper_blocks(n_blocks: int, share: float) -> range:
    """The blocks, from 0, of the upper part of a model: the share of them, rounded up."""
    return range(n_blocks - math.ceil(share * n_blocks - 1e-9), n_blocks)


def _resolve_part(part: str, n_blocks: int) -> list[int]:
    """Blocks of one part of a specification; ValueError where it means nothing or lies outside."""
    if re.fullmatch(r"\d*\.\d*", part):
        fraction = float(part)
        if not 0 <= fraction <= 1:
            raise ValueError
        return [matched_depth(n_blocks, fraction)]
    if ":" in part:
        start, stop = (
            int(end) if end else default for end, default in zip(part.split(":"), (0, n_blocks), strict=True)
        )
        start, stop = (end + n_blocks if end < 0 else end for end in (start, stop))
        if not 0 <= start < stop <= n_blocks:
            raise ValueError
        return list(range(start, stop))
    block = int(part)
    if not -n_blocks <= block < n_blocks:
        raise ValueError
    return [block % n_blocks]


def resolve_blocks(spec: str | float, n_blocks: int, flag: str = "--blocks") -> list[int]:
    """The block numbers, from 0, that a specification means, sorted and each once.

    Args:
        spec: `all`; a block `24` (`-1` is the last); a range `8:16`, half-open as in Python: 8 to 15; a share
            of the depth `0.75`; or several of them, `3,5,8:16`.
        n_blocks: Blocks of the model.
        flag: What messages call the specification.

    Raises:
        UserError: For anything else, naming the valid blocks.
    """
    text = str(spec).strip()
    if text == "all":
        return list(range(n_blocks))
    try:
        return sorted({b for part in text.split(",") for b in _resolve_part(part.strip(), n_blocks)})
    except ValueError:
        raise UserError(
            f"{flag} {text}: expected all, a block, a range such as 0:{n_blocks} (end not included), a list"
            f" such as 0,{n_blocks - 1}, or a share of the depth such as 0.75;"
            f" this model has blocks 0 to {n_blocks - 1}"
        ) from None
