"""What fits one forward pass: limits of logits and lengths."""

from collections.abc import Sequence

from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, unusable


def check_lengths(lm: LanguageModel, sequences: Sequence[Sequence[int]], more: int = 0) -> None:
    """Raise UserError for an empty sequence, one that with `more` tokens is longer than the context, or one
    with a token that has no embedding."""
    for i, sequence in enumerate(sequences):
        why = unusable(lm, sequence)
        if why is not None:
            raise UserError(f"prompt {i}: {why}")
        if lm.context is not None and len(sequence) + more > lm.context:
            raise UserError(
                f"prompt {i} needs {len(sequence) + more} tokens, the model's context holds {lm.context}"
            )
