"""Loading language models, finding their decoder blocks, and their tokens; the only layer arithmetic.

Imports: config, store.
"""

from contrans_dist.models.blocks import find_blocks, matched_depth, resolve_blocks, text_config, upper_blocks
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
