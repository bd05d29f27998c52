"""One shard of a harvest: planned, computed, written and checked. Knows nothing of Ray."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrans_dist import schema
from contrans_dist.artifacts import block_values
from contrans_dist.capturing import Activations, canary, capture_ids
from contrans_dist.config import CaptureSettings, fingerprint
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel, encode_many
from contrans_dist.storage import Location
from contrans_dist.texts import prompts

_TARGET_BYTES = 128 << 20
_STORED_RATIO = 0.7
"""Bytes on disk per raw float32 byte of bf16 activations, halved by byte-stream-split and zstd."""
_FEWEST_ROWS = 64
_LEAST_SHARDS = 8
_ROW_GROUP = 128
_CANARY_TEXTS = 2


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


def rows_per_shard(n_rows: int, n_blocks: int, d: int, asked: int | None) -> int:
    """Rows in a shard: as asked, else for about 128 MB on disk, and at least eight shards of a small input.

    Depends on the input and the settings alone, never on the cluster, so that a resumed harvest is cut alike.
    """
    if asked is not None:
        return asked
    by_size = int(_TARGET_BYTES / (n_blocks * d * 4 * _STORED_RATIO))
    to_share = max(_FEWEST_ROWS, -(-n_rows // _LEAST_SHARDS))
    return max(1, min(by_size, to_share))


def plan_shards(n_rows: int, size: int) -> list[Shard]:
    """Consecutive row ranges of `size` rows; the last one may be shorter."""
    starts = range(0, n_rows, size)
    return [Shard(index, start, min(size, n_rows - start)) for index, start in enumerate(starts)]


def compute_shard(lm: LanguageModel, rows: pa.Table, spec: HarvestSpec, shard: Shard) -> ShardReport:
    """Run the shard's texts (`rows` of the input table) through the model and publish its file.

    Raises RunError, naming rows and block, when an activation is NaN or infinite, and UserError for a text
    that is too short for the position; nothing is published then.
    """
    ids = encode_many(lm, prompts(rows, spec.capture.template), chat=spec.capture.chat)
    settings = spec.capture
    captured = capture_ids(lm, ids, spec.blocks, settings.position, settings.batch_tokens, shard.start)
    _check_finite(captured, shard)
    sample = np.linspace(0, shard.rows - 1, min(_CANARY_TEXTS, shard.rows)).astype(int).tolist()
    reference = {block: rows_at[sample] for block, rows_at in captured.items()}
    deviation = canary(lm, [ids[row] for row in sample], reference, settings.position)
    facts = {
        "format": schema.FORMAT_VERSION,
        "fingerprint": spec.fingerprint,
        "identity": spec.identity,
        "start": shard.start,
        "tokens": int(np.sum(captured.n_tokens)),
        "truncated": len(captured.truncated),
        "canary": deviation,
    }
    location = spec.out / shard.name
    with location.staged() as path:
        _write(path, rows, captured, spec, facts)
        data = path.read_bytes()
    return _report(shard, facts, data, _norms(captured), str(lm.device))


def _check_finite(captured: Activations, shard: Shard) -> None:
    bad = captured.bad_rows()
    if bad:
        named = ", ".join(str(shard.start + row) for row in bad[:5])
        raise RunError(
            f"{shard.name}: {len(bad)} rows hold NaN or infinity (row {named}; first at block "
            f"{captured.first_bad_block()}); try dtype float32 or bfloat16"
        )


def _write(
    path: Path, rows: pa.Table, captured: Activations, spec: HarvestSpec, facts: dict[str, Any]
) -> None:
    extra = [name for name in rows.column_names if name not in ("row", "text_id", "text")]
    layout = schema.activation_schema(spec.blocks, spec.d, rows.select(extra).schema)
    arrays = [
        *(rows.column(name) for name in ("row", "text_id", "text")),
        pa.array(captured.n_tokens, pa.int32()),
        pa.array(captured.token_ids, pa.int32()),
        *(rows.column(name) for name in extra),
    ]
    for block in spec.blocks:
        flat = pa.array(np.ascontiguousarray(captured[block]).reshape(-1))
        arrays.append(
            pa.FixedSizeListArray.from_arrays(flat, type=layout.field(schema.block_column(block)).type)
        )
    sealed = {**facts, "seal": _seal(layout, facts)}
    layout = layout.with_metadata({schema.METADATA_KEY: json.dumps(sealed)})
    table = pa.Table.from_arrays(arrays, schema=layout)
    pq.write_table(
        table,
        path,
        row_group_size=_ROW_GROUP,
        column_encoding=schema.column_encoding(spec.blocks),
        **schema.PARQUET_OPTIONS,
    )


def check_shard(spec: HarvestSpec, shard: Shard, sha256: str | None) -> ShardReport | str:
    """Read a shard that is there: its report when it is whole and the one asked for, else what is wrong.

    Page checksums, schema, fingerprint and rows are checked, and the file's SHA-256 where a manifest has one.
    """
    data = (spec.out / shard.name).read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return "its checksum is not the manifest's"
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        facts = json.loads(table.schema.metadata[schema.METADATA_KEY])
        if facts.pop("seal") != _seal(table.schema, facts):
            return "its footer is damaged"
    except Exception:  # a damaged footer makes a reader raise whatever it likes
        return "it cannot be read"
    if facts["fingerprint"] != spec.fingerprint:
        return "it was harvested with other settings"
    wanted = {schema.block_column(block) for block in spec.blocks}
    expected_rows = np.arange(shard.start, shard.start + shard.rows)
    if not wanted <= set(table.column_names) or not np.array_equal(
        table.column("row").to_numpy(), expected_rows
    ):
        return "its rows or blocks are not the planned ones"
    values = {block: block_values(table, schema.block_column(block)) for block in spec.blocks}
    return _report(shard, facts, data, _norms(values))


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
    shard: Shard, facts: dict[str, Any], data: bytes, norms: NDArray[np.float32], device: str = ""
) -> ShardReport:
    return ShardReport(
        index=shard.index,
        start=shard.start,
        rows=shard.rows,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        tokens=facts["tokens"],
        truncated=facts["truncated"],
        canary=facts["canary"],
        norms=norms,
        device=device,
    )
