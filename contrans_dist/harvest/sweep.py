"""Many shards made by one sweep over the blocks of a model that is never whole in memory.

A sweep takes all its texts through one block after the other, and publishes its shards when it is through. In
the meantime it keeps rows and states in a work folder, beside the shards where these are on a local or shared
disk, else in the temporary folder of the machine (so that only a rerun on that machine can go on from there).
A sweep that was killed goes on after the last block after which its states were saved: that is done after
each block, but not so often that it takes more than a twentieth of the time.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from contrans_dist.config import Settings
from contrans_dist.engine.capture import Activations, deviation
from contrans_dist.engine.capture.streamed import MEMORY, Plan, plan_capture, states_of, sweep
from contrans_dist.errors import RunError
from contrans_dist.harvest.compute import Runnable, canary_rows, few_spoilt
from contrans_dist.harvest.shard_files import (
    Counts,
    HarvestSpec,
    Piece,
    Shard,
    ShardReport,
    SpoiltError,
    Unit,
    publish_shard,
)
from contrans_dist.models.streaming import StreamedModel
from contrans_dist.store.location import Location, sync
from contrans_dist.store.work_folders import LOCK, remove_unused, work_folder

_log = logging.getLogger(__name__)

_SAVE_SHARE = 20
"""Saving takes at most one part in so many of the time."""
_FOLDER = ".sweep-"
_RECORD = "sweep.json"


@dataclass(frozen=True)
class SweepTask:
    """Shards that one actor makes in one sweep."""

    key: str
    """The same for a rerun of the same harvest with as many actors: by it a sweep finds what it has saved."""
    units: list[Unit]


@dataclass
class SweepReport:
    """What became of a sweep."""

    reports: dict[str, ShardReport] = field(default_factory=dict)
    """By name of the unit."""
    failures: dict[str, str] = field(default_factory=dict)
    blocks_read: list[int] = field(default_factory=list)
    bytes_read: int = 0
    """Bytes of the checkpoint's tensors."""
    notes: tuple[str, ...] = ()
    """What its actor has to say to the person who is watching."""


def plan_sweeps(sets: Sequence[tuple[HarvestSpec, Sequence[Shard]]], sweeps: int) -> dict[str, set[str]]:
    """The names of the units of each sweep, by its key: runs of shards with about as many rows each.

    Planned over all shards, whether they are there or not, so that a rerun plans alike.
    """
    shards = [(spec, shard) for spec, planned in sets for shard in planned]
    total = sum(shard.rows for _, shard in shards)
    shares: list[list[str]] = [[] for _ in range(sweeps)]
    done = 0
    for spec, shard in shards:
        shares[min(done * sweeps // max(total, 1), sweeps - 1)].append(str(spec.out / shard.name))
        done += shard.rows
    prints = [spec.fingerprint for spec, _ in sets]
    return {
        hashlib.sha256(json.dumps([prints, share]).encode()).hexdigest()[:16]: set(share)
        for share in shares
        if share
    }


class RowFile:
    """Float32 rows `[n, d]` in a raw file, so that the rows of many blocks need no memory."""

    def __init__(self, path: Path, d: int) -> None:
        self.path, self.d = path, d

    def __setitem__(self, places: list[int], rows: NDArray[np.float32], /) -> None:
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            for place, row in zip(places, rows, strict=True):
                file.seek(place * self.d * 4)
                file.write(row.tobytes())

    def read(self, place: int, rows: int) -> NDArray[np.float32]:
        """Rows `place` to `place + rows`."""
        if not rows:
            return np.empty((0, self.d), np.float32)
        flat = np.fromfile(self.path, dtype=np.float32, count=rows * self.d, offset=place * self.d * 4)
        return flat.reshape(rows, self.d)


@dataclass(frozen=True)
class _Planned:
    """A unit's texts as they are run, and where its rows lie in the row files."""

    unit: Unit
    place: int
    runnable: Runnable
    texts: Plan
    sample: list[int]
    """Texts that are also run alone, as the canary; their rows follow the others."""
    alone: Plan

    @classmethod
    def of(cls, model: StreamedModel, unit: Unit, place: int) -> "_Planned":
        settings = unit.spec.capture
        runnable = Runnable.of(model.lm, unit.rows, settings)
        ids, rows = runnable.ids, len(runnable.ids)
        sample = canary_rows(rows) if ids else []
        blocks, position = unit.spec.blocks, settings.position
        return cls(
            unit,
            place,
            runnable,
            plan_capture(model.lm, ids, blocks, position, settings.batch_tokens, place),
            sample,
            plan_capture(model.lm, [ids[i] for i in sample], blocks, position, 1, place + rows),
        )

    @property
    def end(self) -> int:
        """One past the place of its last row."""
        return self.place + len(self.runnable.ids) + len(self.sample)

    def publish(self, files: dict[int, RowFile], device: str) -> ShardReport:
        """Write the shard. Raises SpoiltError where half of its rows or more hold NaN or infinity."""
        rows, blocks = len(self.runnable.ids), self.unit.spec.blocks
        captured = self.texts.activations({k: files[k].read(self.place, rows) for k in blocks})
        alone = {k: files[k].read(self.place + rows, len(self.sample)) for k in blocks}
        worst = deviation(alone, {k: captured[k][self.sample] for k in alone})
        try:
            return self._write(self.runnable, captured, worst, device)
        except SpoiltError as error:
            few_spoilt(error, rows)
            kept, runnable = self.runnable.without(error.rows)
            return self._write(runnable, captured.take(kept), worst, device)

    def _write(self, texts: Runnable, captured: Activations, worst: float, device: str) -> ShardReport:
        unit = self.unit
        counts = Counts(int(captured.n_tokens.sum()), len(texts.truncated), worst, texts.skipped)
        return publish_shard(texts.rows, [Piece(0, captured)], counts, unit.spec, unit.shard, device)


def run_sweep(
    model: StreamedModel,
    task: SweepTask,
    memory: int = MEMORY,
    told: Callable[[int], None] = lambda _k: None,
) -> SweepReport:
    """Make the task's shards, going on from what an earlier run of it has saved.

    `memory`: bytes of states that need not go to disk. `told(k)` is called when all texts are through block
    k. A text that cannot be run is left out, and its shard says so. A shard of whose rows half or more hold
    NaN or infinity is reported as failed, and the others are published.
    """
    report, read, loaded = SweepReport(), model.checkpoint.bytes_read, len(model.blocks_read)
    with work_folder(_parent(task.units[0].spec.out), _FOLDER, task.key) as folder:
        record = _Record.of(folder)
        planned = [_Planned.of(model, unit, place) for unit, place in record.placed(task.units)]
        files = {k: RowFile(folder / f"rows-{k:04d}.raw", model.lm.d) for k in record.blocks}
        record.check(files, planned)
        if not record.through and any(part.texts.batches for part in planned):
            _sweep(model, planned, files, record, memory, told)
        for part in planned:
            try:
                report.reports[part.unit.name] = part.publish(files, str(model.device))
            except RunError as error:
                report.failures[part.unit.name] = str(error)
    report.blocks_read = model.blocks_read[loaded:]
    report.bytes_read = model.checkpoint.bytes_read - read
    return report


def _sweep(
    model: StreamedModel,
    planned: list[_Planned],
    files: dict[int, RowFile],
    record: "_Record",
    memory: int,
    told: Callable[[int], None],
) -> None:
    """All texts through all blocks that are not yet done."""
    batches = [batch for part in planned for plan in (part.texts, part.alone) for batch in plan.batches]
    unsafe: list[RowFile] = []
    last, cost = time.monotonic(), 0.0
    with states_of(model, batches, memory, record.folder) as states:
        if record.after is not None:
            try:
                states.resume(record.after + 1)
                _log.warning("%s: going on after block %d", record.folder, record.after)
            except RunError as error:
                _log.warning("%s; starting afresh", error)
                record.after = None

        def finished(k: int) -> None:
            """Save, if it is time to or the sweep is through."""
            nonlocal last, cost
            told(k)
            started = time.monotonic()
            if k in files:
                unsafe.append(files[k])
            if k < record.blocks[-1]:
                if started - last < _SAVE_SHARE * cost:
                    return
                states.save()
            for file in unsafe:
                sync(file.path)
            unsafe.clear()
            record.write(k)
            states.release()
            last = time.monotonic()
            cost = last - started

        sweep(model, batches, dict(files), states, record.after, finished)


class _Saved(Settings):
    """A record as it stands in its file."""

    places: dict[str, Annotated[int, Field(ge=0)]]
    blocks: list[Annotated[int, Field(ge=0)]]
    after: Annotated[int, Field(ge=0)] | None


@dataclass
class _Record:
    """What of a sweep is safe on disk."""

    folder: Path
    places: dict[str, int] = field(default_factory=dict)
    """Where the rows of each unit, by name, lie in the row files."""
    blocks: list[int] = field(default_factory=list)
    """Where rows are wanted."""
    after: int | None = None
    """The block that all texts are through, with everything needed to go on."""

    @classmethod
    def of(cls, folder: Path) -> "_Record":
        try:
            content = _Saved.model_validate_json((folder / _RECORD).read_bytes())
        except (OSError, ValueError):
            return cls(folder)
        return cls(folder, content.places, content.blocks, content.after)

    def check(self, files: Mapping[int, RowFile], planned: Sequence[_Planned]) -> None:
        """Start afresh where a file does not hold the rows that it should by now."""
        if self.after is None:
            return
        for k in (k for k in self.blocks if k <= (self.after or 0)):
            end = max((part.end for part in planned if k in part.unit.spec.blocks), default=0)
            size = files[k].path.stat().st_size if files[k].path.is_file() else 0
            if size < end * files[k].d * 4:
                _log.warning("%s: rows of block %d are missing; starting afresh", self.folder, k)
                self.after = None
                return

    @property
    def through(self) -> bool:
        return bool(self.blocks) and self.after == self.blocks[-1]

    def placed(self, units: Sequence[Unit]) -> list[tuple[Unit, int]]:
        """Each unit and the place of its rows. A record of other units is thrown away, unless the sweep is
        through and had all of these: some of its shards were published before it was killed."""
        names = {unit.name for unit in units}
        if not (names == set(self.places) or (self.through and names < set(self.places))):
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            places, after = {}, 0
            for unit in units:
                places[unit.name] = after
                after += unit.shard.rows + len(canary_rows(unit.shard.rows))
            blocks = sorted({k for unit in units for k in unit.spec.blocks})
            self.places, self.blocks, self.after = places, blocks, None
        return [(unit, self.places[unit.name]) for unit in units]

    def write(self, after: int) -> None:
        """All texts are through block `after`, and what was made of them is synced."""
        self.after = after
        fresh = self.folder / f"{_RECORD}.new"
        fresh.write_text(json.dumps({"places": self.places, "blocks": self.blocks, "after": after}))
        sync(fresh)
        fresh.replace(self.folder / _RECORD)
        sync(self.folder)


def _parent(out: Location) -> Path:
    return Path(out.path) if out.is_local else Path(tempfile.gettempdir())


def clean(out: Location) -> None:
    """Remove what killed sweeps have left in a folder of shards that is complete."""
    if out.is_local:
        remove_unused(Path(out.path), _FOLDER)
