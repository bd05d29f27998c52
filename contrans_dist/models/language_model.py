"""A loaded model with all that the engines need to know of it."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel

from contrans_dist.errors import UserError
from contrans_dist.models.blocks import EXPECTED, find_blocks, model_type, text_config
from contrans_dist.models.devices import leave_out_cudnn
from contrans_dist.models.passing import states_after
from contrans_dist.models.tokens import special_tokens

_log = logging.getLogger(__name__)

CPU_TOKENS = 512
"""Tokens in one forward pass on a CPU, at most: larger ones leave its caches, and gain nothing."""
_POSITIONS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "seq_length",
    "max_sequence_length",
)  # fmt: skip
"""What architectures call the number of positions."""
_SANE_LENGTH = 10**7
"""Tokenizers that know no limit say something like 1e30."""


@dataclass
class LanguageModel:
    """A decoder-only language model, ready to be read and steered."""

    model: PreTrainedModel
    tokenizer: Any
    decoder: nn.Module
    blocks: list[nn.Module]
    """The blocks that are loaded, lowest first."""
    n_blocks: int
    """Blocks of the whole model, loaded or not."""
    d: int
    """Width of the residual stream."""
    name: str = ""
    """What messages call it."""
    context: int | None = None
    """Tokens for which the model has positions; None where nothing limits them."""
    front: list[int] = field(default_factory=list)
    """Tokens that the tokenizer puts before every text (BOS)."""
    weights_dtype: torch.dtype | None = None
    """Precision of the weights' values, where they were read from files; `dtype` may be a wider one."""
    split_at: int | None = None
    """Texts longer than this change the rotary frequencies of a whole batch: none shorter belongs in it."""
    fits: int | None = None
    """Tokens of the largest batch that has a chance to fit into memory; None while all have fitted."""
    ran_out: bool = False
    """Whether it was said that memory ran out, which is said once."""
    streamed_on: torch.device | None = None
    """The device that a streamed model runs on: between two sweeps its embeddings lie on none."""
    guides: "tuple[LanguageModel, LanguageModel] | None" = None
    """(tuned, plain): the difference of their logits is added to this model's (`guided`)."""
    shares: dict[bool, bool] = field(default_factory=dict)
    """Whether common beginnings can be shared, without and with the head; see `prefixes.can_share`."""

    @property
    def config(self) -> PretrainedConfig:
        """The text decoder's configuration."""
        return text_config(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embeddings."""
        if self.streamed_on is not None:
            return self.streamed_on
        device = self.decoder.get_input_embeddings().weight.device  # type: ignore[operator,union-attr]
        # Offloaded weights lie on no device between calls; accelerate then moves the inputs itself.
        return torch.device("cpu") if device.type == "meta" else device  # type: ignore[union-attr,return-value]

    def largest_batch(self, batch_tokens: int) -> int:
        """Tokens of a batch, at most: as asked, on a CPU no more than `CPU_TOKENS`."""
        return min(batch_tokens, CPU_TOKENS) if self.device.type == "cpu" else batch_tokens

    def did_not_fit(self, tokens: int) -> None:
        """A batch of so many tokens did not fit into a GPU's memory: from here on none is tried that is more
        than half as large. Said once a model. To be called outside the handler of the exception: only then
        has the failed batch let go of its memory."""
        torch.cuda.empty_cache()
        if not self.ran_out:
            _log.warning(
                "%s: out of memory at %d tokens a batch; going on with smaller batches", self.name, tokens
            )
        self.fits, self.ran_out = tokens // 2, True

    @property
    def dtype(self) -> torch.dtype:
        """Type that the model computes in."""
        return self.model.dtype

    def keeping(self, cache: Cache | None) -> dict[str, Any]:
        """What a forward pass is told so that it reads and keeps keys and values in `cache`."""
        return {self.cache_name: cache, "use_cache": True}

    @cached_property
    def cache_name(self) -> str:
        """What the model calls its keys and values: `past_key_values`, from transformers 5.24 on `cache`."""
        return "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"


def guided(lm: LanguageModel, tuned: LanguageModel, plain: LanguageModel) -> LanguageModel:
    """A model guided by two others, by proxy-tuning (arXiv 2401.08565; EFT, 2310.12962): token by token, its
    logits are those of `lm` + (tuned - plain).

    Args:
        lm: The model that answers.
        tuned: A small model after tuning.
        plain: The same before it.

    Raises:
        UserError: Unless all three agree on every token that all of them have.
    """
    vocabularies = [
        {i: token for token, i in model.tokenizer.get_vocab().items()} for model in (lm, tuned, plain)
    ]
    common = set.intersection(*(set(vocabulary) for vocabulary in vocabularies))
    for guide, vocabulary in zip((tuned, plain), vocabularies[1:], strict=True):
        if any(vocabulary[i] != vocabularies[0][i] for i in common):
            raise UserError(
                f"proxy-tuning: {guide.name} has another vocabulary than {lm.name}; logits can only be added "
                "token by token"
            )
    contexts = [model.context for model in (lm, tuned, plain) if model.context is not None]
    splits = [model.split_at for model in (lm, tuned, plain) if model.split_at is not None]
    return replace(
        lm,
        guides=(tuned, plain),
        context=min(contexts, default=None),
        split_at=min(splits, default=None),
        shares={},
    )


def positions(config: PretrainedConfig) -> int | None:
    """Tokens for which a model has positions, by its text decoder's configuration; None where it has none."""
    lengths = (getattr(config, name, None) for name in _POSITIONS)
    return next((int(x) for x in lengths if isinstance(x, int) and 0 < x < _SANE_LENGTH), None)


def tokenizer_limit(tokenizer: Any) -> int | None:
    """What a tokenizer's own files say of the length of texts (`model_max_length`); None for nothing."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if isinstance(limit, int) and 0 < limit < _SANE_LENGTH else None


def _split_at(config: PretrainedConfig) -> int | None:
    """Length from which `longrope` rotary embeddings change their frequencies, for the whole batch."""
    ropes = getattr(config, "rope_parameters", None) or {}
    limits = [
        rope["original_max_position_embeddings"]
        for rope in (ropes, *ropes.values())
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope"
    ]
    return min(limits, default=None)


def check_looks_back(model: PreTrainedModel, states: Tensor) -> None:
    """UserError where a token's state depends on what follows it: not every architecture says so, and its
    rows would silently be wrong. `states`: `[2, 3, d]` of a block, of two texts that differ in the last
    token."""
    one, other = states[:, 1].float().cpu()
    # Kernels may round the two texts differently; attention to the third token changes more than that.
    rounding = 1e-4 if states.dtype == torch.float32 else 1e-2
    if (one - other).abs().max() > rounding * one.abs().max():
        raise UserError(f"model type '{model_type(model)}' attends to later tokens; {EXPECTED}")


def _probe(model: PreTrainedModel, decoder: nn.Module, block: nn.Module, d: int) -> None:
    """UserError where a block returns something else than one residual stream, or looks ahead."""
    device = decoder.get_input_embeddings().weight.device  # type: ignore[operator,union-attr]
    if device.type == "meta":  # no weights, or on disk
        return
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=device)
    states = states_after(block, lambda: decoder(input_ids=ids, use_cache=False))
    shape = list(states.shape)
    if shape != [2, 3, d]:
        kind = model_type(model)
        raise UserError(f"model type '{kind}': a block returns {shape} for 2 texts of 3 tokens; {EXPECTED}")
    check_looks_back(model, states)


def wrap_model(model: PreTrainedModel, tokenizer: Any, name: str = "") -> LanguageModel:
    """A model that is already in memory as a `LanguageModel`; puts it into evaluation mode. From here on the
    process leaves cuDNN's attention out (`leave_out_cudnn`).

    Args:
        model: A Hugging Face model, with or without its head.
        tokenizer: Its tokenizer.
        name: What messages call it; by default its `name_or_path`.

    Raises:
        UserError: Where it is no decoder-only language model.
    """
    leave_out_cudnn()
    decoder, blocks = find_blocks(model)
    config = text_config(model.config)
    _probe(model.eval(), decoder, blocks[0], config.hidden_size)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        decoder=decoder,
        blocks=list(blocks),
        n_blocks=config.num_hidden_layers,
        d=config.hidden_size,
        name=name or getattr(model, "name_or_path", ""),
        context=positions(config),
        front=special_tokens(tokenizer)[0] if tokenizer is not None else [],
        split_at=_split_at(config),
    )
