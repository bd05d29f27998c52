"""The leak check: which evaluated texts were already seen when the vector and the map were made.

A text is broken into units: the whole, its lines and its sentences, each without a leading label such as
`Scenario:` and without case, punctuation and spacing. So a scenario is found again inside another template,
a few-shot prefix or a story, in whole or in part, in any script. Units are kept as 64-bit hashes; artefacts
carry hashes, never texts.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config.characters import SHARES, WITHOUT_BLANKS

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FULL_STOPS = (  # of scripts that need no blank behind them, or whose stops are others
    "\u2026\u203d\u2e2e\u3002\u0589\u061e\u061f\u06d4\u0700-\u0702\u07f9\u0964\u0965\u0e5a\u0e5b\u0f08"
    "\u0f0d-\u0f12\u104a\u104b\u1362\u1367\u1368\u166e\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab"
    "\u1b5a\u1b5b\u1b5e\u1b5f\u1c3b\u1c3c\u1c7e\u1c7f\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf"
    "\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb"
)
_CLOSING = "\"'\u2018\u2019\u201c\u201d\u00ab\u00bb\u203a\u300b\u300d\u300f\u3011\u3015)\\]}"
_ANY_END = re.compile(
    rf"[{_FULL_STOPS}]+[{_CLOSING}\s]*"
    rf"|[.!?]+[{_CLOSING}]*(?:\s+|(?=[{WITHOUT_BLANKS}]))"
    r"|(?<=[\u0370-\u03ff\u1f00-\u1fff]);\s+"  # the Greek question mark
    rf"|(?<=[{WITHOUT_BLANKS}])\s+(?=[{WITHOUT_BLANKS}])"  # Thai has no other sign
)
_EXAMPLES = 5
_WORD = 12
_FEWEST = 4 * _WORD
"""Four words, in twelfths. Shorter units ("He smiled.") are in every text and would prove nothing."""
_OFTEN = 10
"""A sentence that more than one of so many evaluated texts have, and more than two of them, is how they are
asked. It says nothing of any of them."""


class _Letters(dict[int, str]):
    """What `str.translate` puts for each character: letters, marks and numbers stay, those of scripts
    without blanks each apart; what is not seen, such as a soft hyphen, goes; all else is a blank."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        kind = unicodedata.category(letter)
        if kind == "Cf" or "VARIATION SELECTOR" in unicodedata.name(letter, ""):
            self[code] = ""
        elif kind[0] not in "LMN":
            self[code] = " "
        else:
            self[code] = f" {letter} " if _share(letter) < _WORD else letter
        return self[code]


_LETTERS = _Letters()
_OF_A_WORD = [(re.compile(f"[{letters}]"), share) for letters, share in SHARES.items()]


def _share(word: str) -> int:
    """How much of a word this is, in twelfths: all of it, or a letter of a script without blanks."""
    if len(word) > 1 or word.isascii():
        return _WORD
    return next((share for letters, share in _OF_A_WORD if letters.match(word)), _WORD)


def _words(text: str) -> list[str]:
    return text.casefold().translate(_LETTERS).split()


def _tell_apart(words: Sequence[str]) -> bool:
    """Whether words are enough to tell one text from another."""
    length = 0
    for word in words:
        length += _share(word)
        if length >= _FEWEST:
            return True
    return False


def _plain(text: str) -> str:
    """One spelling for all that Unicode can write in several ways, such as full-width letters."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _without_label(text: str) -> str:
    """Without a leading word and colon."""
    head, colon, rest = text.partition(":")
    label = head.casefold().split()
    if not colon or len(label) != 1:
        return text
    words = _words(label[0])
    whole = "".join(words) == label[0].replace("_", "")
    return rest if whole and not _tell_apart(words) else text


@lru_cache(maxsize=1 << 18)
def unit_hash(text: str) -> int | None:
    """Hash of one unit (signed 64 bits), or None when it is too short to tell texts apart."""
    words = _words(_without_label(_plain(text)))
    if not _tell_apart(words):
        return None
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _hashes(text: str) -> set[int]:
    """Hashes of the units of one text."""
    text = _plain(text)
    units = {text, *text.splitlines()}
    for ends in (_SENTENCE_END, _ANY_END):
        units |= {part for unit in units for part in ends.split(unit)}
    return {value for value in map(unit_hash, units) if value is not None}


def unit_hashes(texts: Iterable[str]) -> NDArray[np.int64]:
    """Sorted distinct hashes of every unit of the texts, int64 `[m]`."""
    hashes: set[int] = set()
    for text in texts:
        hashes |= _hashes(text)
    return np.array(sorted(hashes), np.int64)


def _found(evaluated: Iterable[str], seen: NDArray[np.int64]) -> dict[str, bool]:
    """The evaluated texts that were seen, in order: True where one was as a whole, False in part alone."""
    known = set(seen.tolist())
    texts = {text: _hashes(text) for text in evaluated}
    counts = Counter(part for parts in texts.values() for part in parts)
    most = max(len(texts) // _OFTEN, 2)
    return {
        text: unit_hash(text) in known
        for text, parts in texts.items()
        if unit_hash(text) in known or any(part in known and counts[part] <= most for part in parts)
    }


def overlap(evaluated: Iterable[str], seen: NDArray[np.int64]) -> list[str]:
    """The evaluated texts of which the whole, a line or a sentence is among the units behind `seen` hashes.

    A sentence that stands in many of the evaluated texts tells nothing of any. A text too short to be hashed
    is compared as it is by no one; it counts as not seen.
    """
    texts = list(evaluated)
    contaminated = _found(texts, seen)
    return [text for text in texts if text in contaminated]


def leak_report(
    scenarios: Sequence[str],
    vector_texts: NDArray[np.int64],
    map_texts: NDArray[np.int64],
    known: bool = True,
    map_known: bool = True,
) -> dict[str, Any]:
    """How many of the evaluated scenarios the vectors and the map have already seen.

    Args:
        scenarios: The evaluated texts.
        vector_texts: `unit_hashes` of the texts that the vectors are made of.
        map_texts: Those of the texts that the map was fitted on.
        known: Whether every vector says which texts it was made of. Where one does not, finding nothing
            proves nothing.
        map_known: Whether every map says which texts it was fitted on.

    Returns:
        Counts (`in_part`: those of which a line or a sentence alone was seen) and examples, as `LeakCheck`
        has them.
    """
    # An imported vector may have gone through a map that nobody knows of.
    map_known = map_known and (known or map_texts.size > 0)
    by_vector, by_map = _found(scenarios, vector_texts), _found(scenarios, map_texts)
    contaminated = [*by_vector, *by_map]
    whole = {text for by in (by_vector, by_map) for text in by if by[text]}
    return {
        "evaluated": len(set(scenarios)),
        "overlap_vector": len(by_vector) if known or by_vector else None,
        "overlap_map": len(by_map) if map_known or by_map else None,
        "in_part": len(set(contaminated) - whole),
        "examples": list(dict.fromkeys(contaminated))[:_EXAMPLES],
    }
