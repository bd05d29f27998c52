"""The texts at which a process dies, found by dying."""

import math
from collections.abc import Collection, Sequence

import numpy as np
import pytest

from contrans_dist.harvest.fatal import Part, Suspect, fatal_texts
from contrans_dist.store.location import Location

SET, OTHER = Location.parse("/set"), Location.parse("/other")


def _tasks(sizes: Sequence[int]) -> list[Suspect]:
    return [Suspect(f"task {number}", size, frozenset([SET])) for number, size in enumerate(sizes)]


class Mortal:
    """An actor that dies at some texts of each task, which are told by their places."""

    def __init__(self, *fatal: Collection[int]) -> None:
        self.fatal = {f"task {number}": set(places) for number, places in enumerate(fatal)}
        self.deaths = 0

    def die(self, parts: Sequence[Part]) -> list[bool]:
        died = [not self.fatal[suspect.name].isdisjoint(places) for suspect, places in parts]
        self.deaths += sum(died)
        return died


@pytest.mark.parametrize("seed", range(20))
def test_the_texts_that_kill_are_found_and_no_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = _tasks(rng.integers(9, 3000, 4).tolist())
    fatal = [
        sorted(rng.choice(task.texts, int(rng.integers(1, 4)), replace=False).tolist()) for task in tasks
    ]
    mortal = Mortal(*fatal)
    found = fatal_texts(tasks, mortal.die, [])
    assert {name: sorted(places) for name, places in found.items()} == {
        task.name: places for task, places in zip(tasks, fatal, strict=True)
    }
    most = math.ceil(math.log(max(task.texts for task in tasks), 8))
    assert mortal.deaths <= sum(map(len, fatal)) * most


def test_a_task_that_dies_whatever_is_run_is_not_blamed_on_its_texts() -> None:
    tasks, mortal = _tasks([128, 40]), Mortal(range(128), {17})
    assert fatal_texts(tasks, mortal.die, [SET]) == {tasks[1].name: [17]}
    # Eight parts of the first, and eight of each; of the second one in each of two rounds.
    assert mortal.deaths == 8 + 64 + 2


def test_where_nothing_lives_no_more_than_one_task_is_tried() -> None:
    mortal = Mortal(range(40), range(128), range(1))
    assert fatal_texts(_tasks([40, 128, 1]), mortal.die, []) == {}
    assert mortal.deaths == 8


def test_a_task_for_two_sets_shows_that_the_model_lives_in_both() -> None:
    """It is the largest for each, and is searched but once; no task of the other is tried before it."""
    tasks = [
        Suspect("task 0", 16, frozenset([SET])),
        Suspect("task 1", 64, frozenset([SET, OTHER])),
        Suspect("task 2", 1, frozenset([OTHER])),
    ]
    mortal = Mortal({3}, {60}, {0})
    assert fatal_texts(tasks, mortal.die, []) == {"task 0": [3], "task 1": [60], "task 2": [0]}
    assert mortal.deaths == 2 + 2 + 1


def test_texts_in_all_parts_of_a_task_are_found() -> None:
    """Where another task shows that the model works: one in each eighth."""
    tasks, fatal = _tasks([100, 80]), range(0, 80, 10)
    assert fatal_texts(tasks, Mortal((), fatal).die, [])[tasks[1].name] == [*fatal]
    assert fatal_texts(tasks[1:], Mortal((), fatal).die, [SET]) == {tasks[1].name: [*fatal]}


def test_the_only_text_of_a_task_is_found() -> None:
    tasks = _tasks([100, 1])
    assert fatal_texts(tasks, Mortal((), {0}).die, []) == {tasks[0].name: [], tasks[1].name: [0]}
    assert fatal_texts(tasks[1:], Mortal((), {0}).die, [SET]) == {tasks[1].name: [0]}


def test_actors_that_died_of_something_else_blame_nothing() -> None:
    tasks = _tasks([50])
    lives: dict[str, list[int]] = {tasks[0].name: []}
    assert fatal_texts(tasks, Mortal(()).die, []) == lives
    once = iter([True])
    assert fatal_texts(tasks, lambda parts: [next(once, False) for _ in parts], []) == lives
