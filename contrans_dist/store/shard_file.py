"""A shard that is open: its rows, and whether it is what was written and what its manifest says."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrans_dist.config.limits import EXPANDING, SMALL_BYTES, check_size
from contrans_dist.errors import UserError
from contrans_dist.store import schema
from contrans_dist.store.footers import PageFacts, ShardFacts, bytes_hash
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import AGAIN, Manifest, ShardEntry
from contrans_dist.store.unpacked import unpacked_bytes

DELETE = f"delete it and {AGAIN}: it is computed anew"
_BATCH_ROWS = 256

_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_KEY_TYPES = {
    "row": (pa.int64(),),
    "text_id": _TEXT,
    "text": _TEXT,
    "n_tokens": (pa.int32(), pa.int64()),
    "token_id": (pa.int32(), pa.int64()),
}
"""Other programs write some of them wider."""


class DamagedError(UserError):
    """A shard that is not what was written."""

    def __init__(self, location: Location, reason: str) -> None:
        super().__init__(f"{location}: {reason}; {DELETE}")
        self.location, self.reason = location, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.reason)


@dataclass(frozen=True)
class ShardFile:
    """A shard that is open for reading."""

    location: Location
    source: pa.NativeFile
    file: pq.ParquetFile
    size: int
    footer_bytes: int
    footer: str
    """SHA-256 of the footer."""
    facts: ShardFacts
    pages: PageFacts

    @property
    def rows(self) -> int:
        return int(self.file.metadata.num_rows)

    @cached_property
    def layout(self) -> pa.Schema:
        return self.file.schema_arrow

    def row_numbers(self) -> NDArray[np.int64]:
        """The rows of the input that it holds."""
        left_out = [text.row for text in self.facts.skipped]
        planned = np.arange(self.facts.start, self.facts.start + self.rows + len(left_out))
        return planned[~np.isin(planned, left_out)]

    def kept_norms(self, blocks: Sequence[int]) -> NDArray[np.float32] | None:
        """Euclidean norms `[rows, blocks]` of these blocks' rows, as the footer has them, if it does."""
        if self.pages.norms is None:
            return None
        held = sorted(block for block in map(schema.block_of, self.layout.names) if block is not None)
        flat = np.frombuffer(base64.b64decode(self.pages.norms), "<f4")
        return flat.reshape(self.rows, len(held))[:, [held.index(block) for block in blocks]]

    def norms(self, blocks: Sequence[int]) -> NDArray[np.float32]:
        """The same from the rows, which takes as long as reading them."""
        names, groups = [schema.block_column(block) for block in blocks], range(self.file.num_row_groups)
        tables = (self.file.read_row_group(index, columns=names) for index in groups)
        return np.concatenate([row_norms([block_values(table, name) for name in names]) for table in tables])

    def read(self, columns: list[str], start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop`, counted from its own first; only row groups that hold them are read."""
        groups, first, skipped = [], 0, 0
        for index in range(self.file.num_row_groups):
            rows = self.file.metadata.row_group(index).num_rows
            if first < stop and first + rows > start:
                groups.append(index)
            elif first + rows <= start:
                skipped += rows
            first += rows
        whole = self._read(groups, columns)
        if whole.num_rows < stop - skipped:
            raise DamagedError(self.location, "holds fewer rows than it says")
        whole.validate(full=True)
        for name in columns:
            if schema.block_of(name) is not None and whole.column(name).null_count:
                raise DamagedError(self.location, f"{name} has rows without a value")
        return whole.slice(start - skipped, stop - start)

    def _read(self, groups: list[int], columns: list[str]) -> pa.Table:
        if all(schema.block_of(name) is not None for name in columns):  # their size was checked on opening
            return self.file.read_row_groups(groups, columns=columns)
        batches, unfolded = [], 0
        # A dictionary page unfolds without a bound that could be known before.
        for batch in self.file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
            unfolded += sum(map(unpacked_bytes, batch.columns))
            check_size(str(self.location), unfolded, self.most_bytes)
            batches.append(batch)
        return pa.Table.from_batches(batches) if batches else self.file.read_row_groups([], columns=columns)

    @property
    def most_bytes(self) -> int:
        """What it may unfold to."""
        return SMALL_BYTES + EXPANDING * self.size

    def verify(self) -> None:
        """Read every byte: their hash, and the checksum of every page, a row group at a time.

        Raises UserError for the first thing that is wrong.
        """
        if self.pages.content != bytes_hash(self.source, self.size - self.footer_bytes):
            raise DamagedError(self.location, "its content is not what was written")
        blocks = [name for name in self.layout.names if schema.block_of(name) is not None]
        others = [name for name in self.layout.names if schema.block_of(name) is None]
        rows = [np.empty(0, np.int64)]
        for index in range(self.file.num_row_groups):
            self._read([index], blocks)
            rows.append(self._read([index], others).column("row").to_numpy())
        if not np.array_equal(np.concatenate(rows), self.row_numbers()):
            raise DamagedError(self.location, "its rows are not those it says")

    def mismatch(
        self, fingerprint: str, blocks: Sequence[int], d: int, columns: Sequence[str] = ()
    ) -> str | None:
        """What is not as in the set that it should be of; None where all is."""
        if self.facts.fingerprint != fingerprint:
            return "it was harvested with other settings"
        names = set(self.layout.names)
        missing = [name for name in (*columns, *map(schema.block_column, blocks)) if name not in names]
        if missing:
            return f"it has no column {missing[0]!r}"
        for name, types in _KEY_TYPES.items():
            if name in names and self.layout.field(name).type not in types:
                return f"{name}: expected {types[0]}, found {str(self.layout.field(name).type)[:80]}"
        for name in map(schema.block_column, blocks):
            kind = self.layout.field(name).type
            if (
                not pa.types.is_fixed_size_list(kind)
                or kind.value_type != pa.float32()
                or kind.list_size != d
            ):
                return f"{name}: expected {d} float32 numbers a row, found {str(kind)[:80]}"
        return None

    def not_of(self, manifest: Manifest, entry: ShardEntry) -> str | None:
        """What is not as its manifest says; None where all is."""
        fingerprint = entry.fingerprint or manifest.fingerprint
        wrong = self.mismatch(fingerprint, manifest.blocks, manifest.d, manifest.columns)
        return wrong or self.not_entry(entry)

    def not_entry(self, entry: ShardEntry) -> str | None:
        """What is not as the manifest's entry says; None where all is."""
        if entry.bytes not in (None, self.size):
            return f"it has {self.size:,} bytes, expected {entry.bytes:,}"
        if (self.facts.start, self.rows) != (entry.start, entry.rows):
            there = f"{self.rows} rows from {self.facts.start} on"
            return f"it holds {there}, expected {entry.rows} from {entry.start} on"
        return "its footer is damaged" if entry.footer not in (None, self.footer) else None


def block_values(table: pa.Table, column: str) -> NDArray[np.float32]:
    """A block column as float32 `[rows, d]`."""
    width = table.schema.field(column).type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column(column).chunks]
    flat = np.concatenate(parts) if len(parts) != 1 else parts[0]
    return flat.reshape(-1, width)


def row_norms(blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Euclidean norms `[n, blocks]` of each block's rows `[n, d]`."""
    return np.stack([np.linalg.norm(rows, axis=1) for rows in blocks], axis=1)
