"""The shards of a set: which rows each holds, as what it is harvested, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contrans_dist.config import CaptureSettings
from contrans_dist.store import schema
from contrans_dist.store.footers import ShardFacts
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import ShardEntry

_TARGET_BYTES = 128 << 20
_STORED_RATIO = 0.7
"""Bytes on disk per raw float32 byte of bf16 activations, halved by byte-stream-split and zstd."""
_FEWEST_ROWS = 64
_LEAST_SHARDS = 8


@dataclass(frozen=True)
class HarvestSpec:
    """Everything a shard's bytes depend on, and where they go."""

    identity: Identity
    capture: CaptureSettings
    d: int
    out: Location

    @property
    def blocks(self) -> list[int]:
        return self.identity.blocks

    @cached_property
    def fingerprint(self) -> str:
        return self.identity.fingerprint


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `start + rows` of the input, and as what they are harvested."""

    spec: HarvestSpec
    index: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        return schema.shard_name(self.index)

    @property
    def location(self) -> Location:
        return self.spec.out / self.name

    @property
    def address(self) -> str:
        """Its file's, which no other shard of a harvest of several sets has."""
        return str(self.location)


@dataclass(frozen=True)
class ShardTask:
    """A shard that one actor makes of its rows of the input."""

    shard: Shard
    rows: pa.Table
    fatal: Mapping[int, str] = field(default_factory=dict)
    """Which of them are left out, by number in the input, as a process died at each; and what of."""
    trial: bool = False
    """Run these rows, which may be some of the shard's, and keep nothing."""

    @property
    def texts(self) -> int:
        return int(self.rows.num_rows)

    @property
    def size(self) -> int:
        """How much work it is, in bytes of text."""
        return int(self.rows["text"].nbytes)

    def by_set(self) -> list[tuple[Location, range]]:
        """The folder of each set that its rows are for, and the places of their texts in the task, from 0."""
        return [(self.shard.spec.out, range(self.texts))]

    def part(self, places: range) -> "ShardTask":
        """A trial of some of its texts."""
        return replace(self, rows=self.rows.slice(places.start, len(places)), trial=True)

    def without(self, places: Sequence[int], reason: str) -> "ShardTask":
        """The whole but for some of its texts."""
        return replace(self, fatal=dict.fromkeys((self.shard.start + place for place in places), reason))

    @property
    def words(self) -> str:
        """Which rows of which shard, for messages."""
        first = self.rows["row"][0].as_py()
        return f"{self.shard.address}, {rows_words(range(first, first + self.texts))}"


@dataclass(frozen=True)
class Timing:
    """When a process worked on a shard, in seconds of its own clock, and when its model did."""

    process: str
    began: float
    ended: float
    captured: tuple[tuple[float, float], ...]
    """From when each of its calls of the model began to when their rows were there."""


@dataclass(frozen=True)
class ShardReport:
    """What the manifest needs to know of a finished shard."""

    entry: ShardEntry
    facts: ShardFacts
    norms: NDArray[np.float32] | None
    """Euclidean norm of each row at each block, `[rows, n_blocks]`; None where reading them takes long."""
    device: str = ""
    timing: Timing | None = None
    """None for a shard that was there, or was made with others."""


@dataclass
class MadeShards:
    """What became of the shards that an actor was given."""

    reports: dict[str, ShardReport] = field(default_factory=dict)
    """By address."""
    failures: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What its actor has to say to the person who is watching."""


def rows_per_shard(n_rows: int, n_blocks: int, d: int, shard_size: int | None) -> int:
    """Rows in a shard: as asked, else for about 128 MB on disk, and at least eight shards of a small input.

    Depends on the input and the settings alone, never on the cluster, so that a resumed harvest is cut alike.
    """
    if shard_size is not None:
        return shard_size
    by_size = int(_TARGET_BYTES / (n_blocks * d * 4 * _STORED_RATIO))
    to_share = max(_FEWEST_ROWS, -(-n_rows // _LEAST_SHARDS))
    return max(1, min(by_size, to_share))


def rows_words(rows: range) -> str:
    """Consecutive rows, in a message."""
    return f"rows {rows.start:,} to {rows.stop - 1:,}" if len(rows) > 1 else f"row {rows.start:,}"


def row_ranges(start: int, stop: int, size: int) -> list[range]:
    """Consecutive ranges of `size` rows; the last one may be shorter."""
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def plan_shards(spec: HarvestSpec) -> list[Shard]:
    """All shards of a set. Those of each part have the identity that the set had when it ended there."""
    shards: list[Shard] = []
    done = 0
    for identity in spec.identity.stages():
        part = replace(spec, identity=identity)
        for rows in row_ranges(done, identity.rows, identity.shard_size):
            shards.append(Shard(part, len(shards), rows.start, len(rows)))
        done = identity.rows
    return shards
