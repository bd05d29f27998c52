"""Inputs written by hand: activation sets from arrays, with pyarrow alone, and files of texts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.manifest import seal_of


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest's content with the digest of it."""
    return {**content, "seal": seal_of(content)}


def own_facts(table: pa.Table, **facts: Any) -> pa.Table:
    """A shard's table with what it says of itself beside its format."""
    return table.replace_schema_metadata({"contrans": json.dumps({"format": 1, **facts})})


def write_shard(path: Path, table: pa.Table, row_group_size: int = 64, **options: Any) -> None:
    """A shard as `docs/formats.md` says, of a table that says whose it is."""
    zeros = "0" * 64
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        pages = {"content": content, "norms": None, "footer": zeros}
        writer.add_key_value_metadata({"contrans-pages": json.dumps(pages)})
    written = path.read_bytes()
    footer = len(written) - 8 - int.from_bytes(written[-8:-4], "little")
    place = written.rindex(zeros.encode())
    digest = hashlib.sha256(written[footer:]).hexdigest().encode()
    path.write_bytes(written[:place] + digest + written[place + len(digest) :])


def write_lines(path: Path, rows: list[dict[str, str]]) -> str:
    """Write rows as JSON lines; the path as text, as a command or a recipe takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_set(
    folder: Path,
    rows: dict[int, np.ndarray],
    n_blocks: int,
    texts: list[str] | None = None,
    model: str = "model",
    shard: int = 100,
    **columns: list[Any],
) -> ActivationSet:
    """An activation set of `rows`: block -> float32 `[n, d]`, cut into shards of `shard` rows."""
    n, d = next(iter(rows.values())).shape
    texts = texts or [f"text number {i} of the corpus" for i in range(n)]
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), d)
    table = pa.table(
        {
            "row": pa.array(range(n), pa.int64()),
            "text_id": [f"id of {text}" for text in texts],
            "text": texts,
            "n_tokens": pa.array([5] * n, pa.int32()),
            "token_id": pa.array([1] * n, pa.int32()),
            **columns,
            **{
                f"block_{block:03d}": pa.FixedSizeListArray.from_arrays(
                    pa.array(values.astype(np.float32).ravel()), type=kind
                )
                for block, values in rows.items()
            },
        }
    )
    folder.mkdir(parents=True)
    starts = range(0, n, shard)
    for index, start in enumerate(starts):
        part = own_facts(table.slice(start, shard), fingerprint=f"of {folder.name}", start=start)
        write_shard(folder / f"shard-{index:05d}.parquet", part)
    manifest = {
        "format": 1,
        "kind": "activations",
        "fingerprint": f"of {folder.name}",
        "identity": {"model": model},
        "rows": n,
        "d": d,
        "n_blocks": n_blocks,
        "blocks": sorted(rows),
        "columns": [name for name in table.column_names if not name.startswith("block_")],
        "norms": {
            str(block): float(np.median(np.linalg.norm(values, axis=1))) for block, values in rows.items()
        },
        "shards": [
            {"name": f"shard-{index:05d}.parquet", "start": start, "rows": min(shard, n - start)}
            for index, start in enumerate(starts)
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return ActivationSet.open(str(folder))
