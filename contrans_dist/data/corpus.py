"""The generic corpus that a map is fitted on: texts cut so that the last token falls inside a sentence."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from contrans_dist.config.characters import WITHOUT_BLANKS
from contrans_dist.config.parts import Cut
from contrans_dist.data.texts import text_table
from contrans_dist.errors import UserError

_FEWEST_WORDS = 4
_UNSPACED = re.compile(f"[{WITHOUT_BLANKS}]")
_WORD_END = re.compile(rf"(?= )|(?<=[{WITHOUT_BLANKS}])(?=\w)|(?<=\w)(?=[{WITHOUT_BLANKS}])")


def cut_end(texts: list[str], seed: int = 42) -> list[str]:
    """Drop 2 to 4 words from the end of each text, as the ConTrans authors do with WikiSplit.

    numpy's legacy generator, because with seed 42 it repeats their published input file exactly.
    """
    generator = np.random.RandomState(seed)
    drops = [generator.randint(2, 5) for _ in texts]
    return [_without_end(text, drop) for text, drop in zip(texts, drops, strict=True)]


def _without_end(text: str, words: int) -> str:
    if not _UNSPACED.search(text):
        return " ".join(text.split()[:-words])
    ends = _word_ends(text.rstrip())
    return text[: ends[-words - 1]] if len(ends) > words else ""


def _word_ends(text: str) -> list[int]:
    """Where the words of a text end; where no blanks set them apart, where its letters do."""
    return [match.start() for match in _WORD_END.finditer(text)] + [len(text)]


def cut_random(texts: list[str], per_text: int, seed: int) -> tuple[list[str], list[int]]:
    """`per_text` prefixes of each text, ending after a random word.

    Returns the prefixes and, for each, the index of the text it was cut from.
    """
    generator = np.random.default_rng(seed)
    prefixes: list[str] = []
    origins: list[int] = []
    for index, text in enumerate(texts):
        words = _word_ends(text)
        choices = np.arange(min(_FEWEST_WORDS, len(words)), len(words) + 1)
        ends = generator.choice(choices, size=min(per_text, len(choices)), replace=False)
        for end in sorted(int(end) for end in ends):
            prefixes.append(text[: words[end - 1]])
            origins.append(index)
    return prefixes, origins


def cut_after(texts: list[str], words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Every prefix that ends on one of `words`; equal ones appear once, as of the first text. Returns as
    `cut_random`.

    A prompt that ends on "was very" asks the map for what a model expects after "very"; such rows say it.
    """
    ending = re.compile("|".join(map(_as_word, words)))
    prefixes: dict[str, int] = {}
    for index, text in enumerate(texts):
        for match in ending.finditer(text):
            prefixes.setdefault(text[: match.end()], index)
    return list(prefixes), list(prefixes.values())


def _as_word(word: str) -> str:
    """A pattern for a word inside a text: with blanks around it, unless its script has none."""
    before = "" if _UNSPACED.match(word) else r"\b"
    after = r"(?=.)" if _UNSPACED.match(word[-1:]) else r"(?=\s)"
    return before + re.escape(word) + after


def prepare_corpus(
    table: pa.Table,
    cut: Cut,
    per_text: int = 1,
    seed: int = 42,
    limit: int | None = None,
    words: Sequence[str] = (),
) -> pa.Table:
    """A corpus ready to harvest, from a text table.

    Args:
        table: The whole texts.
        cut: Where each ends: as it is (`none`), before its last words (`end`), after random words (`random`),
            after certain ones (`after`).
        per_text: Prefixes of each text, for `random`.
        seed: Of what is drawn.
        limit: Keep the first texts alone.
        words: Those of `after`.

    Returns:
        A text table whose `source_row` is the row of the text that each comes from (the first of identical
        ones), so that a map's training and held-out rows never share a text.

    Raises:
        UserError: When nothing is left.
    """
    texts = table.column("text").to_pylist()[:limit]
    if cut == "none":
        cuts, origins = texts, list(range(len(texts)))
    elif cut == "end":
        cuts, origins = cut_end(texts, seed), list(range(len(texts)))
    elif cut == "random":
        cuts, origins = cut_random(texts, per_text, seed)
    else:
        cuts, origins = cut_after(texts, words)
    kept = [(text, origin) for text, origin in zip(cuts, origins, strict=True) if text.strip()]
    if not kept:
        raise UserError(f"corpus: cutting ({cut}) left no text; expected texts of more than four words")
    first: dict[str, int] = {}
    same = [first.setdefault(text, row) for row, text in enumerate(texts)]
    return text_table(
        {"text": [text for text, _ in kept], "source_row": [same[origin] for _, origin in kept]}
    )
