"""The map driver: two activation sets in, maps out; Ray tasks sum up what does not fit into memory."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config.map_options import MapOptions
from contrans_dist.console import note
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.distributed.cluster import connected
from contrans_dist.errors import UserError
from contrans_dist.mapping.aligned_rows import AlignedRows, column_text, join, side_by_side
from contrans_dist.mapping.block_pairs import choose_pairs, readable_blocks
from contrans_dist.mapping.distributed_sums import FitFromSums
from contrans_dist.mapping.fit import SourceRows
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.map_set import MapSet, Pair
from contrans_dist.store.activation_set import ActivationSet

ROWS_IN_MEMORY = 16_384
"""Up to here the rows are simply read; beyond, they are summed in chunks by Ray tasks."""
_DEFAULT = MapOptions()


def fit(
    source: ActivationSet,
    target: ActivationSet,
    blocks: str = "depth",
    options: MapOptions = _DEFAULT,
    *,
    rows: NDArray[np.int64] | None = None,
    address: str | None = None,
    shuffled: bool = True,
    quiet: bool = False,
    vectors_at: Collection[int] | None = None,
) -> MapSet:
    """Fit the maps that `blocks` asks for between two activation sets over the same texts.

    Args:
        source: The source model's activations.
        target: The target model's, of the same texts.
        blocks: "depth", "best", "r2" (see `choose_pairs`), or pairs such as "24:30,25:31".
        options: How a map is fitted.
        rows: Only these rows take part (one concept's contrast prompts, as in L-Cross Modulation).
        address: Of the Ray cluster, for more rows than are held in memory.
        shuffled: Fit the control beside each map.
        quiet: Keep warnings in the maps alone.
        vectors_at: The blocks at which there are vectors to carry. Without a number in the options, a map
            reads as many of its source blocks as were harvested and are among these.

    Raises:
        UserError: For sets over different texts, blocks that were not harvested, or too few rows.
    """
    aligned = join(source, target, options.protocol, rows)
    pairs, table = choose_pairs(blocks, aligned)
    fitted = list(
        fit_one_by_one(aligned, pairs, options, address=address, shuffled=shuffled, vectors_at=vectors_at)
    )
    by_pair = {pair: mapping for of_pair in fitted for pair, mapping in of_pair.maps.items()}
    maps = replace(
        fitted[0],
        maps={pair: by_pair[pair] for pair in pairs},
        shuffled={pair: weight for of_pair in fitted for pair, weight in of_pair.shuffled.items()},
        r2_table=table,
    )
    for pair, mapping in maps.maps.items():
        for warning in mapping.warnings if not quiet else ():
            note(f"map {pair[0]}:{pair[1]}: {warning}")
    return maps


def fit_one_by_one(
    aligned: AlignedRows,
    pairs: Sequence[Pair],
    options: MapOptions = _DEFAULT,
    *,
    address: str | None = None,
    shuffled: bool = True,
    vectors_at: Collection[int] | None = None,
) -> Iterator[MapSet]:
    """The map of each pair by itself, so that one alone need be in memory; arguments as of `fit`.

    Pairs come in ascending order: a source block is read, centred and factored once for all its targets.
    """
    source, target = aligned.source, aligned.target
    held = set(source.blocks) if vectors_at is None else set(source.blocks) & set(vectors_at)
    pairs = sorted(set(pairs))
    reads = {pair: readable_blocks(pair[0], options, held) for pair in pairs}
    large = len(aligned.split) > ROWS_IN_MEMORY and aligned.rows is None
    about_both = MapSet(
        source_model=source.manifest.identity.model,
        target_model=target.manifest.identity.model,
        n_target_blocks=target.n_blocks,
        protocol=options.protocol,
        maps={},
        source_norms=source.norms,
        target_norms=target.norms,
        text_hashes=_hashes(aligned),
    )
    with connected(address) if large else nullcontext():
        try:
            fits = (FitFromSums if large else _FitInMemory)(aligned, options, shuffled)
            for pair in pairs:
                mapping, control = fits.fit(reads[pair], pair[1])
                if len(reads[pair]) > 1:
                    mapping = replace(mapping, source_blocks=reads[pair])
                weights = {} if control is None else {pair: control.weight}
                yield replace(about_both, maps={pair: mapping}, shuffled=weights)
        except ValueError as error:
            raise UserError(f"{source.location}: {error}") from error


class _FitInMemory:
    """Maps from the rows of an aligned corpus, and their controls where these are wanted."""

    def __init__(self, aligned: AlignedRows, options: MapOptions, shuffled: bool) -> None:
        self._aligned, self._options, self._shuffled = aligned, options, shuffled
        self._blocks: Sequence[int] = ()
        self._side: SourceRows | None = None

    def fit(self, blocks: Sequence[int], target: int) -> tuple[AffineMap, AffineMap | None]:
        """The map from these source blocks to a target block, and its control. ValueError without rows."""
        aligned, options = self._aligned, self._options
        if self._side is None or blocks != self._blocks:
            x = side_by_side([aligned.read(aligned.source, block) for block in blocks])
            split = aligned.split if options.protocol == "default" else None
            by_token = options.centring(tokens_known=True) == "token"
            self._blocks = blocks
            self._side = SourceRows(x, options, split, aligned.tokens() if by_token else None)
        rows = aligned.read(aligned.target, target)
        mapping = self._side.fit(rows)
        return mapping, self._side.control(rows, mapping) if self._shuffled else None


def _hashes(aligned: AlignedRows) -> NDArray[np.int64]:
    """Sorted hashes of the texts of the fit, for the leak check."""
    source, rows = aligned.source, aligned.rows
    if rows is not None:
        return unit_hashes(source.read_columns(["text"]).column("text").take(rows).to_pylist())
    return np.unique(np.concatenate([unit_hashes([]), *map(unit_hashes, column_text(source, "text"))]))
