"""A corpus thinned to few rows, and what that leaves of its tokens."""

from dataclasses import replace

import numpy as np

from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, split_of
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
    labels, counts = np.unique(corpus.tokens[split == FIT], return_counts=True)
    unseen = ~np.isin(corpus.tokens[split == VALIDATION], labels)
    return float((counts == 1).sum() / counts.sum()), float(unseen.mean())
