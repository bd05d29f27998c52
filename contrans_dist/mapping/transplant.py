"""A concept vector through a map, and the vectors it is compared with."""

from collections.abc import Mapping
from typing import get_args

import numpy as np

from contrans_dist.config.parts import Norm
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.extract import Blocks

NORMS = get_args(Norm)
RANDOM_DIRECTION = 0x636F6E7472616E73


def transplant(
    vector: np.ndarray | Blocks | ConceptVector,
    mapping: AffineMap | np.ndarray,
    norm: str = "keep",
    source_norm: float | None = None,
    target_norm: float | None = None,
) -> np.ndarray:
    """The concept vector in the target's space: v_hat = v F, without the bias.

    Args:
        vector: V, [d_source], or for a map over several source blocks its rows at those, [blocks, d_source];
            or by block, as `concept_vector` of captures or a file gives it, for a map of `fit_map`, which
            knows the source blocks that it reads.
        mapping: An AffineMap, or its weight [blocks * d_source, d_target].
        norm: "keep" is v F as it is. "match" scales v F so that it is the same fraction of the target's
            median residual norm as v is of the source's; one strength then means the same push in both.
        source_norm: The source's median residual norm (`Activations.norms`), for "match", at the block of the
            vector; of a map that reads several, at the highest.
        target_norm: The target's, at the block where the vector will be added; for "match".

    Returns:
        float32 [d_target].

    Raises:
        ValueError: For wrong shapes, NaN, a block that the vector has not, norms that are missing or not
            positive, or a v F of zero under "match".
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r}: expected one of {', '.join(NORMS)}")
    weight = mapping.weight if isinstance(mapping, AffineMap) else np.asarray(mapping)
    rows = np.asarray(_rows_read(vector, mapping) if isinstance(vector, Mapping | ConceptVector) else vector)
    source = _finite_vector(rows.ravel() if rows.ndim == 2 else rows)
    if weight.ndim != 2 or weight.shape[0] != source.size:
        raise ValueError(
            f"a vector of {source.size} numbers does not fit a map of shape {list(weight.shape)}"
        )
    mapped = source @ weight.astype(np.float64)
    if norm == "match":
        if not (source_norm and source_norm > 0 and target_norm and target_norm > 0):
            raise ValueError(
                "norm 'match' needs the median residual norms of source and target, both above zero"
            )
        length = np.linalg.norm(mapped)
        if length == 0:
            raise ValueError("the map sends this vector to zero: it has no direction to scale")
        at_last = source[-rows.shape[-1] :]
        mapped *= np.linalg.norm(at_last) / source_norm * target_norm / length
    return mapped.astype(np.float32)


def random_like(vector: np.ndarray, seed: int = 0) -> np.ndarray:
    """A direction drawn evenly from the sphere, with the vector's norm: float32 [d], fixed by the seed."""
    values = _finite_vector(vector)
    # A stream of its own: callers who drew their data with the same small seed must not meet it again here.
    draw = np.random.default_rng([RANDOM_DIRECTION, seed]).standard_normal(values.size)
    return (draw * (np.linalg.norm(values) / np.linalg.norm(draw))).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """How much two vectors point the same way.

    Args:
        a: [d], any real dtype.
        b: [d].

    Returns:
        Their cosine, -1 to 1; 0.0 when either is zero.

    Raises:
        ValueError: For other shapes, NaN or infinity.
    """
    left, right = _finite_vector(a), _finite_vector(b)
    if left.size != right.size:
        raise ValueError(f"cosine of vectors of {left.size} and {right.size} numbers")
    scale = np.linalg.norm(left) * np.linalg.norm(right)
    return float(np.clip(left @ right / scale, -1.0, 1.0)) if scale > 0 else 0.0


def _rows_read(vector: Blocks | ConceptVector, mapping: AffineMap | np.ndarray) -> np.ndarray:
    """The vector at the source blocks that the map reads, [blocks, d_source]."""
    blocks = mapping.source_blocks if isinstance(mapping, AffineMap) else None
    if blocks is None:
        raise ValueError("the map does not say which source blocks it reads: expected the vector [d] of one")
    if isinstance(vector, ConceptVector):
        return np.stack([vector.at(block) for block in blocks])
    missing = [block for block in blocks if block not in vector]
    if missing:
        raise ValueError(f"the vector has no block {missing[0]}; the map reads blocks {blocks}")
    return np.stack([vector[block] for block in blocks])


def _finite_vector(vector: np.ndarray) -> np.ndarray:
    values = np.asarray(vector, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a vector [d], got shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("the vector holds NaN or infinity")
    return values
