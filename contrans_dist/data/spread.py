"""A few of many, evenly spread."""

import numpy as np


def spread(n: int, most: int) -> list[int]:
    """Places, ascending, of at most so many of n things: evenly spread from the first to the last."""
    return [int(place) for place in np.linspace(0, n - 1, min(n, most)).round()]
