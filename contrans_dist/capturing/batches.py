"""Which texts run together, and which token of each is looked at: pure functions of lengths and flags."""

from collections.abc import Sequence

from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel

Position = str | int
"""`last`, `mean` (over all tokens of the text), or an offset such as -2, from the text's end if negative."""


def plan_batches(lengths: Sequence[int], batch_tokens: int, split_at: int | None = None) -> list[list[int]]:
    """Indices of the texts of each batch, longest texts first; longest times count is at most `batch_tokens`
    unless a batch is one text. No batch holds both texts longer than `split_at` and others.

    A pure function of its arguments, so that a shard is computed the same way wherever it is.
    """
    batches: list[list[int]] = []
    room, was_long = 0, False
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        is_long = split_at is not None and lengths[i] > split_at
        if room == 0 or is_long != was_long:
            batches.append([])
            room, was_long = max(batch_tokens // max(lengths[i], 1), 1), is_long
        batches[-1].append(i)
        room -= 1
    return batches


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
