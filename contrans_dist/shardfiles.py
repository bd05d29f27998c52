"""A shard's file: written piece by piece, sealed, and checked."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrans_dist import schema
from contrans_dist.artifacts import block_values
from contrans_dist.capturing import Activations
from contrans_dist.config import CaptureSettings, fingerprint
from contrans_dist.errors import RunError
from contrans_dist.storage import Location

ROW_GROUP = 128


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `start + rows` of the input."""

    index: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        return schema.shard_name(self.index)


@dataclass(frozen=True)
class HarvestSpec:
    """Everything a shard's bytes depend on, and where they go."""

    identity: dict[str, Any]
    capture: CaptureSettings
    blocks: list[int]
    d: int
    out: Location

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)


@dataclass(frozen=True)
class Unit:
    """A shard that is to be made, and its rows of the input."""

    spec: HarvestSpec
    shard: Shard
    rows: pa.Table

    @property
    def name(self) -> str:
        return str(self.spec.out / self.shard.name)


@dataclass(frozen=True)
class Counts:
    """What is known of a shard before its rows are written."""

    tokens: int
    truncated: int
    canary: float
    """Worst deviation of a row in a batch from the same text alone."""


@dataclass(frozen=True)
class Work:
    """When a process worked on a shard, in seconds of its own clock, and how long its model did."""

    process: str
    began: float
    ended: float
    capturing: float


@dataclass(frozen=True)
class ShardReport:
    """What the manifest needs to know of a finished shard."""

    index: int
    start: int
    rows: int
    sha256: str
    bytes: int
    tokens: int
    truncated: int
    canary: float
    norms: NDArray[np.float32]
    """Euclidean norm of each row at each block, `[rows, n_blocks]`."""
    device: str = ""
    work: Work | None = None
    """None for a shard that was there."""
    notes: tuple[str, ...] = ()
    """What its actor has to say to the person who is watching."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a shard, captured together."""

    start: int
    """First row, counted from the shard's own."""
    activations: Activations


def publish_shard(
    rows: pa.Table, pieces: Iterable[Piece], counts: Counts, spec: HarvestSpec, shard: Shard, device: str
) -> ShardReport:
    """Write a shard piece by piece; it appears whole or not at all. Raises RunError for NaN or infinity."""
    facts = {
        "format": schema.FORMAT_VERSION,
        "fingerprint": spec.fingerprint,
        "identity": spec.identity,
        "start": shard.start,
        **asdict(counts),
    }
    extra = [name for name in rows.column_names if name not in ("row", "text_id", "text")]
    layout = schema.activation_schema(spec.blocks, spec.d, rows.select(extra).schema)
    sealed = layout.with_metadata({schema.METADATA_KEY: json.dumps({**facts, "seal": _seal(layout, facts)})})
    encoding = schema.column_encoding(spec.blocks)
    norms = []
    with (spec.out / shard.name).staged() as path:
        with pq.ParquetWriter(path, sealed, column_encoding=encoding, **schema.PARQUET_OPTIONS) as writer:
            for piece in pieces:
                _check_finite(piece, shard)
                writer.write_table(_table(rows, piece, spec, sealed), row_group_size=ROW_GROUP)
                norms.append(_norms(piece.activations))
        with path.open("rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    return _report(shard, facts, sha256, size, np.concatenate(norms), device)


def _check_finite(piece: Piece, shard: Shard) -> None:
    bad = piece.activations.bad_rows()
    if bad:
        named = ", ".join(str(shard.start + piece.start + row) for row in bad[:5])
        raise RunError(
            f"{shard.name}: {len(bad)} rows hold NaN or infinity (row {named}; first at block "
            f"{piece.activations.first_bad_block()}); try dtype float32 or bfloat16"
        )


def _table(rows: pa.Table, piece: Piece, spec: HarvestSpec, layout: pa.Schema) -> pa.Table:
    captured = piece.activations
    rows = rows.slice(piece.start, len(captured.n_tokens))
    arrays = {name: rows.column(name) for name in rows.column_names}
    arrays["n_tokens"] = pa.array(captured.n_tokens, pa.int32())
    arrays["token_id"] = pa.array(captured.token_ids, pa.int32())
    for block in spec.blocks:
        name = schema.block_column(block)
        flat = pa.array(np.ascontiguousarray(captured[block]).reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, type=layout.field(name).type)
    return pa.Table.from_arrays([arrays[name] for name in layout.names], schema=layout)


def check_shard(spec: HarvestSpec, shard: Shard, sha256: str | None) -> ShardReport | str:
    """Read a shard that is there: its report when it is whole and the one asked for, else what is wrong.

    Page checksums, schema, fingerprint and rows are checked, and the file's SHA-256 where a manifest has one.
    """
    data = (spec.out / shard.name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, digest):
        return "its checksum is not the manifest's"
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        layout = file.schema_arrow
        facts = json.loads(layout.metadata[schema.METADATA_KEY])
        if facts.pop("seal") != _seal(layout, facts):
            return "its footer is damaged"
        if facts["fingerprint"] != spec.fingerprint:
            return "it was harvested with other settings"
        if not {schema.block_column(block) for block in spec.blocks} <= set(layout.names):
            return "its rows or blocks are not the planned ones"
        # A row group at a time: shards are checked beside each other, and each may be large.
        read = [_read_group(file, index, spec.blocks) for index in range(file.num_row_groups)]
    except Exception:  # a damaged footer makes a reader raise whatever it likes
        return "it cannot be read"
    planned = np.arange(shard.start, shard.start + shard.rows)
    if not np.array_equal(np.concatenate([rows for rows, _ in read]), planned):
        return "its rows or blocks are not the planned ones"
    return _report(shard, facts, digest, len(data), np.concatenate([norms for _, norms in read]))


def _read_group(
    file: pq.ParquetFile, index: int, blocks: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Row numbers and norms of one row group, all of whose pages are read."""
    table = file.read_row_group(index)
    values = {block: block_values(table, schema.block_column(block)) for block in blocks}
    return table.column("row").to_numpy(), _norms(values)


def shard_identity(location: Location) -> dict[str, Any] | None:
    """The identity a shard was harvested under, from its footer alone; None when the file cannot be read."""
    try:
        with location.open() as source:
            metadata = pq.read_schema(source).metadata or {}
        return dict(json.loads(metadata[schema.METADATA_KEY])["identity"])
    except Exception:  # as above
        return None


def _seal(layout: pa.Schema, facts: dict[str, Any]) -> str:
    """Digest of a shard's columns and facts: Parquet keeps checksums of its pages, but not of its footer."""
    columns = layout.to_string(show_field_metadata=False, show_schema_metadata=False)
    return hashlib.sha256(json.dumps([columns, facts], sort_keys=True).encode()).hexdigest()[:16]


def _norms(values: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack([np.linalg.norm(values[block], axis=1) for block in sorted(values)], axis=1)


def _report(
    shard: Shard, facts: dict[str, Any], sha256: str, size: int, norms: NDArray[np.float32], device: str = ""
) -> ShardReport:
    return ShardReport(
        index=shard.index,
        start=shard.start,
        rows=shard.rows,
        sha256=sha256,
        bytes=size,
        tokens=facts["tokens"],
        truncated=facts["truncated"],
        canary=facts["canary"],
        norms=norms,
        device=device,
    )
