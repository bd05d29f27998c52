"""Rows about the mean of the rows that were taken from the same token (`centre: token`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contrans_dist.mapping.heldout import FIT, VALIDATION

MOST_TOKENS = 1024
_MOST_LOST = 0.25
"""Of the rows of a part: beyond, a map about tokens' means says how many it does without."""


def token_groups(tokens: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, int]:
    """(group of every row int32 [n], number of groups): one for each token that fit rows were taken from.

    The `MOST_TOKENS` commonest have groups, so that their sums fit into memory whatever the vocabulary; rows
    of the others, which are few, are in group -1 and belong to no part of a fit about tokens' means.
    """
    labels, first, counts = np.unique(tokens[parts == FIT], return_index=True, return_counts=True)
    kept = np.lexsort((first, -counts))[:MOST_TOKENS]
    place = {token: index for index, token in enumerate(labels[kept].tolist())}
    return np.array([place.get(token, -1) for token in tokens.tolist()], dtype=np.int32), len(place)


class TokenSums:
    """Sums over one model's fit rows by token group: counts [g + 1], sums [g + 1, d]; last, of group -1."""

    def __init__(self, n_groups: int, d: int) -> None:
        self.counts, self.sums = np.zeros(n_groups + 1), np.zeros((n_groups + 1, d))

    @classmethod
    def of(cls, rows: np.ndarray, group: np.ndarray, n_groups: int, fit: np.ndarray) -> "TokenSums":
        """Of rows [n, d], of these groups int [n]; only those marked in `fit`, bool [n], are summed."""
        sums = cls(n_groups, rows.shape[1])
        sums.add(rows, group, fit)
        return sums

    @classmethod
    def side_by_side(cls, blocks: "Sequence[TokenSums]") -> "TokenSums":
        """Of rows that are several blocks' rows side by side."""
        sums = cls(0, 0)
        sums.counts, sums.sums = blocks[0].counts, np.concatenate([block.sums for block in blocks], axis=1)
        return sums

    def add(self, rows: np.ndarray, group: np.ndarray, fit: np.ndarray) -> None:
        """Add rows; arguments as of `of`."""
        np.add.at(self.counts, group[fit], 1.0)
        np.add.at(self.sums, group[fit], rows[fit])

    def merge(self, other: "TokenSums") -> "TokenSums":
        """The sums of both."""
        both = TokenSums(*self.sums.shape)
        both.counts, both.sums = self.counts + other.counts, self.sums + other.sums
        return both

    def overall(self) -> np.ndarray:
        """The mean of all fit rows, [d]."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum())

    def about(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Rows [n, d] of these groups about the groups' means: float64 [n, d]."""
        means = self.sums / np.maximum(self.counts, 1.0)[:, None]
        return np.asarray(rows - means[group])


@dataclass(frozen=True)
class TokenCentre:
    """What a map says of rows that were about their tokens' means.

    mean_x [d_s], mean_y [d_t]: of all fit rows as they were; the bias takes one to the other. n_effective:
    fit rows that count; warnings: of the others (`effective_rows`).
    """

    mean_x: np.ndarray
    mean_y: np.ndarray
    n_effective: int
    warnings: list[str]


def effective_rows(group: np.ndarray, parts: np.ndarray) -> tuple[int, list[str]]:
    """(fit rows that count about their tokens' means, warnings, one line each).

    A row that is the only fit row of its token is its token's mean: about it, it is zero and says nothing.
    Rows without a group (`token_groups`) are left out of every part. ValueError where no fit row counts.
    """
    counts = np.bincount(group[(parts == FIT) & (group >= 0)])
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
