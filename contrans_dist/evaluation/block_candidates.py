"""The pairs of blocks that are worth trying: a first cut by what the contrast texts show, without a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contrans_dist.config import MapSettings
from contrans_dist.console import Progress
from contrans_dist.data.spread import spread
from contrans_dist.evaluation.sides import Sides, Vectors
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.driver import fit_one_by_one
from contrans_dist.mapping.map_set import MapSet, Pair
from contrans_dist.mapping.transplant import cosine
from contrans_dist.models import upper_blocks

_UPPER = 3 / 5
"""Share of a model's blocks, the upper ones, that are looked at."""
_MOST_TARGETS, _MOST_SOURCES = 8, 4
"""Of them, evenly spread."""


@dataclass(frozen=True)
class Candidate:
    """A pair of blocks, and what its map makes of the source's vectors."""

    pair: Pair
    carried: Vectors
    """The source's vectors through the map, by concept."""
    cosine: float
    """Mean over the concepts, of the carried vector and the target's own."""

    @property
    def name(self) -> str:
        return "{}:{}".format(*self.pair)


def looked_at(blocks: Sequence[int], n_blocks: int, most: int) -> list[int]:
    """Of the harvested blocks of a model those that are looked at: spread over its upper part."""
    upper = [block for block in blocks if block in upper_blocks(n_blocks, _UPPER)] or list(blocks)
    return [upper[i] for i in spread(len(upper), most)]


def target_blocks(blocks: Sequence[int], n_blocks: int) -> list[int]:
    """The blocks of the target that `best_sources` makes candidates for."""
    return looked_at(blocks, n_blocks, _MOST_TARGETS)


def best_sources(sides: Sides, settings: MapSettings, vectors: dict[str, Vectors]) -> list[Candidate]:
    """For each block of the target, the source block whose vectors come nearest to the target's own.

    R2 would take an early source block, which predicts much and carries no concept (jobs/MAPS.md).

    Args:
        sides: The activation sets.
        settings: Of the map.
        vectors: Of both models, `source` and `target` -> concept -> vector.
    """
    sources = looked_at(sides.corpus_source.blocks, sides.corpus_source.n_blocks, _MOST_SOURCES)
    targets = target_blocks(sides.corpus_target.blocks, sides.corpus_target.n_blocks)
    pairs = [(source, target) for source in sources for target in targets]
    options = settings.options()
    fitted = fit_one_by_one(
        join(sides.corpus_source, sides.corpus_target, options.protocol),
        pairs,
        options,
        shuffled=False,
        vectors_at=sides.contrast_source.blocks,
    )
    best: dict[int, Candidate] = {}
    with Progress("fit maps", len(pairs), "pairs of blocks") as progress:
        for maps in fitted:
            candidate = _candidate(maps, settings, vectors)
            target = candidate.pair[1]
            if target not in best or candidate.cosine > best[target].cosine:
                best[target] = candidate
            progress.advance(1)
    return [best[target] for target in targets]


def _candidate(maps: MapSet, settings: MapSettings, vectors: dict[str, Vectors]) -> Candidate:
    target = maps.only_pair()[1]
    carried = {concept: maps.carry(vector, settings.norm) for concept, vector in vectors["source"].items()}
    near = cosines(carried, vectors["target"], target)
    return Candidate(maps.only_pair(), carried, float(np.mean(list(near.values()))))


def cosines(carried: Vectors, own: Vectors, block: int) -> dict[str, float]:
    """Of each concept's carried vector and the target's own, at a block."""
    return {concept: cosine(vector.at(block), own[concept].at(block)) for concept, vector in carried.items()}
