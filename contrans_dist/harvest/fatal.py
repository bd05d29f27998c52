"""Texts at which the process that runs them dies.

It cannot say at which it was: parts of what it was given are tried, and parts of these, until single texts
are left.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from contrans_dist.console import count_of, note
from contrans_dist.store.location import Location

_PARTS = 8
_LEVELS = 2
"""Of parts that all die, before a task is given up."""


@dataclass(frozen=True)
class Suspect:
    """A task at which actors have died."""

    name: str
    """No two of a search have the same."""
    texts: int
    folders: frozenset[Location]
    """Of the sets that its rows are for."""


Part = tuple[Suspect, range]
"""Some texts of a task, by their place in it, from 0."""
Die = Callable[[Sequence[Part]], Sequence[bool]]


def fatal_texts(suspects: Sequence[Suspect], die: Die, working: Collection[Location]) -> dict[str, list[int]]:
    """The texts at which actors die, by name of the task and place in it: of one that lives in all its parts,
    none.

    Without the tasks that die in all their parts, and in all of these: nothing shows then that their texts
    are to blame. A task of one text has no part that could live: another for its set shows that the model
    does.

    A text among n costs about log_8(n) actors.

    Args:
        suspects: At which actors have died.
        die: Whether an actor dies at each of these parts, or, for one text, whether several do.
        working: The folders of the sets of which a shard is there. Of each other set the largest task is
            searched first, and the others if it lives in some part: it may be the model that dies.
    """
    note(f"actors died at {count_of(len(suspects), 'task')}; looking for the texts at which they do")
    lives = set(working)
    by_size = sorted(suspects, key=lambda suspect: suspect.texts)
    largest = {folder: suspect for suspect in by_size for folder in suspect.folders}
    first = dict.fromkeys(suspect for folder, suspect in largest.items() if folder not in lives)
    found = _searched([*first], die, lives)
    left = [suspect for suspect in suspects if suspect.folders & lives and suspect.name not in found]
    return found | _searched(left, die, lives)


def _searched(suspects: Sequence[Suspect], die: Die, lives: set[Location]) -> dict[str, list[int]]:
    """As `fatal_texts`; the folders of tasks of which a part lives are added to `lives`."""
    found: dict[str, list[int]] = {suspect.name: [] for suspect in suspects}
    alive: set[str] = set()
    dead: list[Part] = [(suspect, range(suspect.texts)) for suspect in suspects]
    level = 0
    while dead:
        level += 1
        parts = [part for suspect, places in dead for part in _parts(suspect, places)]
        dead = []
        for (suspect, places), died in zip(parts, die(parts), strict=True):
            if not died:
                alive.add(suspect.name)
                lives |= suspect.folders
            elif len(places) == 1:
                found[suspect.name].append(places.start)
            else:
                dead.append((suspect, places))
        dead = [
            (suspect, places)
            for suspect, places in dead
            if suspect.name in alive or (suspect.folders & lives and level < _LEVELS)
        ]
    alone = {suspect.name for suspect in suspects if suspect.texts == 1 and suspect.folders & lives}
    return {name: places for name, places in found.items() if name in alive | alone}


def _parts(suspect: Suspect, places: range) -> list[Part]:
    size = -(-len(places) // _PARTS)
    return [(suspect, places[start : start + size]) for start in range(0, len(places), size)]
