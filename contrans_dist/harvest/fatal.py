"""Texts at which the process that runs them dies.

It cannot say at which it was: parts of its shard are tried, and parts of these, until single texts are left.
"""

from collections.abc import Callable, Collection, Sequence

from contrans_dist.console import count_of, note
from contrans_dist.harvest.shards import Shard
from contrans_dist.store.location import Location

_PARTS = 8
_LEVELS = 2
"""Of parts that all die, before a shard is given up."""

Part = tuple[Shard, range]
"""Some rows of a shard, by number in the input."""
Die = Callable[[Sequence[Part]], Sequence[bool]]


def fatal_rows(shards: Sequence[Shard], die: Die, working: Collection[Location] = ()) -> dict[str, list[int]]:
    """The rows at which actors die, by address of their shard: of one that lives in all its parts, no rows.

    Without the shards that die in all their parts, and in all of these: nothing shows then that their texts
    are to blame. A shard of one row has no part that could live: another of its set shows that the model
    does.

    A text among n costs about log_8(n) actors.

    Args:
        shards: At which actors have died.
        die: Whether an actor dies at each of these parts, or, for one row, whether several do.
        working: The folders of the sets of which a shard is there. Of each other set the largest shard is
            searched first, and the others if it lives in some part: it may be the model that dies.
    """
    note(f"actors died at {count_of(len(shards), 'shard')}; looking for the texts at which they do")
    lives = set(working)
    largest = {shard.spec.out: shard for shard in sorted(shards, key=lambda shard: shard.rows)}
    found = _searched([shard for out, shard in largest.items() if out not in lives], die, lives)
    left = [shard for shard in shards if shard.spec.out in lives and shard.address not in found]
    return found | _searched(left, die, lives)


def _searched(shards: Sequence[Shard], die: Die, lives: set[Location]) -> dict[str, list[int]]:
    """As `fatal_rows`; the folders of sets of which a part lives are added to `lives`."""
    found: dict[str, list[int]] = {shard.address: [] for shard in shards}
    alive: set[str] = set()
    dead: list[Part] = [(shard, range(shard.start, shard.start + shard.rows)) for shard in shards]
    level = 0
    while dead:
        level += 1
        parts = [part for shard, rows in dead for part in _parts(shard, rows)]
        dead = []
        for (shard, rows), died in zip(parts, die(parts), strict=True):
            if not died:
                alive.add(shard.address)
                lives.add(shard.spec.out)
            elif len(rows) == 1:
                found[shard.address].append(rows.start)
            else:
                dead.append((shard, rows))
        dead = [
            (shard, rows)
            for shard, rows in dead
            if shard.address in alive or (shard.spec.out in lives and level < _LEVELS)
        ]
    alone = {shard.address for shard in shards if shard.rows == 1 and shard.spec.out in lives}
    return {address: rows for address, rows in found.items() if address in alive | alone}


def _parts(shard: Shard, rows: range) -> list[Part]:
    size = -(-len(rows) // _PARTS)
    return [(shard, rows[start : start + size]) for start in range(0, len(rows), size)]
