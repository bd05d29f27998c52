"""Activation sets on disk: Parquet shards and a manifest."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrans_dist import schema
from contrans_dist.errors import UserError
from contrans_dist.storage import Location


@dataclass(frozen=True)
class ActivationSet:
    """A complete activation set: rows of a model's residual stream, in the order of the input texts."""

    location: Location
    manifest: dict[str, Any]

    @classmethod
    def open(cls, location: "Location | str") -> "ActivationSet":
        """Raises UserError when there is no complete set at `location`."""
        location = Location.parse(location)
        manifest = location / schema.MANIFEST
        if not manifest.exists():
            started = any(name.endswith(".parquet") for name in location.names())
            state = "unfinished: run the same harvest again" if started else "no activation set"
            raise UserError(f"{location}: {state} (there is no {schema.MANIFEST})")
        content = manifest.read_json()
        if content.get("format") != schema.FORMAT_VERSION:
            raise UserError(
                f"{manifest}: expected format {schema.FORMAT_VERSION}, found {content.get('format')!r}"
            )
        return cls(location, content)

    @property
    def n_rows(self) -> int:
        return int(self.manifest["rows"])

    @property
    def blocks(self) -> list[int]:
        """The decoder blocks (from 0) whose activations are here."""
        return [int(block) for block in self.manifest["blocks"]]

    @property
    def n_blocks(self) -> int:
        """Number of decoder blocks of the whole model, harvested or not."""
        return int(self.manifest["n_blocks"])

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return int(self.manifest["d"])

    @property
    def norms(self) -> dict[int, float]:
        """Median Euclidean norm of the rows at each harvested block."""
        return {int(block): float(norm) for block, norm in self.manifest["norms"].items()}

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are not activations."""
        return list(self.manifest["columns"])

    @cached_property
    def _shards(self) -> list[tuple[int, int, Location]]:
        """(first row, one past the last, file) of each shard."""
        return [
            (int(shard["start"]), int(shard["start"]) + int(shard["rows"]), self.location / shard["name"])
            for shard in self.manifest["shards"]
        ]

    def _tables(self, columns: list[str], start: int, stop: int) -> Iterator[pa.Table]:
        for first, last, location in self._shards:
            if first >= stop or last <= start:
                continue
            with location.open() as source:
                table = read_shard(source, columns, max(start - first, 0), min(stop, last) - first)
            yield table

    def read_block(self, block: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `start` to `stop` (exclusive, input order) at one block: float32 `[rows, d]`.

        Raises UserError when the block was not harvested.
        """
        if block not in self.blocks:
            raise UserError(f"{self.location}: block {block} was not harvested; it holds {self.blocks}")
        stop = self.n_rows if stop is None else stop
        column = schema.block_column(block)
        parts = [block_values(table, column) for table in self._tables([column], start, stop)]
        return np.concatenate(parts) if parts else np.empty((0, self.d), np.float32)

    def read_columns(self, names: list[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """Columns that are not activations, in input order. Raises UserError for a name that is not there."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise UserError(f"{self.location}: no column {missing[0]!r}; it holds {', '.join(self.columns)}")
        stop = self.n_rows if stop is None else stop
        return pa.concat_tables(self._tables(names, start, stop))


def read_shard(source: pa.NativeFile, columns: list[str], start: int, stop: int) -> pa.Table:
    """Rows `start` to `stop` of a shard's columns, reading only the row groups that hold them."""
    file = pq.ParquetFile(source, page_checksum_verification=True)
    groups, first, skipped = [], 0, 0
    for index in range(file.num_row_groups):
        rows = file.metadata.row_group(index).num_rows
        if first < stop and first + rows > start:
            groups.append(index)
        elif first + rows <= start:
            skipped += rows
        first += rows
    return file.read_row_groups(groups, columns=columns).slice(start - skipped, stop - start)


def block_values(table: pa.Table, column: str) -> NDArray[np.float32]:
    """A block column as float32 `[rows, d]`."""
    width = table.schema.field(column).type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column(column).chunks]
    flat = np.concatenate(parts) if len(parts) != 1 else parts[0]
    return flat.reshape(-1, width)
