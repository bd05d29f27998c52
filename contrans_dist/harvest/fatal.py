"""Texts at which the process that runs them dies.

It cannot say at which it was: parts of its shard are tried, and parts of these, until single texts are left.
"""

from collections.abc import Callable, Sequence
from itertools import compress

from contrans_dist.console import count_of, note
from contrans_dist.harvest.shards import Shard

_PARTS = 8

Part = tuple[Shard, range]
"""Some rows of a shard, by number in the input."""


def fatal_rows(
    shards: Sequence[Shard], die: Callable[[Sequence[Part]], Sequence[bool]]
) -> dict[str, list[int]]:
    """The rows at which actors die, by address of their shard: of one that lives in all its parts, no rows.
    Without the shards that die in all their parts, as nothing shows then that their texts are to blame.

    A text among n costs about log_8(n) actors.

    Args:
        shards: At which actors have died.
        die: Whether an actor dies at each of these parts, or, for one row, whether several do.
    """
    parts = [part for shard in shards for part in _parts(shard, range(shard.start, shard.start + shard.rows))]
    note(f"actors died at {count_of(len(shards), 'shard')}; looking for the texts at which they do")
    died = die(parts)
    found: dict[str, list[int]] = {
        shard.address: [] for (shard, _), dead in zip(parts, died, strict=True) if not dead
    }
    dead = [part for part in compress(parts, died) if part[0].address in found]
    while dead:
        for shard, rows in dead:
            if len(rows) == 1:
                found[shard.address].append(rows.start)
        parts = [part for shard, rows in dead if len(rows) > 1 for part in _parts(shard, rows)]
        dead = list(compress(parts, die(parts))) if parts else []
    return found


def _parts(shard: Shard, rows: range) -> list[Part]:
    size = -(-len(rows) // _PARTS)
    return [(shard, rows[start : start + size]) for start in range(0, len(rows), size)]
