"""The formulas: a concept's direction from positive and negative rows, and one concept against the rest."""

from collections.abc import Mapping, Sequence
from typing import get_args, overload

import numpy as np
import scipy.linalg

from contrans_dist.config.parts import Method
from contrans_dist.vectors.row_checks import finite_rows

METHODS = get_args(Method)
Blocks = Mapping[int, np.ndarray]
"""Rows, or a vector, by block."""


@overload
def concept_vector(
    positive: Blocks, negative: Blocks, method: str = ..., paired: bool | None = ...
) -> dict[int, np.ndarray]: ...
@overload
def concept_vector(
    positive: np.ndarray, negative: np.ndarray, method: str = ..., paired: bool | None = ...
) -> np.ndarray: ...
def concept_vector(
    positive: np.ndarray | Blocks,
    negative: np.ndarray | Blocks,
    method: str = "mean",
    paired: bool | None = None,
) -> np.ndarray | dict[int, np.ndarray]:
    """The direction that tells positive rows from negative ones.

    Args:
        positive: Activations of texts with the concept, `[n, d]`; or by block, as `capture` returns them.
        negative: Activations of texts without, `[m, d]`, in the same form.
        method: `mean` is the mean of the positive minus the mean of the negative rows, in the units of the
            activations (equation 1 of ConTrans). `pca` is the first principal component of the differences of
            pairs about their mean, of unit length, with the sign that points along that mean. As the mean
            difference is taken away first, this is the direction in which the differences vary most, which
            need not be the one they share.
        paired: True insists on pairs (equal counts), False says that there are none, None takes them where
            the counts agree. Only `pca` needs them: the mean of differences is the difference of means.

    Returns:
        float32 `[d]`; of rows by block `{block: [d]}`, for the blocks that both have.

    Raises:
        ValueError: For an empty side, NaN or infinity, different widths, pairs that are missing or too few.
    """
    if isinstance(positive, Mapping) and isinstance(negative, Mapping):
        shared = [block for block in positive if block in negative]
        return {block: concept_vector(positive[block], negative[block], method, paired) for block in shared}
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    positive = finite_rows(np.asarray(positive), "positive")
    negative = finite_rows(np.asarray(negative), "negative")
    for name, rows in (("positive", positive), ("negative", negative)):
        if len(rows) == 0:
            raise ValueError(f"{name}: no rows")
    if positive.shape[1] != negative.shape[1]:
        raise ValueError(f"positive rows have {positive.shape[1]} columns, negative {negative.shape[1]}")
    if (paired or method == "pca") and len(positive) != len(negative):
        raise ValueError(f"pairs need equal counts: {len(positive)} positive, {len(negative)} negative rows")
    if method == "mean":
        return (positive.mean(axis=0) - negative.mean(axis=0)).astype(np.float32)
    if paired is False:
        raise ValueError("method 'pca' works on the differences of pairs: paired=False contradicts it")
    # What float32 rows leave behind by rounding alone is no variation.
    noise = 1e-6 * float(np.linalg.norm(positive))
    return _first_component(positive - negative, noise).astype(np.float32)


def one_vs_rest(labels: Sequence[str | None], concept: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one concept against as many of all others.

    Args:
        labels: The concept of each row; rows with None belong to neither side.
        concept: The one whose rows are positive.
        seed: The same labels, concept and seed give the same rows.

    Returns:
        Row numbers (positive, negative), int64. Positive: every row of the concept, in input order. Negative:
        as many of the others, drawn without replacement and spread as evenly as their counts allow, in random
        order so that pairs mix concepts; fewer where the others have fewer rows in all.

    Raises:
        ValueError: When either side would be empty.
    """
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            rows_of.setdefault(label, []).append(row)
    positive = rows_of.pop(concept, [])
    if not positive:
        raise ValueError(f"no row is labelled {concept!r}; there are {sorted(rows_of)}")
    if not rows_of:
        raise ValueError(f"every labelled row is {concept!r}: nothing to contrast it with")
    rng = np.random.default_rng(seed)
    others = sorted(rows_of)
    shuffled = {name: rng.permutation(rows_of[name]) for name in others}
    quota = _even_quota({name: len(rows_of[name]) for name in others}, len(positive), rng)
    negative = np.concatenate([shuffled[name][: quota[name]] for name in others])
    return np.array(positive, dtype=np.int64), rng.permutation(negative).astype(np.int64)


def _even_quota(available: dict[str, int], wanted: int, rng: np.random.Generator) -> dict[str, int]:
    """How many rows to take of each name: as even as `available` allows, the odd ones out drawn by lot."""
    quota = dict.fromkeys(available, 0)
    left = min(wanted, sum(available.values()))
    while left:
        names = [name for name in available if quota[name] < available[name]]
        share = min(left // len(names), min(available[name] - quota[name] for name in names))
        if share == 0:
            names = [names[i] for i in rng.permutation(len(names))[:left]]
            share = 1
        for name in names:
            quota[name] += share
        left -= share * len(names)
    return quota


def _first_component(differences: np.ndarray, noise: float) -> np.ndarray:
    """The first principal component, unit length, float64 [d], of differences [n, d]; ValueError if n < 2."""
    if len(differences) < 2:
        raise ValueError("method 'pca' needs at least 2 pairs")
    mean = differences.mean(axis=0)
    centred = differences - mean
    # The smaller of the two Gram matrices has the same top eigenvalue; only that one is asked for.
    wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    last = len(gram) - 1
    top = scipy.linalg.eigh(gram, subset_by_index=[last, last], check_finite=False)[1][:, 0]
    component = centred.T @ top if wide else top
    spread = component if wide else centred @ top
    if np.linalg.norm(spread) <= noise:
        raise ValueError("method 'pca': all pairs differ by the same vector, so no component is defined")
    component /= np.linalg.norm(component)
    along = component @ mean
    if along == 0.0:
        # Exactly across the mean neither sign is right; fix one so that the result is reproducible.
        along = component[np.argmax(np.abs(component))]
    return component if along > 0 else -component
