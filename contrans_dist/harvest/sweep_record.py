"""What a sweep keeps in its work folder: rows by block, and the record of what of them is safe."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from contrans_dist.config import Settings
from contrans_dist.harvest.runnable import canary_rows
from contrans_dist.harvest.shards import ShardTask
from contrans_dist.store.location import sync
from contrans_dist.store.work_folders import LOCK

_log = logging.getLogger(__name__)

_RECORD = "sweep.json"


class RowFile:
    """Float32 rows `[n, d]` in a raw file, so that the rows of many blocks need no memory."""

    def __init__(self, path: Path, d: int) -> None:
        self.path, self.d = path, d

    def __setitem__(self, places: list[int], rows: NDArray[np.float32], /) -> None:
        # Buffered: an unbuffered write may write but a part, and say so only in what it returns.
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            for place, row in zip(places, rows, strict=True):
                file.seek(place * self.d * 4)
                file.write(row.tobytes())

    def __getitem__(self, places: slice, /) -> NDArray[np.float32]:
        rows = places.stop - places.start
        if not rows:
            return np.empty((0, self.d), np.float32)
        begin = places.start * self.d
        flat = np.fromfile(self.path, dtype=np.float32, count=rows * self.d, offset=begin * 4)
        return flat.reshape(rows, self.d)

    def holds(self, rows: int) -> bool:
        """Whether it is as long as so many rows are."""
        return (self.path.stat().st_size if self.path.is_file() else 0) >= rows * self.d * 4


class Nowhere:
    """For rows that nobody wants."""

    def __setitem__(self, places: list[int], rows: NDArray[np.float32], /) -> None:
        pass

    def __getitem__(self, places: slice, /) -> NDArray[np.float32]:
        raise IndexError("these rows were not kept")


class _Saved(Settings):
    """A record as it stands in its file."""

    places: dict[str, Annotated[int, Field(ge=0)]]
    """Where the rows of each shard, by address, lie in the row files."""
    blocks: list[Annotated[int, Field(ge=0)]]
    """Where rows are wanted."""
    after: Annotated[int, Field(ge=0)] | None
    """The block that all texts are through, with everything needed to go on."""
    left_out: dict[str, list[int]] = Field(default_factory=dict)
    """Rows of the input, by address of their shard, that are not run: the others are in other batches."""


class SweepRecord:
    """What of a sweep is safe on disk: the record in its folder, or a new one where that is of other shards.

    A sweep that is through may have had more shards: some were published before it was killed.
    """

    def __init__(self, folder: Path, tasks: Sequence[ShardTask]) -> None:
        shards = [task.shard for task in tasks]
        self.folder = folder
        self.left_out = {task.shard.address: sorted(task.fatal) for task in tasks if task.fatal}
        self.places, end = dict[str, int](), 0
        for shard in shards:
            self.places[shard.address] = end
            end += shard.rows + len(canary_rows(shard.rows))
        self.blocks = sorted({k for shard in shards for k in shard.spec.blocks})
        self.after: int | None = None
        saved = self._read()
        if saved is not None and self._goes_on(saved):
            self.places, self.blocks, self.after = saved.places, saved.blocks, saved.after
            self.left_out = saved.left_out
            return
        for path in folder.iterdir():
            if path.name != LOCK:
                path.unlink()

    def _read(self) -> _Saved | None:
        try:
            return _Saved.model_validate_json((self.folder / _RECORD).read_bytes())
        except (OSError, ValueError):
            return None

    def _goes_on(self, saved: _Saved) -> bool:
        left_out = {address: rows for address, rows in saved.left_out.items() if address in self.places}
        if left_out != self.left_out:
            return False
        if set(saved.places) == set(self.places):
            return saved.blocks == self.blocks
        through = bool(saved.blocks) and saved.after == saved.blocks[-1]
        return through and set(self.places) < set(saved.places) and set(self.blocks) <= set(saved.blocks)

    @property
    def through(self) -> bool:
        return self.after == self.blocks[-1]

    def check(self, k: int, file: RowFile, rows: int) -> None:
        """Start afresh where the file of block k does not hold so many rows, which it should by now."""
        if self.after is not None and k <= self.after and not file.holds(rows):
            _log.warning("%s: rows of block %d are missing; starting afresh", self.folder, k)
            self.after = None

    def write(self, after: int) -> None:
        """All texts are through block `after`, and what was made of them is synced."""
        self.after = after
        fresh = self.folder / f"{_RECORD}.new"
        saved = _Saved(places=self.places, blocks=self.blocks, after=after, left_out=self.left_out)
        fresh.write_text(saved.model_dump_json())
        sync(fresh)
        fresh.replace(self.folder / _RECORD)
        sync(self.folder)
