"""The texts at which a process dies, found by dying."""

import math
from collections.abc import Collection, Sequence

import numpy as np
import pytest

from contrans_dist.harvest.fatal import Part, Suspect, fatal_texts
from contrans_dist.store.location import Location

SET, OTHER = Location.parse("/set"), Location.parse("/other")


def _suspects(sizes: Sequence[int]) -> list[Suspect]:
    return [Suspect(f"task {number}", range(size), SET) for number, size in enumerate(sizes)]


class Mortal:
    """An actor that dies at some places of each task."""

    def __init__(self, *fatal: Collection[int]) -> None:
        self.fatal = {f"task {number}": set(places) for number, places in enumerate(fatal)}
        self.deaths = 0

    def die(self, parts: Sequence[Part]) -> list[bool | None]:
        died = [not self.fatal[suspect.task].isdisjoint(places) for suspect, places in parts]
        self.deaths += sum(died)
        return [*died]


@pytest.mark.parametrize("seed", range(20))
def test_the_texts_that_kill_are_found_and_no_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    suspects = _suspects(rng.integers(9, 3000, 4).tolist())
    fatal = [
        rng.choice(len(suspect.places), int(rng.integers(1, 4)), replace=False).tolist()
        for suspect in suspects
    ]
    mortal = Mortal(*fatal)
    found = fatal_texts(suspects, mortal.die, [])
    wanted = {suspect: sorted(places) for suspect, places in zip(suspects, fatal, strict=True)}
    assert {suspect: sorted(places) for suspect, places in found.items()} == wanted
    most = math.ceil(math.log(max(len(suspect.places) for suspect in suspects), 8))
    assert mortal.deaths <= sum(map(len, fatal)) * most


def test_a_task_that_dies_whatever_is_run_is_not_blamed_on_its_texts() -> None:
    suspects, mortal = _suspects([128, 40]), Mortal(range(128), {17})
    assert fatal_texts(suspects, mortal.die, [SET]) == {suspects[1]: [17]}
    # Eight parts of the first, and eight of each; of the second one in each of two rounds.
    assert mortal.deaths == 8 + 64 + 2


def test_where_nothing_lives_no_more_than_one_task_is_tried() -> None:
    mortal = Mortal(range(40), range(128), range(1))
    assert fatal_texts(_suspects([40, 128, 1]), mortal.die, []) == {}
    assert mortal.deaths == 8 + 8  # in parts, and at a text of each


def test_texts_in_each_part_of_the_only_task_are_found() -> None:
    """A streamed harvest by one actor is one task: that the model lives at single texts shows enough."""
    (suspect,), fatal = _suspects([800]), [*range(50, 800, 100)]
    assert sorted(fatal_texts([suspect], Mortal(fatal).die, [])[suspect]) == fatal


def test_that_a_model_lives_at_one_set_says_nothing_of_another() -> None:
    """Two sets in one task: at each text of the second it dies."""
    suspects = [Suspect("task 0", range(64), SET), Suspect("task 0", range(64, 80), OTHER)]
    assert fatal_texts(suspects, Mortal({3, *range(64, 80)}).die, []) == {suspects[0]: [3]}
    assert fatal_texts(suspects, Mortal({3, 70}).die, []) == {suspects[0]: [3], suspects[1]: [70]}


def test_texts_in_all_parts_of_a_task_are_found() -> None:
    """Where another task shows that the model works: one in each eighth."""
    suspects, fatal = _suspects([100, 80]), range(0, 80, 10)
    assert fatal_texts(suspects, Mortal((), fatal).die, [])[suspects[1]] == [*fatal]
    assert fatal_texts(suspects[1:], Mortal((), fatal).die, [SET]) == {suspects[1]: [*fatal]}


def test_the_only_text_of_a_task_is_found() -> None:
    suspects = _suspects([100, 1])
    assert fatal_texts(suspects, Mortal((), {0}).die, []) == {suspects[0]: [], suspects[1]: [0]}
    assert fatal_texts(suspects[1:], Mortal((), {0}).die, [SET]) == {suspects[1]: [0]}


def test_actors_that_died_of_something_else_blame_nothing() -> None:
    (suspect,) = _suspects([50])
    assert fatal_texts([suspect], Mortal(()).die, []) == {suspect: []}
    once = iter([True])
    assert fatal_texts([suspect], lambda parts: [next(once, False) for _ in parts], []) == {suspect: []}


def test_a_part_that_could_not_be_tried_shows_neither_life_nor_death() -> None:
    """The disk is full, say: a model that dies at all else is not taken to live."""
    (suspect,) = _suspects([80])
    mortal = Mortal(range(80))
    assert fatal_texts([suspect], lambda parts: [None, *mortal.die(parts)[1:]], []) == {}
    assert fatal_texts([suspect], lambda parts: [None for _ in parts], [SET]) == {}
