"""What a shard says of itself in its footer, and the hash over it.

Besides its columns a shard's footer holds two pieces of JSON: what was known before its rows (`contrans`:
whose it is, where it starts, counts), and what was known after them (`contrans-pages`: a hash of all that
stands before the footer, the rows' norms, and a hash of the footer's own bytes). That is checked before
Parquet's reader gets them: in some places a flipped bit makes that end the process.
"""

import base64
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from contrans_dist.store import schema
from contrans_dist.store.identity import Count, Facts, Identity
from contrans_dist.store.manifest import Skipped

_HASH_BYTES = 8 << 20
_MARK, _BLANK = b'"footer": "', b"0" * 64
"""What stands before the hash of a footer in it, which no text in the footer's JSON can; and what is hashed
in the hash's place."""
_MOST_NORMS = 2 << 20
"""Bytes of norms that a footer may hold; of a shard that has more, they are computed again when wanted."""


class ShardFacts(Facts):
    """What a shard says of itself before its rows."""

    format: int
    contrans_dist: str | None = None
    """The version of this program that made it."""
    fingerprint: str
    identity: Identity | None = None
    start: Count
    """First row of the input that it was to hold."""
    tokens: Count = 0
    truncated: Count = 0
    """Texts of which the start was cut."""
    canary: float = 0.0
    """Worst deviation of a row in a batch from the same text alone."""
    skipped: list[Skipped] = Field(default_factory=list)
    """Rows of the input that are left out, since they cannot be run."""


class PageFacts(Facts):
    """What a shard says of itself after its rows."""

    content: str
    """SHA-256 of all bytes before the footer."""
    norms: str | None = None
    """Base64 of the Euclidean norm of each row at each block: float32, little-endian, `[rows, blocks]`."""
    footer: str
    """SHA-256 of the footer's bytes, with zeros in its own place."""


def footer_is_whole(footer: bytes) -> bool:
    """Whether a footer's bytes have the hash that they say; those of other Parquet files say none."""
    start = footer.rfind(_MARK) + len(_MARK)
    if start < len(_MARK):
        return True
    said = footer[start : start + len(_BLANK)]
    blanked = footer[:start] + _BLANK + footer[start + len(_BLANK) :]
    return hashlib.sha256(blanked).hexdigest().encode() == said


def hash_footer(path: Path) -> None:
    """Write into a finished shard the hash of its footer, of which it has the place."""
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little") + 8
        file.seek(-length, os.SEEK_END)
        footer = file.read()
        start = footer.rfind(_MARK + _BLANK) + len(_MARK)
        file.seek(start - length, os.SEEK_END)
        file.write(hashlib.sha256(footer).hexdigest().encode())


def page_facts(content: str, norms: NDArray[np.float32]) -> dict[str, str]:
    """What a shard says after its rows: key and value for its footer.

    `content`: hash of the bytes before it.
    """
    kept = base64.b64encode(norms.astype("<f4").tobytes()).decode() if norms.nbytes <= _MOST_NORMS else None
    said = {"content": content, "norms": kept, "footer": _BLANK.decode()}
    return {schema.PAGES_KEY.decode(): json.dumps(said)}


def bytes_hash(source: pa.NativeFile, length: int) -> str:
    """SHA-256 of a file's first `length` bytes."""
    digest = hashlib.sha256()
    source.seek(0)
    while length > 0 and (piece := source.read(min(_HASH_BYTES, length))):
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest()
