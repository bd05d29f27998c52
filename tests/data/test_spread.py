"""A few of many."""

import pytest

from contrans_dist.data.spread import spread


@pytest.mark.parametrize(
    ("n", "most", "places"),
    [(10, 4, [0, 3, 6, 9]), (5, 9, [0, 1, 2, 3, 4]), (3, 1, [0]), (0, 4, []), (7, 0, []), (100, 2, [0, 99])],
)
def test_places_are_evenly_spread(n: int, most: int, places: list[int]) -> None:
    assert spread(n, most) == places
