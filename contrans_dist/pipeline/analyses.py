"""Analyses of a run, beside its evaluations: t-SNE of the states by concept and of the differences of
contrast pairs, and how alike the maps are that L-Cross Modulation fits on each concept's own prompts."""

from collections.abc import Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray

from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.evaluation.sides import Sides, lcross_maps
from contrans_dist.evaluation.transfers import Material
from contrans_dist.mapping.transplant import cosine
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.tables import SIMILARITIES, PointRow, SimilarityRow, table_of, write_table
from contrans_dist.vectors.from_activations import concept_rows, concepts_in, whole_pairs

_MOST_ROWS = 200
"""States a concept: more hide one another."""
_PERPLEXITY = 30.0


def write_analyses(material: Material, contrast: Mapping[str, ActivationSet], folder: Location) -> None:
    """The files of the analyses that a run's recipe asks for; what cannot be drawn is told.

    Args:
        material: What the run has made.
        contrast: The states of the contrast texts, by side.
        folder: Where the files go.
    """
    wanted, seed = material.recipe.analyses, material.recipe.concepts.seed
    blocks = {"target": material.block}
    if material.fitted is not None:
        pair = material.maps.only_pair()
        blocks["source"], _ = pair
    for side, states in contrast.items():
        for kind, points_of in (("states", state_points), ("differences", difference_points)):
            if kind not in wanted:
                continue
            file = folder / f"{kind}-{side}.parquet"
            try:
                points = points_of(states, side, blocks[side], seed)
            except ValueError as error:  # too few texts; the evaluations must not be lost with it
                note(f"analysis {kind} of the {side} is left out: {error}")
                file.delete()
            else:
                write_table(file, table_of(points, PointRow))
    if "map-similarity" in wanted:
        similar = map_similarity(material.sides, pair, seed, material.recipe.concepts.limit)
        write_table(folder / SIMILARITIES, table_of(similar, SimilarityRow))


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


def map_similarity(sides: Sides, pair: tuple[int, int], seed: int, limit: int | None) -> list[SimilarityRow]:
    """For each two concepts, the cosine between the maps fitted on their prompts.

    The cosine of two maps is that of their weights as one long vector, <F, G> / (|F| |G|).

    Args:
        sides: The activation sets; only those of the contrast texts are read.
        pair: Source block and target block that the maps join.
        seed: Of the draw where `limit` leaves some prompts out.
        limit: Prompts of each concept and label at most.
    """
    maps = {}
    for concept in sides.concepts:
        rows = np.sort(np.concatenate(concept_rows(sides.contrast_source, concept, seed, limit)))
        maps[concept] = lcross_maps(sides, pair, rows, shuffled=False).maps[pair].weight.ravel()
    return [SimilarityRow(a, b, cosine(maps[a], maps[b])) for a, b in product(maps, repeat=2)]


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
