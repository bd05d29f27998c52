"""Column names and Arrow schemas of what is written to disk: one place, so that no room guesses."""

from typing import Final

import pyarrow as pa

FORMAT_VERSION: Final = 1
MANIFEST = "manifest.json"
METADATA_KEY = b"contrans"
"""Key of the JSON that every Parquet and safetensors file of ours carries about its own origin."""
PAGES_KEY = b"contrans-pages"
"""Key of the JSON in a shard's footer that is known only after its rows."""

_SHARD = "shard-"
KEY_COLUMNS = ("row", "text_id", "text", "n_tokens", "token_id")

PARQUET_OPTIONS = {
    # Measured on bf16 values: .70 of the raw size, written and read faster than plain float32.
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
    # A flipped bit in a half-finished harvest is found when the shard is checked on resuming.
    "write_page_checksum": True,
}


def block_column(block: int) -> str:
    """Name of the column that holds decoder block `block` (counted from 0)."""
    return f"block_{block:03d}"


def block_of(column: str) -> int | None:
    """The inverse of `block_column`; None for every other column."""
    head, _, digits = column.partition("_")
    number = head == "block" and digits.isascii() and digits.isdigit() and len(digits) < 10
    return int(digits) if number else None


def shard_name(index: int) -> str:
    """File name of shard `index` of an activation set."""
    return f"{_SHARD}{index:05d}.parquet"


def is_shard(name: str) -> bool:
    """Whether a file of this name is taken for a shard."""
    return name.startswith(_SHARD)


def reserved(column: str) -> bool:
    """Whether an input column would collide with one of ours."""
    return (column in KEY_COLUMNS and column != "text") or block_of(column) is not None


def activation_schema(blocks: list[int], d: int, extra: pa.Schema) -> pa.Schema:
    """Schema of an activation shard: key columns, the input's other columns, one column a block.

    Blocks are `fixed_size_list<float>[d]`: float32 holds bfloat16 and float16 without loss.
    """
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("token_id", pa.int32(), nullable=False),
        *extra,
    ]
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), d)
    fields += [pa.field(block_column(block), vector, nullable=False) for block in blocks]
    return pa.schema(fields)


def column_encoding(blocks: list[int]) -> dict[str, str]:
    """Byte-stream-split for the float columns; it makes zstd worth its time on activations."""
    return {f"{block_column(block)}.list.element": "BYTE_STREAM_SPLIT" for block in blocks}
