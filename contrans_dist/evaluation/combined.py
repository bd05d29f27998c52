"""Vectors made of transplanted ones: a mean over sources, and sums over concepts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.linalg

from contrans_dist.evaluation.sides import Vectors
from contrans_dist.evaluation.transfers import Material, carried
from contrans_dist.vectors.concept_vector import ConceptVector


def averaged(material: Material, name: str) -> Vectors:
    """Each concept's mean over the source and every further source that has a map of its own."""
    through = [name for name, source in material.further.items() if source.corpus is not None]
    return mean_of([carried(material, name), *map(material.from_source, through)])


def summed(material: Material, name: str) -> Vectors:
    """All concepts' vectors added, the same for every concept."""
    return sum_of(carried(material, name), name)


def orthogonal(material: Material, name: str) -> Vectors:
    """The same after they were made orthogonal to each other."""
    main = carried(material, name)
    return sum_of(dict(zip(main, orthogonalised(list(main.values())), strict=True)), name)


def mean_of(families: Sequence[Vectors]) -> Vectors:
    """The mean of several vectors of each concept."""
    return {
        concept: _joined([family[concept] for family in families], 1 / len(families), "mean over sources")
        for concept in families[0]
    }


def sum_of(main: Vectors, name: str = "sum") -> Vectors:
    """The sum over all concepts, under each concept."""
    total = _joined(list(main.values()), 1.0, f"{name} of {', '.join(main)}")
    return {concept: replace(total, concept=concept) for concept in main}


def orthogonalised(vectors: Sequence[ConceptVector]) -> list[ConceptVector]:
    """The vectors made orthogonal at each block they carry, each as near to itself as can be.

    Löwdin's symmetric way, the polar factor of the unit rows: no vector goes first. Lengths are kept.
    """
    values = np.stack([vector.values.astype(np.float64) for vector in vectors])  # [concepts, blocks, d]
    made = np.zeros_like(values)
    for block in vectors[0].blocks:
        rows = values[:, block]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        made[:, block] = lengths * scipy.linalg.polar(rows / lengths)[0]
    return [
        replace(vector, values=rows.astype(np.float32), shuffled_map=None)
        for vector, rows in zip(vectors, made, strict=True)
    ]


def _joined(vectors: Sequence[ConceptVector], scale: float, step: str) -> ConceptVector:
    first = vectors[0]
    total = np.stack([vector.values for vector in vectors]).sum(axis=0, dtype=np.float64)
    return replace(
        first,
        values=np.asarray(scale * total, np.float32),
        shuffled_map=None,
        text_hashes=np.unique(np.concatenate([vector.text_hashes for vector in vectors])),
        map_text_hashes=np.unique(np.concatenate([vector.map_text_hashes for vector in vectors])),
        map_texts_known=all(vector.map_texts_known for vector in vectors),
        steps=(*first.steps, step),
    )
