"""What a shard says of itself in its footer, and the seal over it.

Besides its columns a shard's footer holds two pieces of JSON: what was known before its rows (`contrans`:
whose it is, where it starts, counts), and what was known after them (`contrans-pages`: a hash of all that
stands before the footer, the rows' norms, a seal over all of this, and a hash of the footer's own bytes).
That is checked before Parquet's reader gets them: in some places a flipped bit makes that end the process.
"""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
    seal: str
    footer: str | None = None
    """SHA-256 of the footer's bytes, with zeros in its own place; None in a shard of an earlier version."""


def footer_is_whole(footer: bytes) -> bool:
    """Whether a footer's bytes have the hash that they say; those of earlier versions say none."""
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


def footer_seal(
    metadata: pq.FileMetaData, facts: bytes, content: str, norms: str | None, hashed: bool
) -> str:
    """Digest of a shard's columns, as a reader finds them, and of what it says of itself; `hashed`: it also
    says the hash of its footer."""
    leaves = (metadata.schema.column(index) for index in range(metadata.num_columns))
    columns = [
        [leaf.path, leaf.physical_type, leaf.length, leaf.max_definition_level, leaf.max_repetition_level]
        for leaf in leaves
    ]
    parts = [columns, metadata.metadata[b"ARROW:schema"].decode(), facts.decode(), content, norms]
    parts += ["hashed"] if hashed else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def page_facts(
    layout: pa.Schema, content: str, norms: NDArray[np.float32], options: dict[str, Any]
) -> dict[str, str]:
    """What a shard of this layout says after its rows: key and value for its footer.

    `content`: hash of the bytes before it. `options`: those it is written with.
    """
    # Sealed as it will be found: Parquet knows less than Arrow, and some names change on the way.
    sink = pa.BufferOutputStream()
    pq.write_table(layout.empty_table(), sink, **options)
    metadata = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    kept = base64.b64encode(norms.astype("<f4").tobytes()).decode() if norms.nbytes <= _MOST_NORMS else None
    seal = footer_seal(metadata, layout.metadata[schema.METADATA_KEY], content, kept, hashed=True)
    said = {"content": content, "norms": kept, "seal": seal, "footer": _BLANK.decode()}
    return {schema.PAGES_KEY.decode(): json.dumps(said)}


def bytes_hash(source: pa.NativeFile, length: int) -> str:
    """SHA-256 of a file's first `length` bytes."""
    digest = hashlib.sha256()
    source.seek(0)
    while length > 0 and (piece := source.read(min(_HASH_BYTES, length))):
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest()
