"""Which texts run together, and which token of each is looked at: pure functions of lengths and flags."""

from collections.abc import Sequence

from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel
from contrans_dist.prefixes import Row, batch_rows

Position = str | int
"""`last`, `mean` (over all tokens of the text), or an offset such as -2, from the text's end if negative."""


def plan_batches(lengths: Sequence[int], batch_tokens: int, split_at: int | None = None) -> list[list[int]]:
    """Indices of the texts of each batch, longest texts first; longest times count is at most `batch_tokens`
    unless a batch is one text. No batch holds both texts longer than `split_at` and others.

    A pure function of its arguments, so that a shard is computed the same way wherever it is.
    """
    rows = [Row((i,), 0, length) for i, length in enumerate(lengths)]
    return [[row.texts[0] for row in batch] for batch in batch_rows(rows, batch_tokens, split_at=split_at)]


def parse_position(position: Position) -> Position:
    """`last`, `mean`, or an int (also written as text). Raises UserError for anything else."""
    if position in ("last", "mean"):
        return position
    try:
        return int(position)
    except ValueError:
        raise UserError(f"--position {position}: expected last, mean, or an offset such as -2") from None


def taken_from(position: Position, lengths: list[int], first_row: int = 0) -> list[int]:
    """The index of the token that each text's row is taken from (its last one for `mean`).

    Raises UserError for a text that is too short, counted from `first_row`.
    """
    if isinstance(position, str):
        return [length - 1 for length in lengths]
    indices = []
    for row, length in enumerate(lengths, first_row):
        if not -length <= position < length:
            raise UserError(f"text {row}: position {position} asked for, but it has {length} tokens")
        indices.append(position % length)
    return indices


def truncate(lm: LanguageModel, ids: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Texts cut to the model's context, and which. The front tokens and the END of a text are kept."""
    if lm.context is None or all(len(text) <= lm.context for text in ids):
        return ids, []
    cut, kept = [], []
    for row, text in enumerate(ids):
        if len(text) > lm.context:
            front = lm.front if text[: len(lm.front)] == lm.front else []
            text = front + text[len(text) - (lm.context - len(front)) :]
            cut.append(row)
        kept.append(text)
    return kept, cut
