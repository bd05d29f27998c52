"""The ways to fit a map that are compared, and what one of them reaches."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import contrans_dist as ct
from contrans_dist.config.map_options import Centre, Regularise, blocks_below
from contrans_dist.mapping.fit import shuffled_map
from contrans_dist.mapping.heldout import split_of
from contrans_dist.mapping.map_set import MapSet, Pair
from contrans_dist.models import matched_depth
from mapping.few import about_pulled
from mapping.world import Corpus, World

STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Variant:
    """One way to fit a map; the defaults are those of the papers."""

    name: str
    best_pair: bool = False
    norm: str = "keep"
    centre: Centre = False
    regularise: Regularise = "none"
    whiten: float = 0.0
    source_blocks: int = 1
    paper: bool = False
    """By the papers' own protocol: their split, and no option."""
    corpus: str = "main"
    pull: float | None = None
    """About tokens' means that are drawn to the mean of all rows (`few.about_pulled`), before `centre`."""


PAPER = Variant("paper: no option, blocks at matched depth, norm kept")
BEST = Variant("all", True, "match", "token", "ridge", 0.5, 2)
ADDED: list[Variant] = [
    replace(PAPER, name="protocol: paper itself (first 80 % of the rows)", paper=True),
    PAPER,
    replace(PAPER, name="+ norm: match", norm="match"),
    replace(PAPER, name="+ centre", centre=True),
    replace(PAPER, name="+ centre: token", centre="token"),
    replace(PAPER, name="+ regularise: ridge", regularise="ridge"),
    replace(PAPER, name="+ regularise: rank", regularise="rank"),
    replace(PAPER, name="+ whiten: 0.5", whiten=0.5),
    replace(PAPER, name="+ source_blocks: 2", source_blocks=2),
    replace(PAPER, name="+ blocks: best", best_pair=True),
]
REMOVED: list[Variant] = [
    replace(BEST, name="**all together (the default)**"),
    replace(BEST, name="- norm: match", norm="keep"),
    replace(BEST, name="- centre: true (one mean for all tokens)", centre=True),
    replace(BEST, name="- centre: false", centre=False),
    replace(BEST, name="- ridge: none", regularise="none"),
    replace(BEST, name="- ridge: rank instead", regularise="rank"),
    replace(BEST, name="- whiten: 0", whiten=0.0),
    replace(BEST, name="- whiten: 1 instead", whiten=1.0),
    replace(BEST, name="- source_blocks: 1", source_blocks=1),
    replace(BEST, name="- source_blocks: all below instead", source_blocks=99),
    replace(BEST, name="- blocks: depth", best_pair=False),
]
PLAIN = replace(BEST, centre=True, whiten=0.0, source_blocks=1)
CUTS: list[Variant] = [
    replace(PAPER, name="paper, one position a text", corpus="random"),
    replace(PAPER, name="paper, four positions a text", corpus="random-4"),
    replace(PLAIN, name="centre, ridge, best pair, norm match", corpus="random"),
    replace(PLAIN, name="... four positions a text", corpus="random-4"),
    replace(PLAIN, name="... centre: token", corpus="random", centre="token"),
    replace(BEST, name="... whiten: 0.5, source_blocks: 2", corpus="random", centre=True),
    replace(BEST, name="**... all three: the default**", corpus="random"),
    replace(BEST, name="**the default, four positions a text**", corpus="random-4"),
]
FEW: list[Variant] = [
    PAPER,
    replace(PLAIN, name="centre: true, ridge, norm match"),
    replace(BEST, name="**the default**"),
    replace(BEST, name="- centre: true", centre=True),
    replace(BEST, name="- tokens' means pulled to the mean by 1 row", centre=True, pull=1.0),
    replace(BEST, name="- tokens' means pulled to the mean by 2 rows", centre=True, pull=2.0),
    replace(BEST, name="- whiten: 0", whiten=0.0),
    replace(BEST, name="- source_blocks: 1", source_blocks=1),
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

    `seed` draws which texts are fitted on; 0 is the split that every fit of the package takes.
    """
    split = split_of(corpus.origins if seed == 0 else [f"{seed} {origin}" for origin in corpus.origins])
    pairs = [pair] if pair else _pairs(world, variant)
    tried = [(_validated(world, corpus, variant, split, each), each) for each in pairs]
    (_, strength), found = max(tried, key=lambda each: each[0][0])
    maps = _fit(world, corpus, variant, split, found, shuffled=True)
    carried = {concept: maps.carry(vector, _norm(variant)) for concept, vector in world.vectors.items()}
    rows = {concept: vector.at(found[1]) for concept, vector in carried.items()}
    shuffled = {concept: np.asarray(vector.shuffled_map)[found[1]] for concept, vector in carried.items()}
    scored = [
        float(world.accuracy(world.evaluation, each, found[1], [strength], random)[0])
        for each, random in ((rows, False), (rows, True), (shuffled, False))
    ]
    cosines = [ct.cosine(row, world.own[concept].at(found[1])) for concept, row in rows.items()]
    r2 = maps.maps[found].r2_test
    return Result(found, strength, float("nan") if r2 is None else r2, float(np.mean(cosines)), *scored)


def reached(world: World, corpus: Corpus, variant: Variant, split: np.ndarray) -> float:
    """Token Acc on the scored scenarios, at matched depth and at the strength best on validation."""
    pair = matched_depth(len(world.source.blocks)), matched_depth(len(world.target.blocks))
    _, strength = _validated(world, corpus, variant, split, pair)
    maps = _fit(world, corpus, variant, split, pair)
    rows = {c: maps.carry(vector, _norm(variant)).at(pair[1]) for c, vector in world.vectors.items()}
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
    maps = _fit(world, corpus, variant, split, pair)
    rows = {c: maps.carry(vector, _norm(variant)).at(pair[1]) for c, vector in world.vectors.items()}
    found = world.accuracy(world.validation, rows, pair[1], STRENGTHS, random=False)
    return float(found.max()), STRENGTHS[int(found.argmax())]


def _norm(variant: Variant) -> Any:
    return variant.norm


def _fit(
    world: World, corpus: Corpus, variant: Variant, split: np.ndarray, pair: Pair, shuffled: bool = False
) -> MapSet:
    read = blocks_below(pair[0], "default", variant.source_blocks)
    x, y = np.concatenate([corpus.source[b] for b in read], axis=1), corpus.target[pair[1]]
    if variant.pull is not None:
        x, y = (about_pulled(rows, corpus.tokens, split, variant.pull) for rows in (x, y))
    tokens = corpus.tokens if variant.centre == "token" else None
    held = None if variant.paper else split
    if variant.paper:
        mapping = ct.fit_map(x, y, protocol="paper")
    else:
        mapping = ct.fit_map(
            x, y, split=split, centre=variant.centre, regularise=variant.regularise,
            whiten=variant.whiten, tokens=tokens,
        )  # fmt: skip
    control = shuffled_map(x, y, mapping, split=held, tokens=tokens).weight if shuffled else None
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
