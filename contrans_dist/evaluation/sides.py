"""The two models of a run as far as they are harvested, and their concept vectors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config.map_options import MapOptions
from contrans_dist.mapping.map_set import MapSet, Pair
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.addresses import file_names
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.from_activations import concept_rows, concepts_in, refine

Vectors = dict[str, ConceptVector]
"""concept -> vector"""


@dataclass(frozen=True)
class Sides:
    """The four activation sets of a run."""

    corpus_source: ActivationSet
    corpus_target: ActivationSet
    contrast_source: ActivationSet
    contrast_target: ActivationSet

    @property
    def concepts(self) -> list[str]:
        return concepts_in(self.contrast_source)

    @property
    def contrast(self) -> dict[str, ActivationSet]:
        """The states of the contrast texts, by side."""
        return {"source": self.contrast_source, "target": self.contrast_target}


def lcross_maps(sides: Sides, pair: Pair, rows: NDArray[np.int64], shuffled: bool = True) -> MapSet:
    """The map of one pair of blocks as L-Cross Modulation fits it, on these rows of the contrast sets."""
    from contrans_dist.mapping.driver import fit  # Ray waits until something is fitted

    return fit(
        sides.contrast_source,
        sides.contrast_target,
        f"{pair[0]}:{pair[1]}",
        MapOptions("lcross"),
        rows=rows,
        shuffled=shuffled,
        quiet=True,
    )


def refine_sides(
    contrast: Mapping[str, ActivationSet],
    out: Location,
    method: str = "mean",
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Vectors]:
    """The concept vectors of each model, saved under `out`.

    Args:
        contrast: The states of the contrast texts, by side: `source` and `target`, or `target` alone.
        out: For `vectors/source` and `vectors/target`.
        method: `mean` or `pca`.
        seed: Of the draw of rows, where a concept stands against others.
        limit: Rows of each side of a concept at most.

    Returns:
        Side -> concept -> vector.

    Raises:
        UserError: For a concept without rows of both kinds.
    """
    vectors: dict[str, Vectors] = {}
    for side, rows in contrast.items():
        vectors[side] = refined(rows, concepts_in(rows), method, seed, limit)
        save_vectors(vectors[side], out, side)
    return vectors


def refined(
    contrast: ActivationSet, concepts: Iterable[str], method: str, seed: int, limit: int | None
) -> Vectors:
    """These concepts' vectors in one model; the arguments are those of `refine_sides`."""
    rows = {concept: concept_rows(contrast, concept, seed, limit) for concept in concepts}
    return {concept: refine(contrast, *sides, concept, method) for concept, sides in rows.items()}


def save_vectors(vectors: Vectors, out: Location, name: str) -> None:
    """Save as `vectors/<name>/<concept>.safetensors` under `out`."""
    files = file_names(vectors)
    for concept, vector in vectors.items():
        vector.save(out / "vectors" / name / f"{files[concept]}.safetensors")
