"""The ways to fit a map that are compared, and what one of them reaches."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

import contrans_dist as ct
from contrans_dist.config.map_options import MapOptions
from contrans_dist.config.parts import Norm
from contrans_dist.mapping.fit import SourceRows
from contrans_dist.mapping.heldout import split_of
from contrans_dist.mapping.map_set import MapSet, Pair
from contrans_dist.models import matched_depth
from mapping.world import Corpus, Trial, World

STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Variant:
    """One way to fit a map, and to choose its blocks and the length of what it carries over."""

    name: str
    options: MapOptions
    best_pair: bool = False
    norm: Norm = "keep"
    corpus: str = "main"

    def but(self, name: str, **changes: Any) -> "Variant":
        """This way with other options, or with something else about it changed."""
        options = {name: changes.pop(name) for name in _OPTIONS & set(changes)}
        return replace(self, name=name, options=replace(self.options, **options), **changes)


_OPTIONS = {option.name for option in fields(MapOptions)}
PAPER = Variant(
    "paper: no option, blocks at matched depth, norm kept",
    MapOptions(centre=False, regularise="none", source_blocks=1),
)
BEST = Variant("**all together (the default)**", MapOptions(), best_pair=True, norm="match")
PLAIN = BEST.but("centre, ridge, best pair, norm match", centre=True, source_blocks=1)
ADDED: list[Variant] = [
    replace(PAPER, name="protocol: paper itself (first 80 % of the rows)", options=MapOptions("paper")),
    PAPER,
    PAPER.but("+ norm: match", norm="match"),
    PAPER.but("+ centre", centre=True),
    PAPER.but("+ centre: token", centre="token"),
    PAPER.but("+ regularise: ridge", regularise="ridge"),
    PAPER.but("+ source_blocks: 2", source_blocks=2),
    PAPER.but("+ blocks: best", best_pair=True),
]
REMOVED: list[Variant] = [
    BEST,
    BEST.but("- norm: match", norm="keep"),
    BEST.but("- centre: true (one mean for all tokens)", centre=True),
    BEST.but("- centre: false", centre=False),
    BEST.but("- ridge: none", regularise="none"),
    BEST.but("- source_blocks: 1", source_blocks=1),
    BEST.but("- source_blocks: all below instead", source_blocks=99),
    BEST.but("- blocks: depth", best_pair=False),
]
CUTS: list[Variant] = [
    PAPER.but("paper, one position a text", corpus="random"),
    PAPER.but("paper, four positions a text", corpus="random-4"),
    PLAIN.but("centre, ridge, best pair, norm match", corpus="random"),
    PLAIN.but("... four positions a text", corpus="random-4"),
    PLAIN.but("... centre: token", corpus="random", centre="token"),
    BEST.but("... source_blocks: 2", corpus="random", centre=True),
    BEST.but("**... both: the default**", corpus="random"),
    BEST.but("**the default, four positions a text**", corpus="random-4"),
]
FEW: list[Variant] = [
    PAPER,
    PLAIN.but("centre: true, ridge, norm match"),
    BEST.but("**the default**"),
    BEST.but("- centre: true", centre=True),
    BEST.but("- source_blocks: 1", source_blocks=1),
]


@dataclass(frozen=True)
class Result:
    """What one fit reached; strength and pair were chosen on validation scenarios."""

    pair: Pair
    strength: float
    r2: float
    cosine: float
    accuracy: float
    random: float
    shuffled: float


def measured(world: World, corpus: Corpus, variant: Variant, seed: int, pair: Pair | None) -> Result:
    """Fit, choose the strength (and, without a pair, the blocks) on validation, and score what was held out.

    `seed` draws which texts are fitted on.
    """
    split, pairs = drawn_split(corpus, seed), [pair] if pair else _pairs(world, variant)
    chosen = pairs[0]
    if len(pairs) > 1:
        chosen = max(pairs, key=lambda tried: _validated(world, corpus, variant, split, tried)[0])
    return measured_at(world, corpus, [variant], split, chosen)[0]


def drawn_split(corpus: Corpus, seed: int) -> np.ndarray:
    """The part of the fit that each row belongs to; seed 0 is the one that every fit of the package takes."""
    return split_of(corpus.origins if seed == 0 else [f"{seed} {origin}" for origin in corpus.origins])


def measured_at(
    world: World, corpus: Corpus, variants: Sequence[Variant], split: np.ndarray, pair: Pair
) -> list[Result]:
    """`measured` for several ways to fit at one pair of blocks, which share the passes of the model."""
    block = pair[1]
    maps = [fitted(world, corpus, variant, split, pair, shuffled=True) for variant in variants]
    vectors = [
        {concept: way.carry(vector, variant.norm) for concept, vector in world.vectors.items()}
        for way, variant in zip(maps, variants, strict=True)
    ]
    rows = [{concept: vector.at(block) for concept, vector in way.items()} for way in vectors]
    shuffled = [
        {concept: np.asarray(vector.shuffled_map)[block] for concept, vector in way.items()}
        for way in vectors
    ]
    tried = world.accuracies(
        world.validation, block, [Trial(way, strength) for way in rows for strength in STRENGTHS]
    )
    strengths = [STRENGTHS[i] for i in tried.reshape(len(variants), -1).argmax(axis=1)]
    trials = [
        trial
        for way, control, strength in zip(rows, shuffled, strengths, strict=True)
        for trial in (Trial(way, strength), Trial(way, strength, random=True), Trial(control, strength))
    ]
    scored = world.accuracies(world.evaluation, block, trials).reshape(len(variants), -1).tolist()
    cosines = [[ct.cosine(row, world.own[concept].at(block)) for concept, row in way.items()] for way in rows]
    r2 = [way.maps[pair].r2_test for way in maps]
    return [
        Result(pair, strength, np.nan if r2 is None else r2, float(np.mean(near)), *reached)
        for strength, r2, near, reached in zip(strengths, r2, cosines, scored, strict=True)
    ]


def reached(world: World, corpus: Corpus, variant: Variant, split: np.ndarray) -> float:
    """Token Acc on the scored scenarios, at matched depth and at the strength best on validation."""
    pair = matched_depth(len(world.source.blocks)), matched_depth(len(world.target.blocks))
    _, strength = _validated(world, corpus, variant, split, pair)
    rows = carried(world, fitted(world, corpus, variant, split, pair), variant)
    return float(world.accuracy(world.evaluation, rows, pair[1], [strength], random=False)[0])


def _pairs(world: World, variant: Variant) -> list[Pair]:
    n = len(world.source.blocks), len(world.target.blocks)
    if not variant.best_pair:
        return [(matched_depth(n[0]), matched_depth(n[1]))]
    return [(source, target) for source in range(n[0]) for target in range(n[1])]


def _validated(
    world: World, corpus: Corpus, variant: Variant, split: np.ndarray, pair: Pair
) -> tuple[float, float]:
    """(Token Acc on validation scenarios, strength) at the best strength."""
    rows = carried(world, fitted(world, corpus, variant, split, pair), variant)
    accuracy = world.accuracy(world.validation, rows, pair[1], STRENGTHS, random=False)
    return float(accuracy.max()), STRENGTHS[int(accuracy.argmax())]


def carried(world: World, maps: MapSet, variant: Variant) -> dict[str, np.ndarray]:
    """Every concept's vector through the map."""
    block = maps.only_pair()[1]
    return {concept: maps.carry(v, variant.norm).at(block) for concept, v in world.vectors.items()}


def fitted(
    world: World, corpus: Corpus, variant: Variant, split: np.ndarray, pair: Pair, shuffled: bool = False
) -> MapSet:
    options = variant.options
    read = options.blocks_below(pair[0])
    x = np.concatenate([corpus.source[block] for block in read], axis=1)
    by_token = options.centring(tokens_known=True) == "token"
    side = SourceRows(
        x,
        options,
        split=split if options.protocol == "default" else None,
        tokens=corpus.tokens if by_token else None,
    )
    mapping = side.fit(corpus.target[pair[1]])
    control = side.control(corpus.target[pair[1]], mapping).weight if shuffled else None
    return MapSet(
        source_model=world.files.source,
        target_model=world.files.target,
        n_target_blocks=len(world.target.blocks),
        protocol=mapping.protocol,
        maps={pair: replace(mapping, source_blocks=read)},
        source_norms=_norms(corpus.source),
        target_norms=_norms(corpus.target),
        shuffled={} if control is None else {pair: control},
    )


def _norms(rows: dict[int, np.ndarray]) -> dict[int, float]:
    return {block: float(np.median(np.linalg.norm(values, axis=1))) for block, values in rows.items()}
