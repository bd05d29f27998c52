"""The corpora that ways to fit a map are compared on: texts as users have them, cut and framed."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from contrans_dist.config.parts import Cut
from contrans_dist.data.corpus import prepare_corpus
from contrans_dist.data.texts import read_texts
from mapping.world import Files

Texts = tuple[list[str], list[str]]
"""Texts, and for each what tells the text apart that it was cut from."""

_SENTENCE_END = re.compile(r"[.!?]+[\"']?(?=\s|$)")


def sentence_ends(texts: Sequence[str], seed: int) -> tuple[list[str], list[int]]:
    """Each text up to one of its sentences' ends, drawn; a text without one is left out.

    Returns the beginnings and, for each, the index of its text.
    """
    draw = np.random.default_rng(seed)
    beginnings, origins = [], []
    for index, text in enumerate(texts):
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        if ends:
            beginnings.append(text[: ends[draw.integers(len(ends))]])
            origins.append(index)
    return beginnings, origins


def _cut(path: str, cut: Cut, files: Files, seed: int) -> Texts:
    limit = files.limit if cut != "after" else None  # a text may have many such ends, or none
    table = prepare_corpus(read_texts(path), cut, seed=42 + seed, limit=limit, words=files.words)
    texts, origins = (table.column(name).to_pylist()[: files.limit] for name in ("text", "source_row"))
    return texts, [str(origin) for origin in origins]


def _sentences(files: Files, seed: int) -> Texts:
    texts, origins = sentence_ends(_cut(files.corpus, "none", files, seed)[0], seed)
    return texts, [str(origin) for origin in origins]


def _other(files: Files, cut: Cut, seed: int) -> Texts:
    if files.other is None:
        raise SystemExit("expected --other FILE, the texts of another world")
    return _cut(files.other, cut, files, seed)


def framed(texts: Sequence[str], files: Files, seed: int) -> list[str]:
    """Texts inside the prompts' template (`corpus.template`), with a name of the contrast texts', drawn."""
    rows = read_texts(files.contrast).to_pylist()
    names = sorted({row["name"] for row in rows}) if "{name}" in files.template else [""]
    drawn = np.random.default_rng(seed).integers(len(names), size=len(texts))
    return [files.template.format(text=text, name=names[i]) for text, i in zip(texts, drawn, strict=True)]


def _framed(texts: Texts, files: Files, seed: int) -> Texts:
    return framed(texts[0], files, seed), texts[1]


KINDS: dict[str, Callable[[Files, int], Texts]] = {
    "random": lambda files, seed: _cut(files.corpus, "random", files, seed),
    "sentence": _sentences,
    "whole": lambda files, seed: _cut(files.corpus, "none", files, seed),
    "other": lambda files, seed: _other(files, "end", seed),
    "sentence-template": lambda files, seed: _framed(_sentences(files, seed), files, seed),
    "other-template": lambda files, seed: _framed(_other(files, "none", seed), files, seed),
    "after": lambda files, seed: _cut(files.corpus, "after", files, seed),
}
TOLD = {
    "random": "random words",
    "sentence": "sentence ends",
    "whole": "whole",
    "other": "another world",
    "sentence-template": "sentence ends, template",
    "other-template": "another world, template",
    "after": "prompts' last word",
}
"""What the table calls them."""
DRAWN = ("random", "sentence", "sentence-template", "other-template")
"""Those that another seed cuts or frames in another way; of the rest it draws what is fitted on alone."""
