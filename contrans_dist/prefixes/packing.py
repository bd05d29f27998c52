"""Rows of texts as tensors. B rows, T tokens a row, P tokens of trunk, N wanted positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrans_dist.prefixes.groups import Row


@dataclass(frozen=True)
class Packed:
    """One batch: right-padded rows, and the places of the positions that are wanted."""

    texts: list[int]
    """The texts in it, in the order of the wanted positions."""
    ids: Tensor
    """int64 [B, T]"""
    rows: Tensor
    """int64 [N]: row of each wanted position, a text's positions one after the other."""
    columns: Tensor
    """int64 [N]"""
    trunk: int = 0
    """P"""
    positions: Tensor | None = None
    """int64 [B, T]: each token's place in its text; None where that is its place in the row."""
    segments: Tensor | None = None
    """int64 [B, T]: 0 in the head, 1, 2, ... in the tails, -1 in the padding."""

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, T, P + T] to add to the attention scores: 0 for what a token sees, else the least number.
        None where plain causal attention is right: padding on the right is seen by no token before it."""
        if self.segments is None:
            return None
        tokens = self.ids.shape[1]
        asked, seen = self.segments[:, :, None], self.segments[:, None, :]
        own = torch.ones(tokens, tokens, dtype=torch.bool).tril() & ((seen == 0) | (seen == asked))
        mask = torch.zeros(len(self.ids), 1, tokens, self.trunk + tokens, dtype=dtype)
        mask[:, 0, :, self.trunk :].masked_fill_(~own, torch.finfo(dtype).min)
        return mask


def pack(
    rows: Sequence[Row],
    ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    trunk: int = 0,
    pad: int = 0,
) -> Packed:
    """The rows of a batch; `wanted[i]` are the places in text i of the positions that are wanted of it."""
    width = max(row.length for row in rows)
    padded = torch.full((len(rows), width), pad, dtype=torch.int64)
    places = torch.full((len(rows), width), trunk, dtype=torch.int64)
    segments = torch.full((len(rows), width), -1, dtype=torch.int64)
    texts: list[int] = []
    row_of: list[int] = []
    column_of: list[int] = []
    for r, row in enumerate(rows):
        own = trunk + row.head
        tokens, place, segment = [*ids[row.texts[0]][trunk:own]], [*range(trunk, own)], [0] * row.head
        for s, i in enumerate(row.texts, 1):
            shift = len(tokens) - own
            texts.append(i)
            row_of += [r] * len(wanted[i])
            column_of += [position + shift for position in wanted[i]]
            tokens += ids[i][own:]
            place += range(own, len(ids[i]))
            segment += [s] * (len(ids[i]) - own)
        padded[r, : row.length] = torch.tensor(tokens)
        places[r, : row.length] = torch.tensor(place)
        segments[r, : row.length] = torch.tensor(segment)
    plain = trunk == 0 and all(len(row.texts) == 1 for row in rows)
    return Packed(
        texts,
        padded,
        torch.tensor(row_of, dtype=torch.int64),
        torch.tensor(column_of, dtype=torch.int64),
        trunk,
        None if plain else places,
        None if plain else segments,
    )
