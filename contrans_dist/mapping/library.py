"""What a notebook calls: a map from rows in memory, as `contrans fit` makes it of the same rows, and vectors
through one that is never formed."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import scipy.linalg

from contrans_dist.config.map_options import MapOptions, MapProtocol
from contrans_dist.engine.capture import Activations
from contrans_dist.errors import UserError
from contrans_dist.mapping.aligned_rows import join, side_by_side
from contrans_dist.mapping.block_pairs import readable_blocks
from contrans_dist.mapping.fit import fit_rows
from contrans_dist.mapping.heldout import split_of
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.solver import Triangle
from contrans_dist.models import matched_depth
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.map_file import Pair

_DEFAULT = MapOptions()


def fit_map(
    source: np.ndarray | Activations | ActivationSet,
    target: np.ndarray | Activations | ActivationSet,
    options: MapOptions = _DEFAULT,
    *,
    pair: Pair | None = None,
    split: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> AffineMap:
    """The map from a source model's rows to a target model's, of the same texts.

    From what `capture` returns, or from two activation sets, this is the map that `contrans fit` makes of the
    same rows: by default it reads the source block below as well where it is there, centres by the target's
    tokens, and holds texts out by their hash. Plain arrays know of one block, of no tokens (then rows are
    centred about the mean of all) and of no texts (then the held-out rows are drawn by place), unless
    `tokens` and `split` tell.

    Args:
        source: Rows by block, or an array [n, d_s] of any real dtype.
        target: Rows of the other model in the same form, or an array [n, d_t].
        options: How it is fitted; `MapOptions("paper")` is equation 2 of ConTrans.
        pair: The blocks (source, target); without it each side's is at three quarters of the depth, or the
            highest there is where that was not captured. Not for arrays.
        split: Str [n], "fit", "validation" or "test" for each row.
        tokens: [n], a label for the token that each row was taken from.

    Raises:
        ValueError: In one line, for rows that do not match or options that contradict.
        UserError: In one line, for other texts, or blocks that are not there.
    """
    if isinstance(source, Activations) and isinstance(target, Activations):
        known_split, known_tokens = _of_texts(source, target, options.protocol), target.token_ids
        held, read_source, read_target = list(source), source.__getitem__, target.__getitem__
    elif isinstance(source, ActivationSet) and isinstance(target, ActivationSet):
        aligned = join(source, target, options.protocol)
        known_split = aligned.split if options.protocol == "default" else None
        known_tokens = aligned.tokens()
        source, target = aligned.source, aligned.target  # without the rows that are in one alone
        held, read_source, read_target = source.blocks, source.read_block, target.read_block
    elif isinstance(source, Mapping | ActivationSet) or isinstance(target, Mapping | ActivationSet):
        raise ValueError("source and target: expected two arrays, two captures or two activation sets")
    elif pair is not None or options.source_blocks is not None:
        raise ValueError("pair and source_blocks: expected rows by block, as `capture` returns them")
    else:
        return fit_rows(source, target, options, split=split, tokens=tokens)
    named = pair or (None, None)
    blocks = readable_blocks(_block(source, named[0]), options, set(held))
    mapping = fit_rows(
        side_by_side([read_source(block) for block in blocks]),
        read_target(_block(target, named[1])),
        options,
        split=known_split if split is None else split,
        tokens=known_tokens if tokens is None else tokens,
    )
    return replace(mapping, source_blocks=blocks)


def _block(side: Activations | ActivationSet, named: int | None) -> int:
    """The block that is named; else three quarters of the depth, else the highest there is."""
    held = list(side) if isinstance(side, Activations) else side.blocks
    if named is None:
        depth = matched_depth(side.n_blocks)
        return depth if depth in held else max(held)
    if named not in held:
        raise UserError(f"pair: block {named} was not captured; there are {sorted(held)}")
    return named


def _of_texts(source: Activations, target: Activations, protocol: MapProtocol) -> np.ndarray | None:
    """The split of captured texts, None where the protocol has none."""
    a, b = source.text_ids, target.text_ids
    if len(a) != len(b):
        raise ValueError(f"source has {len(a)} rows, target {len(b)}: expected the same texts in both")
    differing = next((row for row, ids in enumerate(zip(a, b, strict=True)) if ids[0] != ids[1]), None)
    if differing is not None:
        raise ValueError(f"source and target differ in text {differing}: expected the same texts in both")
    return split_of(a) if protocol == "default" else None


def map_vectors(vectors: np.ndarray, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Vectors through the map of `protocol: paper` over these rows, which is never formed.

    For a few vectors, forming the map is most of the work.

    Args:
        vectors: V, [k, d_s].
        source: Rows [n, d_s].
        target: Rows [n, d_t] of the same texts.

    Returns:
        v F, float64 [k, d_t], and warnings, one line each.
    """
    # A copy of our own, which the factorisation may overwrite.
    x, v = np.array(source, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
    if x.shape[0] < x.shape[1]:
        within, r = scipy.linalg.qr_multiply(x.T, v, mode="right", overwrite_a=True)
        triangle = Triangle(r, max(x.shape))
        weights = triangle.inverse_times(within.T).T
    else:
        q, r = scipy.linalg.qr(x, mode="economic", overwrite_a=True, check_finite=False)
        triangle = Triangle(r, max(x.shape))
        weights = triangle.inverse_times(v.T, transposed=True).T @ q.T
    # For so few rows numpy sums in float64 without a float64 copy of the target, which would take longer.
    return weights @ np.asarray(target), triangle.trust()
