"""Pictures of harvested states: t-SNE of the states by concept, and of the differences of contrast pairs."""

import numpy as np
from numpy.typing import NDArray

from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.tables import PointRow
from contrans_dist.vectors.from_activations import concept_rows, concepts_in, whole_pairs

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


def state_points(activations: ActivationSet, side: str, block: int, seed: int = 0) -> list[PointRow]:
    """The states of each concept's positive texts at a block, by t-SNE (ConTrans, Figs. 7 and 8).

    Args:
        activations: Of the contrast texts.
        side: `source` or `target`, as the rows say it.
        block: Of the model, from 0.
        seed: Of the draw of texts, and of the t-SNE.

    Raises:
        UserError: For a block that was not harvested.
    """
    states, rows, labels = _states(activations, block), [], []
    for concept in concepts_in(activations):
        positive, _ = concept_rows(activations, concept, seed)
        rows.append(states[positive[:_MOST_ROWS]])
        labels += [concept] * len(rows[-1])
    return _points(activations, side, block, labels, np.concatenate(rows), seed)


def difference_points(activations: ActivationSet, side: str, block: int, seed: int = 0) -> list[PointRow]:
    """Positive minus negative state of each contrast pair at a block, by t-SNE (L-Cross, Fig. 3).

    Arguments and errors as of `state_points`.
    """
    states, differences, labels = _states(activations, block), [], []
    for concept in concepts_in(activations):
        positive, negative = concept_rows(activations, concept, seed)
        if "pair_id" in activations.columns:
            positive, negative = whole_pairs(activations.read_columns(["pair_id"]), positive, negative)
        pairs = min(len(positive), len(negative), _MOST_ROWS)
        differences.append(states[positive[:pairs]] - states[negative[:pairs]])
        labels += [concept] * pairs
    return _points(activations, side, block, labels, np.concatenate(differences), seed)


def _states(activations: ActivationSet, block: int) -> NDArray[np.float32]:
    if block not in activations.blocks:
        raise UserError(f"{activations.location}: block {block} was not harvested; {activations.blocks} were")
    return activations.read_block(block)


def _points(
    activations: ActivationSet, side: str, block: int, labels: list[str], rows: NDArray[np.float32], seed: int
) -> list[PointRow]:
    model = activations.manifest.identity.model
    return [
        PointRow(model, block, concept, x, y, side)
        for concept, (x, y) in zip(labels, project(rows, seed).tolist(), strict=True)
    ]
