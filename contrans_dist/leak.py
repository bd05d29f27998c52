"""The leak check: which evaluated texts were already seen when the vector and the map were made.

A text is broken into units: the whole, its lines and its sentences, each without a leading label such as
`Scenario:` and without case, punctuation and spacing. So a scenario is found again inside another template,
a few-shot prefix or a story. Units are kept as 64-bit hashes; artefacts carry hashes, never texts.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LABEL = re.compile(r"^\s*\w+\s*:\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_NO_WORD = re.compile(r"[\W_]+")
_EXAMPLES = 5
_FEWEST_WORDS = 4
"""Shorter units ("He smiled.") are in every text and would prove nothing."""


@lru_cache(maxsize=1 << 18)
def unit_hash(text: str) -> int | None:
    """Hash of one unit (signed 64 bits), or None when it is too short to tell texts apart."""
    words = _NO_WORD.sub(" ", _LABEL.sub("", text).lower()).split()
    if len(words) < _FEWEST_WORDS:
        return None
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def unit_hashes(texts: Iterable[str]) -> NDArray[np.int64]:
    """Sorted distinct hashes of every unit of the texts, int64 `[m]`."""
    hashes: set[int] = set()
    for text in texts:
        units = [text, *text.splitlines()]
        units += [sentence for unit in units for sentence in _SENTENCE_END.split(unit)]
        hashes.update(value for value in map(unit_hash, units) if value is not None)
    return np.array(sorted(hashes), np.int64)


def overlap(evaluated: Iterable[str], seen: NDArray[np.int64]) -> list[str]:
    """The evaluated texts that occur among the units behind `seen` hashes.

    A text too short to be hashed is compared as it is by no one; it counts as not seen.
    """
    known = set(seen.tolist())
    return [text for text in evaluated if unit_hash(text) in known]


def leak_report(
    scenarios: Sequence[str], vector_texts: NDArray[np.int64], map_texts: NDArray[np.int64]
) -> dict[str, Any]:
    """How many of the evaluated scenarios the vectors and the map have already seen, with examples."""
    distinct = list(dict.fromkeys(scenarios))
    by_vector, by_map = overlap(distinct, vector_texts), overlap(distinct, map_texts)
    examples = list(dict.fromkeys([*by_vector, *by_map]))[:_EXAMPLES]
    return {
        "evaluated": len(distinct),
        "overlap_vector": len(by_vector),
        "overlap_map": len(by_map),
        "examples": examples,
    }
