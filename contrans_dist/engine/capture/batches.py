"""Which texts run together, and which token of each is looked at: pure functions of lengths and flags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contrans_dist.engine.capture.activations import Activations
from contrans_dist.engine.prefixes import Limits, Row, batch_rows
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel
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


def taken_from(position: Position, lengths: list[int], first_row: int = 0) -> list[int]:
    """The index of the token that each text's row is taken from (its last one for `mean`).

    Raises UserError for a text that is too short, counted from `first_row`.
    """
    if isinstance(position, str):
        return [length - 1 for length in lengths]
    indices = []
    for row, length in enumerate(lengths, first_row):
        reason = too_short(position, length)
        if reason is not None:
            raise UserError(f"text {row}: {reason}")
        indices.append(position % length)
    return indices


@dataclass(frozen=True)
class Prepared:
    """Texts as they go into the model, and where their rows are taken."""

    ids: list[list[int]]
    truncated: list[int]
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
        return Activations(rows, n_tokens, np.array(token_ids, np.int32), self.truncated)


def prepare(lm: LanguageModel, ids: list[list[int]], position: Position, first_row: int = 0) -> Prepared:
    """Texts cut to the model's context, and the place of each one's row.

    Raises UserError naming the text, counted from `first_row`, that has no tokens or is too short.
    """
    position = parse_position(position)
    for row, text in enumerate(ids, first_row):
        if not text:
            raise UserError(f"text {row}: {NO_TOKENS}")
    ids, truncated = truncate(lm, ids)
    tokens = taken_from(position, [len(text) for text in ids], first_row)
    return Prepared(ids, truncated, tokens, position == "mean")


def truncate(
    lm: LanguageModel, ids: list[list[int]], max_tokens: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Texts cut to the model's context and to `max_tokens`, and which were. The front tokens and the END of a
    text are kept. Raises UserError where `max_tokens` leaves no room for a text."""
    most = min((n for n in (lm.context, max_tokens) if n is not None), default=None)
    if max_tokens is not None and max_tokens <= len(lm.front):
        raise UserError(
            f"--max-tokens {max_tokens}: expected more than the {len(lm.front)} before every text"
        )
    if most is None:
        return ids, []
    cut = [row for row, text in enumerate(ids) if len(text) > most]
    return [shortened(lm, text, most) for text in ids], cut
