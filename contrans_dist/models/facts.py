"""What can be known of a model without loading its weights."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from transformers import PretrainedConfig

from contrans_dist.models.blocks import text_config
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.identity import tokenizer_hash, weights_identity
from contrans_dist.models.language_model import positions, tokenizer_limit
from contrans_dist.models.loading import describe
from contrans_dist.models.pretrained import load_tokenizer
from contrans_dist.models.tokens import chat_prompts
from contrans_dist.store.patience import patiently


@dataclass(frozen=True)
class ModelFacts:
    """Shape and identity of a model."""

    name: str
    model_type: str
    n_blocks: int
    d: int
    """Width of the residual stream."""
    dtype: str
    """The precision it will be run in: as asked, else the checkpoint's own."""
    weights: str
    """See `weights_identity`."""
    tokenizer: str
    """See `tokenizer_hash`."""
    config: str
    """SHA-256 of the configuration: rotary settings and the like change rows, not weights."""
    context: int | None
    """Tokens for which the model has positions; None where nothing limits them."""
    tokenizer_limit: int | None
    """What the tokenizer's own files say of the length of texts, by which nothing is cut."""
    reads: Any = field(repr=False, compare=False)
    """The tokenizer itself."""

    def prompts(self, texts: list[str], chat: bool, chat_date: date) -> list[str]:
        """Texts as they are cut into tokens: in the chat template, if asked. Raises UserError where the
        tokenizer has none."""
        return chat_prompts(self.reads, texts, chat_date, self.name) if chat else texts


@patiently
def model_facts(name: str, *, dtype: str | None = None, trust_remote_code: bool = False) -> ModelFacts:
    """Facts from the configuration, the tokenizer and the weight files. Raises as `load_model`."""
    described = describe(name, head=False, trust_remote_code=trust_remote_code)
    source, revision, config = described.source, described.revision, described.full
    with hub_errors(name):
        tokenizer = load_tokenizer(name, source, revision, trust_remote_code)
    text = text_config(config)
    return ModelFacts(
        name=name,
        model_type=config.model_type,
        n_blocks=text.num_hidden_layers,
        d=text.hidden_size,
        dtype=described.dtype(dtype),
        weights=weights_identity(source, revision),
        tokenizer=tokenizer_hash(tokenizer),
        config=config_hash(config),
        context=positions(text),
        tokenizer_limit=tokenizer_limit(tokenizer),
        reads=tokenizer,
    )


def config_hash(config: PretrainedConfig) -> str:
    """SHA-256 (hex) of a configuration, without what changes no number."""
    passing = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
    content = {key: value for key, value in config.to_dict().items() if key not in passing}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
