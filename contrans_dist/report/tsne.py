"""Pictures of harvested states: t-SNE of the states by concept, and of the differences of contrast pairs."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.from_activations import concept_rows, concepts_in

_MOST_ROWS = 200
"""States a concept: more hide one another."""
_PERPLEXITY = 30.0


def project(rows: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """t-SNE of rows `[n, d]` in the plane, float32 `[n, 2]`, begun with their principal components.

    ValueError for fewer than four rows.
    """
    from sklearn.manifold import TSNE  # takes a second to import, which only a recipe that draws should pay

    if len(rows) < 4:
        raise ValueError(f"{len(rows)} rows: t-SNE needs at least 4")
    model = TSNE(perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3), init="pca", random_state=seed)
    return np.asarray(model.fit_transform(rows.astype(np.float64)), np.float32)


def states_table(activations: ActivationSet, side: str, block: int, seed: int = 0) -> pa.Table:
    """The states of each concept's positive texts at a block: side, model, block, concept, x, y (Figs. 7, 8).

    Raises UserError for a block that was not harvested.
    """
    rows, labels = _checked(activations, block), []
    chosen: list[int] = []
    for concept in concepts_in(activations):
        positive, _ = concept_rows(activations, concept, seed)
        some = positive[:_MOST_ROWS].tolist()
        chosen += some
        labels += [concept] * len(some)
    return _table(activations, side, block, labels, project(rows[chosen], seed))


def differences_table(activations: ActivationSet, side: str, block: int, seed: int = 0) -> pa.Table:
    """Positive minus negative state of each contrast pair at a block, by concept (L-Cross, Fig. 3)."""
    rows, labels = _checked(activations, block), []
    found = []
    for concept in concepts_in(activations):
        positive, negative = concept_rows(activations, concept, seed, _MOST_ROWS)
        pairs = min(len(positive), len(negative))
        found.append(rows[positive[:pairs]] - rows[negative[:pairs]])
        labels += [concept] * pairs
    return _table(activations, side, block, labels, project(np.concatenate(found), seed))


def _checked(activations: ActivationSet, block: int) -> NDArray[np.float32]:
    if block not in activations.blocks:
        raise UserError(f"{activations.location}: block {block} was not harvested; {activations.blocks} were")
    return activations.read_block(block)


def _table(
    activations: ActivationSet, side: str, block: int, labels: list[str], points: NDArray[np.float32]
) -> pa.Table:
    n = len(labels)
    model = activations.manifest.identity.model
    return pa.table(
        {
            "side": [side] * n,
            "model": [model] * n,
            "block": pa.array([block] * n, pa.int64()),
            "concept": labels,
            "x": points[:, 0],
            "y": points[:, 1],
        }
    )
