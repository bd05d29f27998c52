"""How alike the maps are that L-Cross Modulation fits on each concept's own prompts."""

from itertools import product

import numpy as np

from contrans_dist.evaluation.sides import Sides, lcross_maps
from contrans_dist.mapping.transplant import cosine
from contrans_dist.store.tables import SimilarityRow
from contrans_dist.vectors.from_activations import concept_rows


def map_similarity(
    sides: Sides, pair: tuple[int, int], seed: int = 0, limit: int | None = None
) -> list[SimilarityRow]:
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
