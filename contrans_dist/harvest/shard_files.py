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

from contrans_dist.config import CaptureSettings
from contrans_dist.engine.capture import Activations
from contrans_dist.errors import RunError, UserError
from contrans_dist.store import schema
from contrans_dist.store.footers import page_facts
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Identity, ShardEntry, Skipped
from contrans_dist.store.provenance import version
from contrans_dist.store.results import plain
from contrans_dist.store.shard_reader import DamagedError, ShardFile, opened, row_norms

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

    identity: Identity
    capture: CaptureSettings
    blocks: list[int]
    d: int
    out: Location

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint


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
    skipped: tuple[Skipped, ...] = ()
    """Rows of the input that are left out, since they cannot be run."""


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
    fingerprint: str
    """Of the harvest that made it."""
    footer: str
    """SHA-256 of the file's footer, which holds that of the rest."""
    bytes: int
    tokens: int
    truncated: int
    canary: float
    norms: NDArray[np.float32] | None
    """Euclidean norm of each row at each block, `[rows, n_blocks]`; None where reading them takes long."""
    skipped: tuple[Skipped, ...] = ()
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
    """Write a shard piece by piece; it appears whole or not at all.

    `rows`: those of the input that it holds. Raises SpoiltError for NaN or infinity in a piece.
    """
    facts = {
        "format": schema.FORMAT_VERSION,
        "contrans_dist": version(),
        "fingerprint": spec.fingerprint,
        "identity": plain(spec.identity),
        "start": shard.start,
        **asdict(counts),
        "skipped": [text.model_dump() for text in counts.skipped],
    }
    extra = [name for name in rows.column_names if name not in ("row", "text_id", "text")]
    layout = schema.activation_schema(spec.blocks, spec.d, rows.select(extra).schema)
    layout = layout.with_metadata({schema.METADATA_KEY: json.dumps(facts)})
    options = {"column_encoding": schema.column_encoding(spec.blocks), **schema.PARQUET_OPTIONS}
    norms = []
    with (spec.out / shard.name).staged() as path:
        with pq.ParquetWriter(path, layout, **options) as writer:
            for piece in pieces:
                if spoilt := spoilt_rows(rows, piece):
                    raise SpoiltError(shard.name, spoilt)
                writer.write_table(_table(rows, piece, spec, layout), row_group_size=ROW_GROUP)
                norms.append(_norms(piece.activations))
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            writer.add_key_value_metadata(page_facts(layout, content, np.concatenate(norms), options))
        # Nothing appears that a reader would refuse.
        with opened(Location.parse(path)) as written:
            return _report(shard, facts, written, np.concatenate(norms), device)


_SPOILT = "NaN or infinity, "


class SpoiltError(RunError):
    """Rows that hold NaN or infinity."""

    def __init__(self, where: str, rows: dict[int, str]) -> None:
        named = ", ".join(map(str, list(rows)[:5]))
        told = next(iter(rows.values())).removeprefix(_SPOILT)
        super().__init__(f"{where}: {len(rows)} rows hold NaN or infinity (row {named}; {told})")
        self.where, self.rows = where, rows
        """Why, by number of the row in the input."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.rows)


def spoilt_rows(rows: pa.Table, piece: Piece) -> dict[int, str]:
    """Why rows of a piece of `rows` are of no use, by their number in the input."""
    bad = piece.activations.bad_rows()
    if not bad:
        return {}
    block = piece.activations.first_bad_block()
    reason = f"{_SPOILT}first at block {block} (try dtype float32 or bfloat16)"
    numbers = rows.column("row").slice(piece.start).to_pylist()
    return {numbers[row]: reason for row in bad}


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


def check_shard(spec: HarvestSpec, shard: Shard, entry: ShardEntry | None) -> ShardReport | str:
    """A shard that is there, by its footer: its report when it is the one asked for, else what is wrong.

    `entry`: what a manifest says of it, where there is one. What is in its pages is checked when it is read.
    """
    try:
        with opened(spec.out / shard.name) as file:
            wrong = file.mismatch(spec.fingerprint, spec.blocks, spec.d)
            planned = (shard.start, shard.rows)
            if (file.facts.start, file.rows + len(file.facts.skipped)) != planned:
                wrong = wrong or "its rows are not the planned ones"
            if entry is not None and wrong is None:
                wrong = file.not_entry(entry)
            if wrong is not None:
                return wrong
            return _report(shard, file.facts.model_dump(), file, file.kept_norms(spec.blocks))
    except DamagedError as error:
        return error.reason
    except UserError as error:  # beyond the limits
        return str(error)


def read_norms(spec: HarvestSpec, shard: Shard) -> NDArray[np.float32]:
    """The norms of a shard that does not keep them, from its rows. Raises UserError when it is damaged."""
    with opened(spec.out / shard.name) as file:
        return file.norms(spec.blocks)


def shard_identity(location: Location) -> Identity | None:
    """The identity a shard was harvested under, from its footer alone; None when the file cannot be read."""
    try:
        with opened(location) as shard:
            return shard.facts.identity
    except UserError:
        return None


def _norms(values: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
    return row_norms([values[block] for block in sorted(values)])


def _report(
    shard: Shard,
    facts: dict[str, Any],
    file: ShardFile,
    norms: NDArray[np.float32] | None,
    device: str = "",
) -> ShardReport:
    return ShardReport(
        index=shard.index,
        start=shard.start,
        rows=file.rows,
        fingerprint=file.facts.fingerprint,
        footer=file.footer,
        bytes=file.size,
        tokens=facts["tokens"],
        truncated=facts["truncated"],
        canary=facts["canary"],
        norms=norms,
        skipped=tuple(Skipped.model_validate(text) for text in facts["skipped"]),
        device=device,
    )
