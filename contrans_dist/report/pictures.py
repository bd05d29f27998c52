"""The target's states before and after steering, in the plane of Fig. 2b of ConTrans: the points of it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contrans_dist.data.spread import spread
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector

_MOST_ROWS = 60
"""Rows a concept in the picture: more hide one another and swell the page."""


def read_vectors(folder: Location, block: int) -> dict[str, ConceptVector]:
    """Vectors of a condition's folder, by concept; those that carry nothing at the block are left out."""
    files = [folder / name for name in folder.names() if name.endswith(".safetensors")]
    vectors = map(ConceptVector.load, files)
    return {vector.concept: vector for vector in vectors if block in vector.blocks}


@dataclass(frozen=True)
class Picture:
    """States in the plane of their two main directions, before and after adding strength * vector."""

    concept: str
    block: int
    strength: float
    labels: list[str]
    """Concept of each state."""
    before: NDArray[np.float64]
    """`[n, 2]`"""
    after: NDArray[np.float64]
    """`[n, 2]`"""
    explained: tuple[float, float]
    """Share of the variance along each direction."""
    near_before: float
    """Share of the other concepts' states that lie nearest to this concept's centre, in full width."""
    near_after: float

    def centres(self, after: bool = False) -> dict[str, NDArray[np.float64]]:
        """Mean position `[2]` of each concept's states."""
        points, labels = (self.after if after else self.before), np.array(self.labels)
        return {label: points[labels == label].mean(axis=0) for label in dict.fromkeys(self.labels)}


def concept_states(states: ActivationSet, block: int) -> tuple[NDArray[np.float32], list[str]] | None:
    """Activations at a block with their concepts, `[n, d]` and `[n]`: up to 60 rows a concept, spread evenly.

    Negative texts are left out where a `label` column tells them apart: they show no concept of their own.
    Returns None when the set has no `concept` column, fewer than two concepts, or not this block.
    """
    if "concept" not in states.columns or block not in states.blocks:
        return None
    wanted = ["concept"] + ["label"] * ("label" in states.columns)
    columns = states.read_columns(wanted).to_pydict()
    concepts = columns["concept"]
    kinds = columns.get("label") or [None] * len(concepts)
    positive_only = {"positive", "negative"} <= set(kinds)
    by_concept: dict[str, list[int]] = {}
    for row, (concept, kind) in enumerate(zip(concepts, kinds, strict=True)):
        if concept is not None and not (positive_only and kind != "positive"):
            by_concept.setdefault(str(concept), []).append(row)
    if len(by_concept) < 2:
        return None
    rows: list[int] = []
    for members in by_concept.values():
        rows += [members[index] for index in spread(len(members), _MOST_ROWS)]
    rows.sort()
    return states.read_block(block)[rows], [str(concepts[row]) for row in rows]


def picture(
    states: NDArray[np.float32], labels: list[str], vector: ConceptVector, block: int, strength: float
) -> Picture:
    """Project states `[n, d]` before and after steering on the two main directions of both together.

    Principal components by SVD of the centred `[2n, d]` matrix in float64; signs so that steering is right.
    """
    before, row = states.astype(np.float64), vector.at(block).astype(np.float64)
    after = before + strength * row
    both = np.concatenate([before, after])
    centred = both - both.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    axes = directions[:2]
    axes[0] *= np.sign(axes[0] @ row) or 1.0
    axes[1] *= np.sign(axes[1] @ row) or 1.0
    flat = centred @ axes.T
    variance = singular**2 / np.sum(singular**2)
    return Picture(
        concept=vector.concept,
        block=block,
        strength=strength,
        labels=labels,
        before=flat[: len(before)],
        after=flat[len(before) :],
        explained=(float(variance[0]), float(variance[1])),
        near_before=_nearest(before, before, labels, vector.concept),
        near_after=_nearest(after, before, labels, vector.concept),
    )


def _nearest(
    points: NDArray[np.float64], reference: NDArray[np.float64], labels: list[str], concept: str
) -> float:
    """Share of the other concepts' points whose nearest centre (of `reference`) is the concept's."""
    names, array = list(dict.fromkeys(labels)), np.array(labels)
    if concept not in names or len(names) < 2:
        return float("nan")
    centres = np.stack([reference[array == name].mean(axis=0) for name in names])
    others = points[array != concept]
    # |x - c|^2 without |x|^2, which is the same for every centre: no [n, k, d] array.
    distances = (centres**2).sum(axis=1) - 2 * others @ centres.T
    return float(np.mean(distances.argmin(axis=1) == names.index(concept)))


def picture_table(shown: Picture) -> pa.Table:
    """The points of a picture: concept, x_before, y_before, x_after, y_after."""
    return pa.table(
        {
            "concept": shown.labels,
            "x_before": shown.before[:, 0],
            "y_before": shown.before[:, 1],
            "x_after": shown.after[:, 0],
            "y_after": shown.after[:, 1],
        }
    )
