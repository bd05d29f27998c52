"""How alike the maps are that L-Cross Modulation fits on each concept's own prompts."""

from itertools import product

import numpy as np
import pyarrow as pa

from contrans_dist.evaluation.sides import Sides, lcross_maps
from contrans_dist.mapping.transplant import cosine
from contrans_dist.vectors.from_activations import concept_rows


def map_similarity(sides: Sides, pair: tuple[int, int], seed: int = 0, limit: int | None = None) -> pa.Table:
    """For each two concepts, the cosine between the maps fitted on their prompts: a, b, similarity.

    The cosine of two maps is that of their weights as one long vector, <F, G> / (|F| |G|).
    """
    maps = {}
    for concept in sides.concepts:
        rows = np.sort(np.concatenate(concept_rows(sides.contrast_source, concept, seed, limit)))
        maps[concept] = lcross_maps(sides, pair, rows, shuffled=False).maps[pair].weight.ravel()
    return pa.Table.from_pylist(
        [{"a": a, "b": b, "similarity": cosine(maps[a], maps[b])} for a, b in product(maps, repeat=2)]
    )
