"""A long text for a language model: windows over its tokens, and passages that its tokens belong to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from contrans_dist.benchmarks.calls import Ids

PASSAGE = 4096
"""Characters of a passage, at most: with common tokenizers about the stride of the longest windows."""


@dataclass(frozen=True)
class Windows:
    """Windows over all tokens of a text: the k-th sees `room` tokens from `k * stride` on."""

    ids: np.ndarray
    front: Ids
    room: int
    stride: int

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, Ids, Ids]]:
        """(first scored, context, scored tokens) for tokens `start` to `end`, window by window.

        A token that nothing stands before is not scored.
        """
        begin, done = 0, 0
        while done < min(end, len(self.ids)):
            last = min(begin + self.room, len(self.ids))
            low, high = max(done, start), min(last, end)
            if not self.front:
                low = max(low, begin + 1)
            if low < high:
                context = [*self.front, *self.ids[begin:low].tolist()]
                yield low, context, self.ids[low:high].tolist()
            begin, done = begin + self.stride, last


def passages(text: str) -> list[int]:
    """Characters at which passages of at most `PASSAGE` characters begin.

    Each ends after the last line break that fits, else the last space, else anywhere.
    """
    starts, start = [], 0
    while start < len(text):
        starts.append(start)
        end = start + PASSAGE
        if end >= len(text):
            break
        line, word = text.rfind("\n", start, end), text.rfind(" ", start, end)
        start = line + 1 if line >= 0 else word + 1 if word >= 0 else end
    return starts


@lru_cache(maxsize=2)
def tokens_of(tokenizer: Any, text: str, starts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of the whole text, int64 `[n]`, and the passage that each begins in.

    A tokenizer that cannot say where tokens begin is given the passages one by one.
    """
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, return_offsets_mapping=True, **options)
        begins = np.array([low for low, _ in encoded["offset_mapping"]], dtype=np.int64)
        owner = np.searchsorted(np.array(starts), begins, side="right") - 1
        return np.array(encoded["input_ids"], dtype=np.int64), owner
    ends = (*starts[1:], len(text))
    parts = [tokenizer(text[a:b], **options)["input_ids"] for a, b in zip(starts, ends, strict=True)]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate([np.array(part, dtype=np.int64) for part in parts]), owner


def span_of(owner: np.ndarray, index: int) -> tuple[int, int]:
    """The tokens of one passage, first and one past the last."""
    low, high = np.searchsorted(owner, [index, index + 1])
    return int(low), int(high)


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that follow one upon another as one."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined
