"""The texts at which a process dies, found by dying."""

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from contrans_dist.config import CaptureSettings
from contrans_dist.harvest.fatal import Part, fatal_rows
from contrans_dist.harvest.shards import HarvestSpec, Shard
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location


def _shards(folder: Path, sizes: Sequence[int]) -> list[Shard]:
    nobody = cast(Identity, None)  # of shards that nobody makes
    spec = HarvestSpec(nobody, CaptureSettings(), 4, Location.parse(folder))
    starts = accumulate(sizes, initial=0)
    return [
        Shard(spec, index, start, size)
        for index, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]


class Mortal:
    """An actor that dies at some rows."""

    def __init__(self, fatal: set[int]) -> None:
        self.fatal, self.deaths = fatal, 0

    def die(self, parts: Sequence[Part]) -> list[bool]:
        died = [not self.fatal.isdisjoint(rows) for _, rows in parts]
        self.deaths += sum(died)
        return died


@pytest.mark.parametrize("seed", range(20))
def test_the_texts_that_kill_are_found_and_no_others(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(9, 3000, 4).tolist()
    shards = _shards(tmp_path, sizes)
    fatal = {
        int(shard.start + row)
        for shard in shards
        for row in rng.choice(shard.rows, int(rng.integers(1, 4)), replace=False)
    }
    mortal = Mortal(fatal)
    found = fatal_rows(shards, mortal.die)
    assert set(found) == {shard.address for shard in shards}
    assert sorted(row for rows in found.values() for row in rows) == sorted(fatal)
    for shard in shards:
        assert set(found[shard.address]) <= set(range(shard.start, shard.start + shard.rows))
    assert mortal.deaths <= len(fatal) * math.ceil(math.log(max(sizes), 8))


def test_a_shard_that_dies_whatever_is_run_is_not_blamed_on_its_texts(tmp_path: Path) -> None:
    shards = _shards(tmp_path, [128, 40])
    mortal = Mortal({*range(128), 145})
    assert fatal_rows(shards, mortal.die, [Location.parse(tmp_path)]) == {shards[1].address: [145]}
    # Eight parts of the first, and eight of each; of the second one in each of two rounds.
    assert mortal.deaths == 8 + 64 + 2


def test_where_nothing_lives_no_more_than_one_shard_is_tried(tmp_path: Path) -> None:
    shards = _shards(tmp_path, [40, 128, 1])
    mortal = Mortal(set(range(169)))
    assert fatal_rows(shards, mortal.die) == {}
    assert mortal.deaths == 8


def test_texts_in_all_parts_of_a_shard_are_found(tmp_path: Path) -> None:
    """Where another shard shows that the model works: one in each eighth."""
    shards, fatal = _shards(tmp_path, [100, 80]), [*range(100, 180, 10)]
    assert fatal_rows(shards, Mortal(set(fatal)).die)[shards[1].address] == fatal
    there = [Location.parse(tmp_path)]
    assert fatal_rows(shards[1:], Mortal(set(fatal)).die, there) == {shards[1].address: fatal}


def test_the_only_text_of_a_shard_is_found(tmp_path: Path) -> None:
    shards = _shards(tmp_path, [100, 1])
    assert fatal_rows(shards, Mortal({100}).die) == {shards[0].address: [], shards[1].address: [100]}
    there = [Location.parse(tmp_path)]
    assert fatal_rows(shards[1:], Mortal({100}).die, there) == {shards[1].address: [100]}


def test_actors_that_died_of_something_else_blame_nothing(tmp_path: Path) -> None:
    shards = _shards(tmp_path, [50])
    lives: dict[str, list[int]] = {shards[0].address: []}
    assert fatal_rows(shards, Mortal(set()).die) == lives
    once = iter([True])
    assert fatal_rows(shards, lambda parts: [next(once, False) for _ in parts]) == lives
