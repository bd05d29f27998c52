"""Which texts run together, and which token of each is looked at: pure functions of lengths and flags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contrans_dist.engine.capture.activations import Activations
from contrans_dist.engine.prefixes import Limits, Row, batch_rows
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, resolve_blocks
from contrans_dist.models.tokens import NO_TOKENS, shortened

Position = str | int
"""`last`, `mean` (over all tokens of the text), or an offset such as -2, from the text's end if negative."""


def plan_batches(lengths: Sequence[int], batch_tokens: int, split_at: int | None = None) -> list[list[int]]:
    """Indices of the texts of each batch, longest texts first; longest times count is at most `batch_tokens`
    unless a batch is one text. No batch holds both texts longer than `split_at` and others.

    A pure function of its arguments, so that a shard is computed the same way wherever it is.
    """
    rows = [Row((i,), length) for i, length in enumerate(lengths)]
    return [
        [row.texts[0] for row in batch] for batch in batch_rows(rows, Limits(batch_tokens, split_at=split_at))
    ]


def parse_position(position: Position) -> Position:
    """`last`, `mean`, or an int (also written as text). Raises UserError for anything else."""
    if position in ("last", "mean"):
        return position
    try:
        return int(position)
    except ValueError:
        raise UserError(f"--position {position}: expected last, mean, or an offset such as -2") from None


def too_short(position: Position, length: int) -> str | None:
    """Why a text of so many tokens has no row at the position; None where it has."""
    if isinstance(position, str) or -length <= position < length:
        return None
    return f"position {position} asked for, but it has {length} tokens"


def chosen_blocks(lm: LanguageModel, blocks: Sequence[int] | str | None) -> list[int]:
    """Numbers, from 0, of the blocks whose rows are taken: those named (see `resolve_blocks`), or all that
    are loaded. Raises UserError for none, and for one that is not loaded."""
    if blocks is None:
        return list(range(len(lm.blocks)))
    parts = [blocks] if isinstance(blocks, str) else [int(block) for block in blocks]
    chosen = sorted({k for part in parts for k in resolve_blocks(part, lm.n_blocks)})
    if not chosen or chosen[-1] >= len(lm.blocks):
        raise UserError(f"--blocks {blocks}: blocks 0 to {len(lm.blocks) - 1} are loaded")
    return chosen


@dataclass(frozen=True)
class Prepared:
    """Texts as they go into the model, and where their rows are taken."""

    ids: list[list[int]]
    tokens: list[int]
    """Index of the token that each text's row is taken from; the last one for `mean`."""
    mean: bool

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.ids]

    def activations(self, rows: dict[int, NDArray[np.float32]]) -> Activations:
        """Rows `{block: [n_texts, d]}` of these texts with what else is known of them."""
        pairs = zip(self.ids, self.tokens, strict=True)
        token_ids = [-1 if self.mean else text[i] for text, i in pairs]
        n_tokens = np.array(self.lengths, np.int32)
        return Activations(rows, n_tokens, np.array(token_ids, np.int32))


def prepare(lm: LanguageModel, ids: list[list[int]], position: Position) -> Prepared:
    """Texts as they go into a model, and the place of each one's row.

    Args:
        lm: The model, whose weights need not be there.
        ids: Token ids of each text, which fit the context (`truncate`).
        position: The token of each row, as in `capture`.

    Raises:
        UserError: For a text that has no tokens, too few or too many.
    """
    position = parse_position(position)
    tokens = []
    for i, text in enumerate(ids):
        why = too_short(position, len(text)) if text else NO_TOKENS
        if why is not None:
            raise UserError(f"text {i}: {why}")
        if lm.context is not None and len(text) > lm.context:
            raise UserError(f"text {i} has {len(text)} tokens, the model's context holds {lm.context}")
        tokens.append(len(text) - 1 if isinstance(position, str) else position % len(text))
    return Prepared(ids, tokens, position == "mean")


def truncate(
    lm: LanguageModel, ids: list[list[int]], max_tokens: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Texts cut to the model's context: of one that is longer, the front tokens and its END are kept.

    Args:
        lm: The model.
        ids: Token ids of each text.
        max_tokens: Tokens of a text at most, if fewer than the context holds.

    Returns:
        The token ids that are left of each text, and the indices of those that were cut.

    Raises:
        UserError: Where `max_tokens` leaves no room for a text.
    """
    most = min((n for n in (lm.context, max_tokens) if n is not None), default=None)
    if max_tokens is not None and max_tokens <= len(lm.front):
        raise UserError(
            f"--max-tokens {max_tokens}: expected more than the {len(lm.front)} before every text"
        )
    if most is None:
        return ids, []
    cut = [row for row, text in enumerate(ids) if len(text) > most]
    return [shortened(lm, text, most) for text in ids], cut
