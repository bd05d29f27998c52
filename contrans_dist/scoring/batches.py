"""Cutting token sequences into right-padded batches, each with the positions whose logits are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel

LOGIT_BYTES = 256 * 2**20  # the most that the float32 logits of one forward pass may take


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences and the (row, column) pairs at which the LM head is to be applied."""

    index: list[int]  # which of the caller's sequences each row is
    ids: Tensor  # int64 [B, T]
    rows: Tensor  # int64 [N]
    columns: Tensor  # int64 [N]

    def repeated(self, times: int) -> "Batch":
        """The same batch `times` over, stacked as further rows."""
        shift = torch.arange(times).repeat_interleave(len(self.rows)) * len(self.ids)
        return Batch(
            self.index * times,
            self.ids.repeat(times, 1),
            self.rows.repeat(times) + shift,
            self.columns.repeat(times),
        )


def plan_batches(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], wanted: Sequence[int], batch_tokens: int
) -> list[Batch]:
    """Batches of sequences of like length, `batch_tokens` padded tokens at most (but at least one sequence).

    `wanted[i]`: how many of the last positions of sequence i need logits. A pure function of its arguments.
    Raises UserError for an empty sequence or one longer than the model's context.
    """
    check_lengths(lm, sequences)
    most = positions_per_pass(lm)
    batches: list[list[int]] = []
    rows = positions = 0
    for i in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i)):
        longest = len(sequences[batches[-1][0]]) if batches else 0
        full = (rows + 1) * longest > batch_tokens or positions + wanted[i] > most
        if not batches or full or longest > (lm.split_at or longest):
            batches.append([])
            rows = positions = 0
        batches[-1].append(i)
        rows, positions = rows + 1, positions + wanted[i]
    return [_padded(lm, sequences, wanted, members) for members in batches]


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


def _padded(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], wanted: Sequence[int], members: list[int]
) -> Batch:
    width = max(len(sequences[i]) for i in members)
    ids = torch.full((len(members), width), pad_id(lm), dtype=torch.int64)
    rows: list[int] = []
    columns: list[int] = []
    for row, i in enumerate(members):
        length = len(sequences[i])
        ids[row, :length] = torch.as_tensor(sequences[i], dtype=torch.int64)
        rows += [row] * wanted[i]
        columns += range(length - wanted[i], length)
    return Batch(members, ids, torch.tensor(rows), torch.tensor(columns))
