"""Rows of texts as tensors. B rows, T tokens a row, P tokens of trunk, N wanted positions at U places."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contrans_dist.engine.prefixes.groups import Row, common


@dataclass(frozen=True)
class Packed:
    """One batch: right-padded rows, and the places of the positions that are wanted."""

    texts: list[int]
    """The texts in it."""
    firsts: list[int]
    """The first text of each row."""
    tokens: dict[int, list[int]]
    """For each text, where its tokens behind the trunk are in the flattened `ids`."""
    ids: Tensor
    """int64 [B, T]"""
    rows: Tensor
    """int64 [U]: row of each place that is wanted, each place once."""
    columns: Tensor
    """int64 [U]"""
    index: Tensor
    """int64 [N], N >= U: at which of these places each wanted position is; a text's positions one after the
    other, in the order of `texts`."""
    trunk: int = 0
    """P"""
    positions: Tensor | None = None
    """int64 [B, T]: each token's place in its text; None, as `ends`, where that is its place in the row."""
    ends: Tensor | None = None
    """int64 [B, T]: a token is seen by itself and those after it, up to this place in the row."""
    first: int = 0
    """Where not all wanted positions of its text are here (`positions_of`): the first that is."""

    def rows_of(self, rows: range) -> "Packed":
        """Some of its rows, to be run; `texts`, `tokens` and `index` stay those of all."""
        if len(rows) == len(self.ids):
            return self
        part = slice(rows.start, rows.stop)
        here = (self.rows >= rows.start) & (self.rows < rows.stop)
        return replace(
            self,
            firsts=self.firsts[part],
            ids=self.ids[part],
            rows=self.rows[here] - rows.start,
            columns=self.columns[here],
            positions=None if self.positions is None else self.positions[part],
            ends=None if self.ends is None else self.ends[part],
        )

    def positions_of(self, places: range) -> "Packed":
        """Of a batch of one text, some of its U places."""
        part = slice(places.start, places.stop)
        rows, columns, index = self.rows[part], self.columns[part], torch.arange(len(places))
        return replace(self, rows=rows, columns=columns, index=index, first=places.start)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, T, P + T] to add to the attention scores: 0 for what a token sees, else the least number.
        None where plain causal attention is right: padding on the right is seen by no token before it."""
        if self.ends is None:
            return None
        tokens = self.ids.shape[1]
        place = torch.arange(tokens)
        seen = (place <= place[:, None]) & (place[:, None] < self.ends[:, None, :])
        mask = torch.zeros(len(self.ids), 1, tokens, self.trunk + tokens, dtype=dtype)
        mask[:, 0, :, self.trunk :].masked_fill_(~seen, torch.finfo(dtype).min)
        return mask


def pack(
    rows: Sequence[Row],
    ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    trunk: int = 0,
) -> Packed:
    """The rows of a batch; `wanted[i]` are the places in text i of the positions that are wanted of it."""
    width = max(row.length for row in rows)
    padded = torch.full((len(rows), width), 0, dtype=torch.int64)
    places = torch.full((len(rows), width), trunk, dtype=torch.int64)
    ends = torch.arange(1, width + 1).repeat(len(rows), 1)
    numbers: dict[tuple[int, int], int] = {}
    tokens: dict[int, list[int]] = {}
    index: list[int] = []
    for r, row in enumerate(rows):
        laid = _Laid.out([ids[i][trunk:] for i in row.texts])
        padded[r, : row.length] = torch.tensor(laid.tokens)
        places[r, : row.length] = torch.tensor(laid.depths) + trunk
        ends[r, : row.length] = torch.tensor(laid.ends)
        for i, path in zip(row.texts, laid.paths, strict=True):
            tokens[i] = [r * width + column for column in path]
            index += [numbers.setdefault((r, path[place - trunk]), len(numbers)) for place in wanted[i]]
    where = torch.tensor(list(numbers), dtype=torch.int64).reshape(-1, 2)
    plain = trunk == 0 and all(len(row.texts) == 1 for row in rows)
    return Packed(
        [i for row in rows for i in row.texts],
        [row.texts[0] for row in rows],
        tokens,
        padded,
        where[:, 0],
        where[:, 1],
        torch.tensor(index, dtype=torch.int64),
        trunk,
        None if plain else places,
        None if plain else ends,
    )


def found_in(batch: Packed, whole: Packed) -> Tensor:
    """int64 `[B', T']`: where each token of `whole`, rows without a trunk of texts that are in `batch`, is
    among the P tokens of that one's trunk and behind them all of its own, flattened; 0 for padding."""
    index = torch.zeros(whole.ids.numel(), dtype=torch.int64)
    for i in whole.texts:
        own = [batch.trunk + place for place in batch.tokens[i]]
        index[whole.tokens[i]] = torch.tensor([*range(batch.trunk), *own])
    return index.reshape(whole.ids.shape)


@dataclass(frozen=True)
class _Laid:
    """Texts laid out in one row, each from where it leaves the one before it."""

    tokens: list[int]
    depths: list[int]
    """Place of each token in its text"""
    ends: list[int]
    """The place in the row after the last token that sees it"""
    paths: list[list[int]]
    """For each text, the places of its tokens in the row"""

    @classmethod
    def out(cls, texts: Sequence[Sequence[int]]) -> "_Laid":
        laid = cls([], [], [], [])
        path: list[int] = []
        before: Sequence[int] = ()
        for text in texts:
            shared = common(before, text)
            start = len(laid.tokens)
            for place in path[shared:]:
                laid.ends[place] = start
            path = [*path[:shared], *range(start, start + len(text) - shared)]
            laid.tokens.extend(text[shared:])
            laid.depths.extend(range(shared, len(text)))
            laid.ends.extend([0] * (len(text) - shared))
            laid.paths.append(path)
            before = text
        for place in path:
            laid.ends[place] = len(laid.tokens)
        return laid
