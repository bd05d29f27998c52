"""What a harvest takes of a disk."""

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from contrans_dist.config.parts import Position
from contrans_dist.console import size_words
from contrans_dist.errors import UserError
from contrans_dist.harvest.planned_set import PlannedSet

_STORED = {"float32": 0.92, "bfloat16": 0.38, "float16": 0.56}
"""Bytes on disk for a raw float32 byte of activations that were computed in a precision, measured."""
_CERTAIN = 0.75
"""Of what is estimated, what activations of different texts were never seen to fall below."""


def stored_bytes(rows: int, n_blocks: int, d: int, computed_in: str, position: Position) -> int:
    """Bytes on disk of so many rows of different texts. Means are float32, whatever they are of."""
    return round(rows * n_blocks * d * 4 * _STORED["float32" if position == "mean" else computed_in])


def check_room(sets: Sequence[PlannedSet]) -> None:
    """Raise UserError where what is missing of sets on local disks is certain not to find room there."""
    disks: dict[int, list[tuple[PlannedSet, Path]]] = defaultdict(list)
    for planned_set in sets:
        if planned_set.out.is_local and planned_set.missing:
            path = Path(planned_set.out.path)
            there = next(folder for folder in (path, *path.parents) if folder.exists())
            disks[os.stat(there).st_dev].append((planned_set, there))
    for on_disk in disks.values():
        wanted = sum(_missing_bytes(planned_set) for planned_set, _ in on_disk)
        first, there = on_disk[0]
        free = shutil.disk_usage(there).free
        if _CERTAIN * wanted > free:
            raise UserError(
                f"{first.out}: about {size_words(wanted)} are to be written, and its disk has "
                f"{size_words(free)} free: fewer --blocks or texts take less, or choose another --out"
            )


def _missing_bytes(planned_set: PlannedSet) -> int:
    """Of what is missing, as far as that can be told: equal rows take next to nothing."""
    spec, prompts = planned_set.spec, planned_set.request.prompts
    position = spec.capture.position
    if position not in ("last", "mean") and int(position) >= 0:  # texts may begin alike
        return 0
    different = {
        prompt for shard in planned_set.missing for prompt in prompts[shard.start : shard.start + shard.rows]
    }
    computed_in = spec.identity.compute_dtype or "bfloat16"
    return stored_bytes(len(different), len(spec.blocks), spec.d, computed_in, position)
