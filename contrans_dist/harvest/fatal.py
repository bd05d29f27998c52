"""Texts at which the process that runs them dies.

It cannot say at which it was: parts of what it was given are tried, and parts of these, until single texts
are left.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from contrans_dist.console import note
from contrans_dist.store.location import Location

_PARTS = 8
_LEVELS = 2
"""Of parts that all die, before a search is given up."""


@dataclass(frozen=True)
class Suspect:
    """Texts for one set in a task at which actors have died."""

    task: str
    """Its name."""
    places: range
    """Where they are in the task, from 0."""
    folder: Location
    """The set's."""


Part = tuple[Suspect, range]
"""Some of a suspect's places."""
Die = Callable[[Sequence[Part]], Sequence[bool | None]]


def fatal_texts(
    suspects: Sequence[Suspect], die: Die, working: Collection[Location]
) -> dict[Suspect, list[int]]:
    """The places of the texts at which actors die: none of a suspect that lives in all its parts.

    Without the suspects that die in all their parts, and in all of these: nothing shows then that their texts
    are to blame. One of a single text has no part that could live: another of its set shows that the model
    does.

    A text among n costs about log_8(n) actors, and eight times as many trials.

    Args:
        suspects: At which actors have died.
        die: Whether an actor dies at each of these parts, or, for one text, whether several do; None where it
            could not be seen.
        working: The folders of the sets of which a shard is there. Of each other set the largest suspect is
            searched first, and the others if it lives in some part: it may be the model that dies.
    """
    more = f" and {len(suspects) - 1} more" if len(suspects) > 1 else ""
    note(f"actors died at {suspects[0].task}{more}; looking for the texts at which they do")
    lives = set(working)
    by_size = sorted(suspects, key=lambda suspect: len(suspect.places))
    largest = {suspect.folder: suspect for suspect in by_size}
    found = _searched([suspect for suspect in largest.values() if suspect.folder not in lives], die, lives)
    left = [suspect for suspect in suspects if suspect.folder in lives and suspect not in found]
    return found | _searched(left, die, lives)


def _searched(suspects: Sequence[Suspect], die: Die, lives: set[Location]) -> dict[Suspect, list[int]]:
    """As `fatal_texts`; the folders of suspects of which a part lives are added to `lives`."""
    found: dict[Suspect, list[int]] = {suspect: [] for suspect in suspects}
    alive: set[Suspect] = set()
    dead: list[Part] = [(suspect, suspect.places) for suspect in suspects]
    level = 0
    while dead:
        level += 1
        parts = [part for suspect, places in dead for part in _parts(suspect, places)]
        dead = []
        for (suspect, places), died in zip(parts, die(parts), strict=True):
            if died is False:
                alive.add(suspect)
                lives.add(suspect.folder)
            elif died and len(places) == 1:
                found[suspect].append(places.start)
            elif died:
                dead.append((suspect, places))
        # Each part may have such a text: one that lives shows that it is not the model that dies.
        if firsts := [(suspect, places[:1]) for suspect, places in dead if suspect.folder not in lives]:
            tried = zip(firsts, die(firsts), strict=True)
            lives |= {suspect.folder for (suspect, _), died in tried if died is False}
        dead = [
            (suspect, places)
            for suspect, places in dead
            if suspect in alive or (suspect.folder in lives and level < _LEVELS)
        ]
    alone = {suspect for suspect in suspects if len(suspect.places) == 1 and suspect.folder in lives}
    return {suspect: places for suspect, places in found.items() if suspect in alive | alone}


def _parts(suspect: Suspect, places: range) -> list[Part]:
    size = -(-len(places) // _PARTS)
    return [(suspect, places[start : start + size]) for start in range(0, len(places), size)]
