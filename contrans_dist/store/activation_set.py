"""Activation sets on disk: Parquet shards and a manifest."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from contrans_dist.errors import UserError, listed
from contrans_dist.store import schema
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import AGAIN, Manifest, ShardEntry
from contrans_dist.store.patience import patiently
from contrans_dist.store.shard_file import DamagedError, block_values
from contrans_dist.store.shard_reader import opened, readers


@dataclass(frozen=True)
class ActivationSet:
    """A complete activation set: rows of a model's residual stream, in the order of the input texts."""

    location: Location
    manifest: Manifest
    chosen: tuple[int, ...] | None = None
    """Only these of its blocks; None is all of them."""
    kept: NDArray[np.int64] | None = field(default=None, compare=False)
    """Only these of its rows, ascending; None is all of them."""

    @classmethod
    def open(cls, location: "Location | str") -> "ActivationSet":
        """Open a set. Sizes and footers of all its shards are held against its manifest; pages are checked
        when they are read.

        Raises:
            UserError: When there is no complete set at `location`, or one that is not what its manifest says.
        """
        location = Location.parse(location)
        manifest = location / schema.MANIFEST
        if not manifest.exists():
            started = any(name.endswith(".parquet") for name in location.names())
            state = "unfinished: run the same harvest again" if started else "no activation set"
            raise UserError(f"{location}: {state} (there is no {schema.MANIFEST})")
        opened_set = cls(location, Manifest.read(manifest))
        wrong = opened_set.wrong_shards()
        if wrong:
            name, reason = next(iter(wrong.items()))
            count = "1 shard is" if len(wrong) == 1 else f"{len(wrong)} shards are"
            raise UserError(f"{location / name}: {reason}; {AGAIN}: {count} computed anew")
        return opened_set

    def wrong_shards(self) -> dict[str, str]:
        """What is wrong with each shard whose size or footer is not as the manifest says, by name."""
        entries, files = self.manifest.shards, self.location.entries()
        sizes = {info.base_name: info.size for info in files if info.type is fs.FileType.File}
        missing = {entry.name: "it is missing" for entry in entries if entry.name not in sizes}
        if missing:
            return missing

        @patiently
        def wrong(entry: ShardEntry) -> str | None:
            if entry.bytes not in (None, sizes[entry.name]):
                return f"it has {sizes[entry.name]:,} bytes, expected {entry.bytes:,}"
            try:
                with opened(self.location.inside(entry.name)) as shard:
                    return shard.not_of(self.manifest, entry)
            except DamagedError as error:
                return error.reason

        with readers(self.location) as threads:
            results = threads.map(wrong, entries)
            return {entry.name: reason for entry, reason in zip(entries, results, strict=True) if reason}

    @property
    def n_rows(self) -> int:
        return self.manifest.rows if self.kept is None else len(self.kept)

    def row_numbers(self) -> NDArray[np.int64]:
        """The rows of the input that are here, int64 `[rows]`."""
        left_out = [text.row for text in self.manifest.skipped]
        numbers = np.setdiff1d(np.arange(self.manifest.rows + len(left_out)), left_out, assume_unique=True)
        return numbers if self.kept is None else numbers[self.kept]

    def keeping(self, numbers: NDArray[np.int64]) -> "ActivationSet":
        """The same set with these rows of the input alone."""
        places = np.flatnonzero(np.isin(self.row_numbers(), numbers))
        return replace(self, kept=places if self.kept is None else self.kept[places])

    @property
    def blocks(self) -> list[int]:
        """The decoder blocks (from 0) whose activations are here."""
        return list(self.manifest.blocks if self.chosen is None else self.chosen)

    @property
    def n_blocks(self) -> int:
        """Number of decoder blocks of the whole model, harvested or not."""
        return self.manifest.n_blocks

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return self.manifest.d

    @property
    def norms(self) -> dict[int, float]:
        """Median Euclidean norm of the rows at each harvested block."""
        return {block: self.manifest.norms[str(block)] for block in self.blocks}

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are not activations."""
        return list(self.manifest.columns)

    @cached_property
    def _shards(self) -> list[tuple[int, int, ShardEntry]]:
        """(first row, one past the last, entry) of each shard, counting the rows that are there."""
        ends = list(accumulate(entry.rows for entry in self.manifest.shards))
        return [(end - entry.rows, end, entry) for end, entry in zip(ends, self.manifest.shards, strict=True)]

    def _tables(self, columns: list[str], start: int, stop: int) -> Iterator[pa.Table]:
        if self.kept is None:
            yield from self._stored(columns, start, stop)
            return
        kept = self.kept[start:stop]
        first = int(kept[0]) if len(kept) else 0
        for table in self._stored(columns, first, int(kept[-1]) + 1 if len(kept) else 0):
            here = kept[(kept >= first) & (kept < first + table.num_rows)] - first
            first += table.num_rows
            yield table.take(pa.array(here))

    def _stored(self, columns: list[str], start: int, stop: int) -> Iterator[pa.Table]:
        wanted = [shard for shard in self._shards if shard[0] < stop and shard[1] > start]

        @patiently
        def read(first: int, last: int, entry: ShardEntry) -> pa.Table:
            with opened(self.location.inside(entry.name)) as shard:
                wrong = shard.not_of(self.manifest, entry)
                if wrong:
                    raise UserError(f"{shard.location}: {wrong}; {AGAIN}: it is computed anew")
                return shard.read(columns, max(start - first, 0), min(stop, last) - first)

        with readers(self.location) as threads:
            yield from threads.map(lambda shard: read(*shard), wanted)

    def read_block(self, block: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """A block's activations.

        Args:
            block: Decoder block, counted from 0.
            start: First row, in input order, of those that are here.
            stop: One past the last; None reads to the end.

        Returns:
            float32 `[rows, d]`.

        Raises:
            UserError: When the block was not harvested, or a shard is damaged.
        """
        if block not in self.blocks:
            raise UserError(f"{self.location}: block {block} was not harvested; it holds {self.blocks}")
        stop = self.n_rows if stop is None else stop
        column = schema.block_column(block)
        parts = [block_values(table, column) for table in self._tables([column], start, stop)]
        return np.concatenate(parts) if parts else np.empty((0, self.d), np.float32)

    def read_columns(self, names: list[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """Columns that are not activations, in input order; `start` and `stop` as of `read_block`.

        Raises:
            UserError: For a name that is not there.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise UserError(f"{self.location}: no column {missing[0]!r}; it holds {listed(self.columns)}")
        stop = self.n_rows if stop is None else stop
        # A column may have been without any value before texts were appended.
        return pa.concat_tables(self._tables(names, start, stop), promote_options="default")
