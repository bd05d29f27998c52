"""Which of a model's decoder blocks a user means, and which lie at the same depth in another model."""

import math
import re

from contrans_dist.errors import UserError


def matched_depth(n_blocks: int, fraction: float = 0.75) -> int:
    """The block, from 0, at a share of a model's depth: 24 of 32, 30 of 40, 60 of 80 at 0.75, as in the
    papers' code."""
    return min(max(round(fraction * n_blocks), 0), n_blocks - 1)


def upper_blocks(n_blocks: int, share: float) -> range:
    """The blocks, from 0, of the upper part of a model: the share of them, rounded up."""
    return range(n_blocks - math.ceil(share * n_blocks - 1e-9), n_blocks)


def _resolve_part(part: str, n_blocks: int) -> list[int]:
    """Blocks of one part of a specification; ValueError where it means nothing or lies outside."""
    if re.fullmatch(r"\d*\.\d*", part):
        fraction = float(part)
        if not 0 <= fraction <= 1:
            raise ValueError
        return [matched_depth(n_blocks, fraction)]
    if ":" in part:
        start, stop = (
            int(end) if end else default for end, default in zip(part.split(":"), (0, n_blocks), strict=True)
        )
        start, stop = (end + n_blocks if end < 0 else end for end in (start, stop))
        if not 0 <= start < stop <= n_blocks:
            raise ValueError
        return list(range(start, stop))
    block = int(part)
    if not -n_blocks <= block < n_blocks:
        raise ValueError
    return [block % n_blocks]


def resolve_blocks(spec: str | float, n_blocks: int, flag: str = "--blocks") -> list[int]:
    """The block numbers, from 0, that a specification means, sorted and each once.

    Args:
        spec: `all`; a block `24` (`-1` is the last); a range `8:16`, half-open as in Python: 8 to 15; a share
            of the depth `0.75`; or several of them, `3,5,8:16`.
        n_blocks: Blocks of the model.
        flag: What messages call the specification.

    Raises:
        UserError: For anything else, naming the valid blocks.
    """
    text = str(spec).strip()
    if text == "all":
        return list(range(n_blocks))
    try:
        return sorted({b for part in text.split(",") for b in _resolve_part(part.strip(), n_blocks)})
    except ValueError:
        raise UserError(
            f"{flag} {text}: expected all, a block, a range such as 0:{n_blocks} (end not included), a list"
            f" such as 0,{n_blocks - 1}, or a share of the depth such as 0.75;"
            f" this model has blocks 0 to {n_blocks - 1}"
        ) from None
