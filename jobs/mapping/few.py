"""A corpus thinned to few rows, what that leaves of its tokens, and a softer way to centre by token."""

from dataclasses import replace

import numpy as np

from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, split_of, token_groups
from mapping.world import Corpus

_SMALLEST = 5
"""Validation and test rows, at least."""


def thinned(corpus: Corpus, n_fit: int, seed: int) -> tuple[Corpus, np.ndarray]:
    """(corpus, its split) of at most `n_fit` fit rows and an eighth as many of each other part, all drawn."""
    split = split_of([f"{seed} {origin}" for origin in corpus.origins])
    draw = np.random.default_rng(seed)
    held = max(n_fit // 8, _SMALLEST)
    kept = np.sort(
        np.concatenate(
            [
                draw.permutation(np.flatnonzero(split == part))[:count]
                for part, count in ((FIT, n_fit), (VALIDATION, held), (TEST, held))
            ]
        )
    )
    few = replace(
        corpus,
        texts=[corpus.texts[row] for row in kept],
        origins=[corpus.origins[row] for row in kept],
        source={block: rows[kept] for block, rows in corpus.source.items()},
        target={block: rows[kept] for block, rows in corpus.target.items()},
        tokens=corpus.tokens[kept],
    )
    return few, split[kept]


def rare(corpus: Corpus, split: np.ndarray) -> tuple[float, float]:
    """Shares: of fit rows that are the only ones of their token, of validation rows whose token has none."""
    found, counts = np.unique(corpus.tokens[split == FIT], return_counts=True)
    unseen = ~np.isin(corpus.tokens[split == VALIDATION], found)
    return float((counts == 1).sum() / counts.sum()), float(unseen.mean())


def about_pulled(rows: np.ndarray, tokens: np.ndarray, parts: np.ndarray, pull: float) -> np.ndarray:
    """rows [n, d] about their tokens' means, each drawn to the mean m of all fit rows: float64 [n, d].

    Of n_t fit rows of a token, of mean m_t: (n_t m_t + pull m) / (n_t + pull). So a row that is alone of its
    token keeps a part of what it says, and one of a token without fit rows is about m.
    """
    values, fit = np.asarray(rows, dtype=np.float64), parts == FIT
    group, n_groups = token_groups(tokens, parts)
    overall = values[fit].mean(axis=0)
    sums, counts = np.zeros((n_groups + 1, values.shape[1])), np.zeros(n_groups + 1)
    grouped = fit & (group >= 0)
    np.add.at(sums, group[grouped], values[grouped])
    np.add.at(counts, group[grouped], 1.0)
    # The last row, which has no sums, is the mean of all: that of the rows in group -1.
    means = (sums + pull * overall) / (counts + pull)[:, None]
    return np.asarray(values - means[group])
