"""Which blocks a recipe needs, and which pair of them the map joins: by rule, by name, or by validation."""

from dataclasses import replace
from typing import Any

import numpy as np

from contrans_dist.config import MapSettings, Recipe
from contrans_dist.config.map_options import blocks_below
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.evaluation.sides import Sides, Vectors, refine_sides, save_vectors
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.evaluation.trials import try_out
from contrans_dist.mapping.driver import all_pairs, fit, join, one_block
from contrans_dist.mapping.map_set import MapSet, Pair, R2Table
from contrans_dist.mapping.transplant import cosine
from contrans_dist.models import matched_depth
from contrans_dist.store.location import Location
from contrans_dist.store.results import Trial

_MOST_PAIRS = 64
"""Up to here every pair is tried; beyond, each target block with the source block that predicts it best."""


def harvested_blocks(recipe: Recipe, side: str, n_blocks: int) -> str:
    """The blocks of `side` that the recipe's map needs, as a `--blocks` specification."""
    spec = recipe.blocks
    if spec == "best":
        return "all"
    if spec == "depth":
        block = matched_depth(n_blocks)
    else:
        left, mark, right = spec.partition(":")
        if not mark:
            raise UserError(
                f"map.blocks: expected depth, best, or source:target such as 24:30, found {spec!r}"
            )
        block = one_block(left if side == "source" else right, n_blocks, "map.blocks")
    if side == "target":
        return str(block)
    return ",".join(map(str, blocks_below(block, recipe.map.protocol, recipe.map.source_blocks)))


def fit_chosen(recipe: Recipe, sides: Sides, own: dict[str, Vectors], out: Location) -> MapSet:
    """Fit the map of the recipe's pair of blocks, with cosines to the target's own vectors, and save it."""
    selection: dict[str, Any] | None = None
    table: R2Table | None = None
    spec = recipe.blocks
    if spec == "best":
        table = all_pairs(join(sides.corpus_source, sides.corpus_target, "default"))
        pair, selection = _choose(recipe, sides, own, table, out)
        spec = f"{pair[0]}:{pair[1]}"
    maps = fit_sides(sides, recipe.map, spec)
    return _finished(maps, own, out, table, selection)


def fit_sides(sides: Sides, settings: MapSettings, blocks: str, **more: Any) -> MapSet:
    """`reduce.fit` on the corpus with a recipe's options, for vectors from the contrast texts."""
    return fit(
        sides.corpus_source,
        sides.corpus_target,
        blocks,
        settings.protocol,
        options=settings.fitting(),
        source_blocks=settings.source_blocks,
        vectors_at=sides.contrast_source.blocks,
        **more,
    )


def reduce_sides(
    sides: Sides,
    settings: MapSettings,
    out: Location,
    method: str = "mean",
    seed: int = 0,
    address: str | None = None,
) -> tuple[MapSet, Vectors]:
    """Vectors of every concept, the map, and the vectors through it, all saved under `out`.

    `blocks: best` is the pair of highest validation R2, no `blocks` is matched depth. Raises UserError when
    several pairs are asked for.
    """
    own = refine_sides(sides, out, method, seed)
    maps = fit_sides(sides, settings, settings.blocks or "depth", address=address)
    maps = _finished(maps, own, out, maps.r2_table)
    carried = {concept: maps.carry(vector, settings.norm) for concept, vector in own["source"].items()}
    save_vectors(carried, out, "vector")
    return maps, carried


def _finished(
    maps: MapSet,
    own: dict[str, Vectors],
    out: Location,
    table: R2Table | None = None,
    selection: dict[str, Any] | None = None,
) -> MapSet:
    """Say how near the mapped vectors come to the target's own, and save the map."""
    maps = _with(maps, own, table, selection)
    maps.save(out / "maps" / "corpus.safetensors")
    (source, target), mapping = next(iter(maps.maps.items()))
    mean = float(np.mean(list(maps.cosines[source, target].values())))
    r2 = "" if mapping.r2_test is None else f"held-out R2 {mapping.r2_test:.3f}, "
    note(
        f"map {source} -> {target}: {r2}rank {mapping.rank}, condition number "
        f"{mapping.condition_number:.3g}, mean cosine to the target's own {mean:.2f}"
    )
    return maps


def _with(
    maps: MapSet, own: dict[str, Vectors], table: R2Table | None, selection: dict[str, Any] | None
) -> MapSet:
    pair = maps.only_pair()
    cosines = {
        concept: cosine(maps.carry(vector).at(pair[1]), own["target"][concept].at(pair[1]))
        for concept, vector in own["source"].items()
    }
    return replace(maps, cosines={pair: cosines}, r2_table=table, selection=selection)


def candidates(table: R2Table) -> list[Pair]:
    """Pairs worth trying: all where they are few, else each target block with its best source block."""
    if len(table.source) * len(table.target) <= _MOST_PAIRS:
        return [(source, target) for source in table.source for target in table.target]
    best = np.nanargmax(table.r2, axis=0)
    return [(table.source[int(best[column])], target) for column, target in enumerate(table.target)]


def _choose(
    recipe: Recipe, sides: Sides, own: dict[str, Vectors], table: R2Table, out: Location
) -> tuple[Pair, dict[str, Any]]:
    """The pair whose vectors steer validation items best, under the first evaluation that has some; by R2
    where none has.

    R2 alone proves little: a block can be predicted well and yet take no steering at all. Where there is a
    perplexity budget, pairs and strengths beyond it do not count: a broken model is not toxic either.
    """
    settings = recipe.chosen_on
    if settings is None:
        pair = table.best()
        note(f"blocks {pair[0]} -> {pair[1]} chosen by R2: no evaluation has validation items")
        return pair, {"criterion": "validation R2", "candidates": [], "chosen": list(pair)}
    strengths = few_strengths(settings.strengths)
    if not strengths:
        raise UserError(f"map.blocks: best: benchmark {settings.benchmark} needs a strength other than 0")
    steered = _candidate_steering(recipe, sides, own, candidates(table))
    if settings.concepts is not None:
        steered = steered.about(settings.concepts)
    trials = try_out(
        recipe.target, settings, steered, strengths, out / "selection", recipe.cluster, "choose blocks"
    )
    tried = [each for each in trials.candidates if each.strength != 0]
    best = max(
        trials.within(tried) or tried,
        key=lambda each: (trials.gain(each), _r2(table, _pair(each)), -abs(each.strength)),
    )
    pair = _pair(best)
    note(
        f"blocks {pair[0]} -> {pair[1]} chosen on validation items: {trials.criterion} {best.score:.2f} "
        f"at strength {best.strength:g}"
    )
    scored = [_as_plain(each) for each in tried]
    return pair, {
        "criterion": trials.criterion, "candidates": scored, "chosen": list(pair), "best": _as_plain(best),
    }  # fmt: skip


def _pair(trial: Trial) -> Pair:
    source, _, target = trial.condition.partition(":")
    return int(source), int(target)


def _as_plain(trial: Trial) -> dict[str, Any]:
    source, target = _pair(trial)
    return {
        "source": source, "target": target, "strength": trial.strength, "score": trial.score,
        "perplexity": trial.perplexity,
    }  # fmt: skip


def few_strengths(strengths: tuple[float, ...]) -> tuple[float, ...]:
    """Every second strength, the largest among them: enough to rank pairs."""
    return tuple(sorted(strength for strength in strengths if strength != 0))[::-1][::2]


def _r2(table: R2Table, pair: Pair) -> float:
    return float(table.r2[table.source.index(pair[0]), table.target.index(pair[1])])


def _candidate_steering(recipe: Recipe, sides: Sides, own: dict[str, Vectors], pairs: list[Pair]) -> Steering:
    """The transplanted vectors of every candidate as conditions named `source:target`.

    Pair by pair, so that no more than one map is in memory.
    """
    given: dict[str, Vectors] = {"vector": dict(own["target"])}
    for source, target in pairs:
        maps = fit_sides(sides, recipe.map, f"{source}:{target}", shuffled=False, quiet=True)
        given[f"{source}:{target}"] = {c: maps.carry(v, recipe.map.norm) for c, v in own["source"].items()}
    return steering(given, [f"{source}:{target}" for source, target in pairs])
