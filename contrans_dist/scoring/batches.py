"""What fits one forward pass: limits of logits, lengths and padding."""

from collections.abc import Sequence

from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel

LOGIT_BYTES = 256 * 2**20  # the most that the float32 logits of one forward pass may take


def positions_per_pass(lm: LanguageModel) -> int:
    """How many positions' logits fit into LOGIT_BYTES."""
    vocabulary = int(lm.config.vocab_size)
    return max(1, LOGIT_BYTES // (4 * vocabulary))


def check_lengths(lm: LanguageModel, sequences: Sequence[Sequence[int]], more: int = 0) -> None:
    """Raise UserError for an empty sequence, or one that with `more` tokens is longer than the context."""
    for i, sequence in enumerate(sequences):
        if not sequence:
            raise UserError(f"prompt {i} has no tokens (the tokenizer adds none of its own)")
        if lm.context is not None and len(sequence) + more > lm.context:
            raise UserError(
                f"prompt {i} needs {len(sequence) + more} tokens, the model's context holds {lm.context}"
            )


def pad_id(lm: LanguageModel) -> int:
    """A token id to fill up with: the tokenizer's pad or end token, else 0. It never shows in a score."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(lm.tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0
