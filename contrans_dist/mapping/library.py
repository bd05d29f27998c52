"""What a notebook calls: vectors, maps and transplants from rows in memory, as the commands make them.

From plain arrays each does what its namesake does; from what a capture returns, or from activation sets, it
does what `contrans refine`, `contrans fit` and `contrans transplant` do with the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from contrans_dist.config.map_options import Centre, Regularise
from contrans_dist.engine.capture import Activations
from contrans_dist.errors import UserError
from contrans_dist.mapping import fit as affine
from contrans_dist.mapping import transplant as transplanting
from contrans_dist.mapping.alignment import join, read_blocks
from contrans_dist.mapping.fit import AffineMap, Protocol
from contrans_dist.mapping.heldout import split_of
from contrans_dist.mapping.map_set import Pair
from contrans_dist.models import matched_depth
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors import extract as concepts
from contrans_dist.vectors.concept_vector import ConceptVector

Blocks = Mapping[int, np.ndarray]


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
    """The concept vector of positive and negative rows: float32 [d], see `concepts.concept_vector`.

    Of rows by block, as `capture` returns them: `{block: [d]}`, for the blocks that both have.
    """
    if isinstance(positive, Mapping) and isinstance(negative, Mapping):
        blocks = [block for block in positive if block in negative]
        return {b: concepts.concept_vector(positive[b], negative[b], method, paired) for b in blocks}
    return concepts.concept_vector(np.asarray(positive), np.asarray(negative), method, paired)


@dataclass(frozen=True)
class _Side:
    """One model's rows, and what is known of them."""

    blocks: list[int]
    n_blocks: int

    def block(self, asked: int | None) -> int:
        """The block asked for; else three quarters of the depth, else the highest there is."""
        if asked is None:
            depth = matched_depth(self.n_blocks)
            return depth if depth in self.blocks else max(self.blocks)
        if asked not in self.blocks:
            raise UserError(f"pair: block {asked} was not captured; there are {sorted(self.blocks)}")
        return asked


def fit_map(
    source: np.ndarray | Activations | ActivationSet,
    target: np.ndarray | Activations | ActivationSet,
    *,
    protocol: Protocol = "default",
    pair: Pair | None = None,
    source_blocks: int | None = None,
    split: np.ndarray | None = None,
    ridges: Sequence[float] | np.ndarray | None = None,
    centre: Centre | None = None,
    regularise: Regularise | None = None,
    rank: int | None = None,
    whiten: float | None = None,
    tokens: np.ndarray | None = None,
) -> AffineMap:
    """The map from a source model's rows to a target model's, of the same texts.

    From what `capture` returns, or from two activation sets, this is the map that `contrans fit` makes of the
    same rows. `pair` names the blocks, (source, target); without it each side's is at three quarters of the
    depth, or the highest there is where that was not captured. Under "default" the map also reads the source
    block below where it is there (`source_blocks`), centres by the target's tokens, and holds texts out by
    their hash.

    From arrays [n, d_s] and [n, d_t] it is `affine.fit_map`, which explains the options: those know of one
    block, of no tokens (then `centre` is True) and of no texts (then the held-out rows are drawn by place),
    unless `tokens` and `split` tell.

    ValueError or UserError, in one line, for rows that do not match, other texts, or options that contradict.
    """
    options: dict[str, Any] = {
        "protocol": protocol, "ridges": ridges, "centre": centre, "regularise": regularise, "rank": rank,
        "whiten": whiten,
    }  # fmt: skip
    if isinstance(source, Activations) and isinstance(target, Activations):
        known = _of_texts(source, target, protocol)
        sides = _Side(list(source), source.n_blocks), _Side(list(target), target.n_blocks)
        read_source, read_target = source.__getitem__, target.__getitem__
    elif isinstance(source, ActivationSet) and isinstance(target, ActivationSet):
        joined = join(source, target, protocol)
        known = joined.split if protocol == "default" else None, joined.tokens()
        sides = _Side(source.blocks, source.n_blocks), _Side(target.blocks, target.n_blocks)
        read_source, read_target = source.read_block, target.read_block
    elif isinstance(source, Mapping | ActivationSet) or isinstance(target, Mapping | ActivationSet):
        raise ValueError("source and target: expected two arrays, two captures or two activation sets")
    elif pair is not None or source_blocks is not None:
        raise ValueError("pair and source_blocks: expected rows by block, as `capture` returns them")
    else:
        return affine.fit_map(source, target, split=split, tokens=tokens, **options)
    asked = pair or (None, None)
    from_block, to_block = sides[0].block(asked[0]), sides[1].block(asked[1])
    blocks = read_blocks(from_block, protocol, source_blocks, set(sides[0].blocks))
    mapping = affine.fit_map(
        np.concatenate([read_source(block) for block in blocks], axis=1),
        read_target(to_block),
        split=known[0] if split is None else split,
        tokens=known[1] if tokens is None else tokens,
        **options,
    )
    return replace(mapping, source_blocks=blocks)


def _of_texts(
    source: Activations, target: Activations, protocol: Protocol
) -> tuple[np.ndarray | None, np.ndarray]:
    """The split of captured texts, None where the protocol has none, and the target's tokens."""
    a, b = source.text_ids, target.text_ids
    if len(a) != len(b):
        raise ValueError(f"source has {len(a)} rows, target {len(b)}: expected the same texts in both")
    differing = next((row for row, ids in enumerate(zip(a, b, strict=True)) if ids[0] != ids[1]), None)
    if differing is not None:
        raise ValueError(f"source and target differ in text {differing}: expected the same texts in both")
    return split_of(a) if protocol == "default" else None, target.token_ids


def transplant(
    vector: np.ndarray | Blocks | ConceptVector,
    mapping: AffineMap | np.ndarray,
    norm: str = "keep",
    source_norm: float | None = None,
    target_norm: float | None = None,
) -> np.ndarray:
    """The concept vector in the target's space, float32 [d_target]: see `transplanting.transplant`.

    A vector by block (`concept_vector` of captures, or one from a file) goes through a map of `fit_map` that
    knows its source blocks; under "match" the norm is measured at the highest of them, of which `source_norm`
    is the median residual norm (`Activations.norms`).
    """
    blocks = mapping.source_blocks if isinstance(mapping, AffineMap) else None
    if not isinstance(vector, Mapping | ConceptVector):
        return transplanting.transplant(vector, mapping, norm, source_norm, target_norm)
    if blocks is None:
        raise ValueError("the map does not say which source blocks it reads: expected the vector [d] of one")
    missing = [] if isinstance(vector, ConceptVector) else [b for b in blocks if b not in vector]
    if missing:
        raise ValueError(f"the vector has no block {missing[0]}; the map reads blocks {blocks}")
    rows = [vector.at(b) if isinstance(vector, ConceptVector) else vector[b] for b in blocks]
    row = np.concatenate(rows)
    if source_norm is not None and np.any(rows[-1]):
        source_norm *= float(np.linalg.norm(row) / np.linalg.norm(rows[-1]))
    return transplanting.transplant(row, mapping, norm, source_norm, target_norm)
