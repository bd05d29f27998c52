"""Many shards made by one sweep over the blocks of a model that is never whole in memory.

A sweep takes all its texts through one block after the other, and publishes its shards when it is through. In
the meantime it keeps rows and states in a work folder, beside the shards where these are on a local or shared
disk, else in the temporary folder of the machine (so that only a rerun on that machine can go on from there).
A sweep that was killed goes on after the last block after which its states were saved: that is done after
each block, but not so often that it takes more than a twentieth of the time. On a disk that knows no locks it
begins anew, since another may still be at work in its folder.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from contrans_dist.engine.capture.streamed import MEMORY, states_of, sweep
from contrans_dist.errors import RunError
from contrans_dist.harvest.runnable import SpoiltError
from contrans_dist.harvest.shard_plan import ShardPlan
from contrans_dist.harvest.shards import MadeShards, Shard, ShardTask
from contrans_dist.harvest.sweep_record import Nowhere, RowFile, SweepRecord
from contrans_dist.models.streaming import StreamedModel
from contrans_dist.store.location import Location, sync
from contrans_dist.store.work_folders import remove_scratch, remove_unused, scratch_folder, work_folder

_log = logging.getLogger(__name__)

_SAVE_SHARE = 20
"""Saving takes at most one part in so many of the time."""
_FOLDER = ".sweep-"
_TRIAL = f"{_FOLDER}trial-"


@dataclass(frozen=True)
class SweepTask:
    """Shards that one actor makes in one sweep."""

    key: str
    """The same for a rerun of the same harvest with as many actors: by it a sweep finds what it has saved."""
    shards: Sequence[ShardTask]

    @property
    def trial(self) -> bool:
        """Whether the texts are run and nothing is kept."""
        return all(task.trial for task in self.shards)

    @property
    def texts(self) -> int:
        return sum(task.texts for task in self.shards)

    @property
    def size(self) -> int:
        """How much work it is, in bytes of text."""
        return sum(task.size for task in self.shards)

    def _placed(self) -> Iterator[tuple[ShardTask, range]]:
        """Each shard, with the places of its texts in the task, from 0."""
        start = 0
        for task in self.shards:
            yield task, range(start, start + task.texts)
            start += task.texts

    def by_set(self) -> list[tuple[Location, range]]:
        """The folder of each set that its rows are for, and the places of their texts in the task, from 0."""
        sets = groupby(self._placed(), key=lambda placed: placed[0].shard.spec.out)
        found = [(folder, [own for _, own in placed]) for folder, placed in sets]
        return [(folder, range(own[0].start, own[-1].stop)) for folder, own in found]

    def part(self, places: range) -> "SweepTask":
        """A trial of some of its texts."""
        parts = []
        for task, own in self._placed():
            start, stop = max(places.start, own.start), min(places.stop, own.stop)
            if start < stop:
                parts.append(task.part(range(start - own.start, stop - own.start)))
        return replace(self, shards=parts)

    def without(self, places: Sequence[int], reason: str) -> "SweepTask":
        """The whole but for some of its texts."""
        left = [
            task.without([place - own.start for place in places if place in own], reason)
            for task, own in self._placed()
        ]
        return replace(self, shards=left)

    @property
    def words(self) -> str:
        """Its first and last rows, for messages."""
        return ", up to ".join(dict.fromkeys(task.words for task in (self.shards[0], self.shards[-1])))


def plan_sweeps(shards: Sequence[Shard], sweeps: int) -> dict[str, set[str]]:
    """The addresses of the shards of each sweep, by its key: about as many rows each.

    Planned over all shards, whether they are there or not, so that a rerun plans alike.
    """
    total = sum(shard.rows for shard in shards)
    shares: list[list[str]] = [[] for _ in range(sweeps)]
    done = 0
    for shard in shards:
        shares[min(done * sweeps // max(total, 1), sweeps - 1)].append(shard.address)
        done += shard.rows
    prints = list(dict.fromkeys(shard.spec.fingerprint for shard in shards))
    return {
        hashlib.sha256(json.dumps([prints, share]).encode()).hexdigest()[:16]: set(share)
        for share in shares
        if share
    }


def run_sweep(
    model: StreamedModel,
    task: SweepTask,
    memory: int = MEMORY,
    told: Callable[[int], None] = lambda _k: None,
) -> MadeShards:
    """Make the task's shards, going on from what an earlier run of it has saved.

    `memory`: bytes of states that need not go to disk. `told(k)` is called when all texts are through block
    k. A text that cannot be run is left out, and its shard says so. A shard of whose rows half or more hold
    NaN or infinity is reported as failed, and the others are published. What cannot be written is raised, and
    then the rows stay for another try (see `work_folder`).
    """
    made = MadeShards()
    with work_folder(_parent(task), _FOLDER, task.key) as folder:
        record = SweepRecord(folder, task.shards)
        swept = _planned(model, task, record.places)
        files = {k: RowFile(folder / f"rows-{k:04d}.raw", model.lm.d) for k in record.blocks}
        for k, file in files.items():
            end = max((part.end for part in swept if k in part.shard.spec.blocks), default=0)
            record.check(k, file, end)
        if not record.through and any(part.texts.batches for part in swept):
            _sweep(model, swept, files, record, memory, told)
        for part in swept:
            try:
                made.reports[part.shard.address] = part.publish(files, str(model.device))
            except SpoiltError as error:
                made.failures[part.shard.address] = str(error)
    return made


def try_sweep(
    model: StreamedModel,
    task: SweepTask,
    memory: int = MEMORY,
    told: Callable[[int], None] = lambda _k: None,
) -> None:
    """Run the task's texts, and keep nothing: who asks wants to know whether this process lives.

    What those that did not have left on the disk is removed.
    """
    batches = [batch for part in _planned(model, task, {}) for batch in part.batches]
    if not batches:
        return
    highest = max(max(batch.blocks) for batch in batches)
    remove_scratch(_parent(task), _TRIAL)
    with (
        scratch_folder(_parent(task), _TRIAL) as folder,
        states_of(model, batches, memory, folder) as states,
    ):
        sweep(model, batches, {highest: Nowhere()}, states, finished=told)


def _planned(model: StreamedModel, task: SweepTask, places: Mapping[str, int]) -> list[ShardPlan]:
    """Its shards, whose rows begin at these places, by address; at 0 where none is told."""
    return [
        ShardPlan.of(model.lm, part.shard, part.rows, places.get(part.shard.address, 0), part.fatal)
        for part in task.shards
    ]


def _sweep(
    model: StreamedModel,
    swept: list[ShardPlan],
    files: dict[int, RowFile],
    record: SweepRecord,
    memory: int,
    told: Callable[[int], None],
) -> None:
    """All texts through all blocks that are not yet done."""
    batches = [batch for part in swept for batch in part.batches]
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


def _parent(task: SweepTask) -> Path:
    out = task.shards[0].shard.spec.out
    return Path(out.path) if out.is_local else Path(tempfile.gettempdir())


def clean(out: Location) -> None:
    """Remove what killed sweeps have left in a folder of shards that is complete."""
    if out.is_local:
        remove_unused(Path(out.path), _FOLDER)
