"""A shard's file: written piece by piece, sealed, and checked."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrans_dist.engine.capture import Activations
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.runnable import Runnable, SpoiltError, spoilt_rows
from contrans_dist.harvest.shards import Shard, ShardReport
from contrans_dist.store import schema
from contrans_dist.store.footers import ShardFacts, hash_footer, page_facts
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import ShardEntry
from contrans_dist.store.patience import patiently
from contrans_dist.store.provenance import version
from contrans_dist.store.results import plain
from contrans_dist.store.shard_file import DamagedError, ShardFile, row_norms
from contrans_dist.store.shard_reader import opened

ROW_GROUP = 128


def publish_shard(
    shard: Shard, texts: Runnable, pieces: Iterable[Activations], canary: float, device: str
) -> ShardReport:
    """Write a shard piece by piece; it appears whole or not at all.

    Args:
        shard: What is written, and where.
        texts: Those of its texts that were run.
        pieces: Their activations, in order.
        canary: Worst deviation of a row from the same text alone.
        device: That they were captured on.

    Raises:
        SpoiltError: For NaN or infinity, when all pieces have been looked at.
        RunError: When the disk has lost what was written, or has it otherwise.
    """
    spec = shard.spec
    facts = ShardFacts(
        format=schema.FORMAT_VERSION,
        contrans_dist=version(),
        fingerprint=spec.fingerprint,
        identity=spec.identity,
        start=shard.start,
        tokens=sum(map(len, texts.ids)),
        truncated=len(texts.truncated),
        canary=canary,
        skipped=list(texts.skipped),
    )
    extra = [name for name in texts.rows.column_names if name not in schema.KEY_COLUMNS]
    layout = schema.activation_schema(spec.blocks, spec.d, texts.rows.select(extra).schema)
    layout = layout.with_metadata({schema.METADATA_KEY: json.dumps(plain(facts))})
    options = {"column_encoding": schema.column_encoding(spec.blocks), **schema.PARQUET_OPTIONS}
    norms: list[NDArray[np.float32]] = []
    spoilt: dict[int, str] = {}
    start = 0
    with shard.location.staged() as path:
        with pq.ParquetWriter(path, layout, **options) as writer:
            for piece in pieces:
                rows = texts.rows.slice(start, len(piece.n_tokens))
                start += rows.num_rows
                spoilt |= spoilt_rows(rows, piece)
                if not spoilt:
                    writer.write_table(_table(rows, piece, layout), row_group_size=ROW_GROUP)
                    norms.append(row_norms([piece[block] for block in spec.blocks]))
            if spoilt:
                raise SpoiltError(shard.name, spoilt)
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            writer.add_key_value_metadata(page_facts(content, np.concatenate(norms)))
        hash_footer(path)
        # Nothing appears that a reader would refuse.
        try:
            with opened(Location.parse(path)) as written:
                return _report(shard, written, np.concatenate(norms), device)
        except UserError as error:
            if path.exists() and not isinstance(error, DamagedError):
                raise
            # No file of the user's: its disk is gone, or has failed.
            raise RunError("what was written cannot be read again") from error


def _table(rows: pa.Table, captured: Activations, layout: pa.Schema) -> pa.Table:
    arrays = {name: rows.column(name) for name in rows.column_names}
    arrays["n_tokens"] = pa.array(captured.n_tokens, pa.int32())
    arrays["token_id"] = pa.array(captured.token_ids, pa.int32())
    for block, values in captured.items():
        name = schema.block_column(block)
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, type=layout.field(name).type)
    return pa.Table.from_arrays([arrays[name] for name in layout.names], schema=layout)


@patiently
def check_shard(shard: Shard, entry: ShardEntry | None) -> ShardReport | str:
    """A shard that is there, by its footer: its report when it is the one planned, else what is wrong.

    `entry`: what a manifest says of it, where there is one. What is in its pages is checked when it is read.
    """
    try:
        with opened(shard.location) as file:
            wrong = file.mismatch(shard.spec.fingerprint, shard.spec.blocks, shard.spec.d)
            if (file.facts.start, file.rows + len(file.facts.skipped)) != (shard.start, shard.rows):
                wrong = wrong or "its rows are not the planned ones"
            if entry is not None and wrong is None:
                wrong = file.not_entry(entry)
            return wrong or _report(shard, file, file.kept_norms(shard.spec.blocks))
    except DamagedError as error:
        return error.reason
    except UserError as error:  # beyond the limits
        return str(error)


def _report(
    shard: Shard, file: ShardFile, norms: NDArray[np.float32] | None, device: str = ""
) -> ShardReport:
    entry = ShardEntry(
        name=shard.name, start=shard.start, rows=file.rows, footer=file.footer, bytes=file.size
    )
    # Its identity, which is long, is that of its part.
    return ShardReport(entry, file.facts.model_copy(update={"identity": None}), norms, device)


@patiently
def read_norms(shard: Shard) -> NDArray[np.float32]:
    """The norms of a shard that does not keep them, from its rows. Raises UserError when it is damaged."""
    with opened(shard.location) as file:
        return file.norms(shard.spec.blocks)
