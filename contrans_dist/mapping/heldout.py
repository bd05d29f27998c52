"""Which rows fit a map, which choose its ridge, which judge it; the order of a control's rows."""

import hashlib
from collections.abc import Sequence

import numpy as np

PARTS = FIT, VALIDATION, TEST = "fit", "validation", "test"


def split_of(text_ids: Sequence[str]) -> np.ndarray:
    """The part of a fit that each text belongs to, 80 : 10 : 10, by a hash of its id alone: identical texts
    fall on the same side, in every set and on every machine.

    Args:
        text_ids: [n], or any other text that tells them apart.

    Returns:
        "fit", "validation" or "test" for each: array of str [n].
    """
    parts = []
    for text_id in text_ids:
        # A hash of its own, so that ids which are themselves hashes, or running numbers, are spread evenly.
        digest = hashlib.blake2b(b"contrans split " + str(text_id).encode(), digest_size=8).digest()
        bucket = int.from_bytes(digest, "big") % 10
        parts.append(VALIDATION if bucket == 8 else TEST if bucket == 9 else FIT)
    return np.array(parts, dtype="<U10")


def default_split(n: int) -> np.ndarray:
    """A 80 : 10 : 10 split of n >= 10 rows in a fixed random order, for rows without text ids: str [n]."""
    if n < 10:
        raise ValueError(f"{n} rows: at least 10 are needed to hold some out")
    parts = np.full(n, FIT, dtype="<U10")
    order = np.random.default_rng(0).permutation(n)
    tenth = n // 10
    parts[order[:tenth]] = VALIDATION
    parts[order[tenth : 2 * tenth]] = TEST
    return parts


def paper_split(n: int) -> np.ndarray:
    """ConTrans' split, in input order: the first 80 % "fit", then 10 % "validation" and 10 % "test": str
    [n].
    """
    parts = np.full(n, FIT, dtype="<U10")
    parts[n * 8 // 10 : n * 9 // 10] = VALIDATION
    parts[n * 9 // 10 :] = TEST
    return parts


def parts_of(n: int, protocol: str, split: np.ndarray | None) -> np.ndarray:
    """The part of each of n rows, str [n]. ValueError for a split that does not fit the protocol, and where
    no row is left to fit on."""
    if protocol != "default":
        if split is not None:
            raise ValueError(f"protocol {protocol!r} takes the rows in input order: it has no split")
        parts = paper_split(n) if protocol == "paper" else np.full(n, FIT)
    else:
        parts = default_split(n) if split is None else np.asarray(split)
    if parts.shape != (n,):
        raise ValueError(f"the split has shape {list(parts.shape)}, expected one part for each of {n} rows")
    if not (parts == FIT).any():
        raise ValueError("the split leaves no rows to fit on")
    return parts


def shuffle_order(fit: np.ndarray, seed: int = 0) -> np.ndarray:
    """A row order, int64 [n], in which every row marked in `fit` (bool [n]) gives way to another of them.

    `source[shuffle_order(...)]` against an unchanged target is the shuffled-map control; other rows stay.
    """
    order = np.arange(len(fit), dtype=np.int64)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(fit))
    order[drawn] = np.roll(drawn, 1)
    return order
