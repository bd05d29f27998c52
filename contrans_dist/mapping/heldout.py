"""Which rows fit a map, which choose its ridge, which judge it; their token groups; a control's order."""

import hashlib
from collections.abc import Sequence

import numpy as np

FIT, VALIDATION, TEST = "fit", "validation", "test"
MOST_TOKENS = 1024
_MOST_LOST = 0.25
"""Of the rows of a part: beyond, a map about tokens' means says how many it does without."""


def split_of(text_ids: Sequence[str]) -> np.ndarray:
    """ "fit", "validation" or "test" for every text, 80 : 10 : 10, by a hash of its id: array of str [n].

    Depends on the id alone: identical texts fall on the same side, in every set and on every machine.
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


def shuffle_order(fit: np.ndarray, seed: int = 0) -> np.ndarray:
    """A row order, int64 [n], in which every row marked in `fit` (bool [n]) gives way to another of them.

    `source[shuffle_order(...)]` against an unchanged target is the shuffled-map control; other rows stay.
    """
    order = np.arange(len(fit), dtype=np.int64)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(fit))
    order[drawn] = np.roll(drawn, 1)
    return order


def token_groups(tokens: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, int]:
    """(group of every row int32 [n], number of groups): one for each token that fit rows were taken from.

    The `MOST_TOKENS` commonest have groups, so that their sums fit into memory whatever the vocabulary; rows
    of the others, which are few, are in group -1.
    """
    found, row, counts = np.unique(tokens[parts == FIT], return_index=True, return_counts=True)
    kept = np.lexsort((row, -counts))[:MOST_TOKENS]
    place = {token: index for index, token in enumerate(found[kept].tolist())}
    return np.array([place.get(token, -1) for token in tokens.tolist()], dtype=np.int32), len(place)


def about_tokens(rows: np.ndarray, tokens: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """rows [n, d] about the mean of the fit rows that were taken from the same token: float64 [n, d].

    tokens: a label for every row, [n]. Rows without a group of `token_groups` are NaN: there is nothing to
    measure them by.
    """
    values = np.asarray(rows, dtype=np.float64)
    group, n_groups = token_groups(np.asarray(tokens), parts)
    fit = (parts == FIT) & (group >= 0)
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, group[fit], values[fit])
    means = sums / np.bincount(group[fit], minlength=n_groups)[:, None]
    return np.where((group >= 0)[:, None], values - means[group], np.nan)


def effective_rows(tokens: np.ndarray, parts: np.ndarray) -> tuple[int, list[str]]:
    """(fit rows that count about their tokens' means, warnings, one line each).

    A row that is the only fit row of its token is its token's mean: about it, it is zero and says nothing.
    Rows of tokens without a group (`token_groups`) are left out of every part. tokens: a label for every row,
    [n]. ValueError where no fit row counts.
    """
    group, n_groups = token_groups(np.asarray(tokens), parts)
    counts = np.bincount(group[(parts == FIT) & (group >= 0)], minlength=n_groups)
    effective, n_fit = int(counts[counts > 1].sum()), int((parts == FIT).sum())
    if effective == 0:
        raise ValueError("centre 'token': no two fit rows are of the same token; expected centre true here")
    warnings = []
    if n_fit - effective > _MOST_LOST * n_fit:
        warnings.append(
            f"centre 'token': {effective:,} of {n_fit:,} fit rows count; the others are the only ones of "
            f"their token, or of none of the {MOST_TOKENS:,} commonest"
        )
    n_held, unseen = int((parts == VALIDATION).sum()), int(((parts == VALIDATION) & (group < 0)).sum())
    if unseen > _MOST_LOST * n_held:
        warnings.append(
            f"centre 'token': {unseen:,} of {n_held:,} validation rows are left out: no fit row is of "
            f"their token, or it is none of the {MOST_TOKENS:,} commonest"
        )
    return effective, warnings
