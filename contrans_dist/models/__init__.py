"""Loading language models, finding their decoder blocks, and their tokens; the only layer arithmetic.

Imports: config, store.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrans_dist.models.block_numbers import matched_depth, resolve_blocks, upper_blocks
    from contrans_dist.models.blocks import find_blocks, text_config
    from contrans_dist.models.facts import ModelFacts, model_facts, tokenizer_hash, weights_identity
    from contrans_dist.models.language_model import CPU_TOKENS, LanguageModel, guided, wrap_model
    from contrans_dist.models.loading import load_model
    from contrans_dist.models.precision import DTYPES
    from contrans_dist.models.tokens import (
        After,
        around,
        cut_to,
        encode,
        encode_many,
        encode_with_starts,
        unusable,
    )

_HOMES = {
    "CPU_TOKENS": "language_model",
    "DTYPES": "precision",
    "After": "tokens",
    "LanguageModel": "language_model",
    "ModelFacts": "facts",
    "around": "tokens",
    "cut_to": "tokens",
    "encode": "tokens",
    "encode_many": "tokens",
    "encode_with_starts": "tokens",
    "find_blocks": "blocks",
    "guided": "language_model",
    "load_model": "loading",
    "matched_depth": "block_numbers",
    "model_facts": "facts",
    "resolve_blocks": "block_numbers",
    "text_config": "blocks",
    "tokenizer_hash": "facts",
    "unusable": "tokens",
    "upper_blocks": "block_numbers",
    "weights_identity": "facts",
    "wrap_model": "language_model",
}

__all__ = [
    "CPU_TOKENS",
    "DTYPES",
    "After",
    "LanguageModel",
    "ModelFacts",
    "around",
    "cut_to",
    "encode",
    "encode_many",
    "encode_with_starts",
    "find_blocks",
    "guided",
    "load_model",
    "matched_depth",
    "model_facts",
    "resolve_blocks",
    "text_config",
    "tokenizer_hash",
    "unusable",
    "upper_blocks",
    "weights_identity",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a map is fitted without torch and transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
