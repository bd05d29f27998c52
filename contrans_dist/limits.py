"""Sizes beyond which a file is taken for a mistake or an attack.

Files from strangers are opened every day: each limit is far above what is honestly made, and checked while
reading. `contrans --limits 10` (or CONTRANS_LIMITS=10) raises all of them tenfold.
"""

import os

from contrans_dist.errors import UserError

VARIABLE = "CONTRANS_LIMITS"

JSON_BYTES = 32 << 20
"""Of metrics, a header."""

MANIFEST_BYTES = 16 << 20
SHARDS = 50_000
"""Of one activation set."""
BLOCKS = 1_000
WIDTH = 1 << 20
"""Of a model: its blocks, and the numbers in one row of its residual stream."""
FOOTER_BYTES = 8 << 20
CHUNKS = 65_536
"""Of a shard: its footer, and columns times row groups, of which a footer tells."""
EXPANDING = 50
SMALL_BYTES = 64 << 20
"""A shard may unfold to so many times its size, and to so many bytes in any case."""


def raised(most: int) -> int:
    """A limit as it holds in this process."""
    try:
        factor = float(os.environ.get(VARIABLE, "1"))
    except ValueError as error:
        raise UserError(f"{VARIABLE}: expected a number such as 10") from error
    return int(most * max(factor, 1.0))


def check_size(what: str, size: int, most: int, unit: str = "bytes") -> None:
    """Raise UserError when `size` is more than the limit `most`; `what` names file and field."""
    if size > raised(most):
        more = "`contrans --limits 10 ...` allows more"
        raise UserError(f"{what}: {size:,} {unit}, expected at most {raised(most):,}; {more}")
