"""Which blocks a recipe needs, and which pair of them the map joins: by rule, by name, or by validation."""

from dataclasses import replace

import numpy as np

from contrans_dist.config import MapSettings, Recipe
from contrans_dist.console import Progress, note
from contrans_dist.errors import UserError
from contrans_dist.evaluation.sides import Sides, Vectors, refine_sides, save_vectors
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.evaluation.trials import try_out
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.block_pairs import all_pairs, one_block
from contrans_dist.mapping.driver import fit, fit_one_by_one
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.mapping.transplant import cosine
from contrans_dist.models import matched_depth
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection, BlockTable, Pair, TriedPair
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
    return ",".join(map(str, recipe.map.options().blocks_below(block)))


def fit_chosen(recipe: Recipe, sides: Sides, vectors: dict[str, Vectors], out: Location) -> MapSet:
    """Fit the map of the recipe's pair of blocks, and save it with cosines to the target's own vectors.

    Args:
        recipe: With the places of its files; `map.blocks` says how the pair is chosen.
        sides: The activation sets.
        vectors: Of both models, `source` and `target` -> concept -> vector.
        out: The run's folder; the map goes to `maps/corpus.safetensors`, trials of pairs to `selection/`.

    Raises:
        UserError: For validation items that are scored too, and where there is no strength to try.
    """
    spec, table, selection = recipe.blocks, None, None
    if spec == "best":
        table = all_pairs(join(sides.corpus_source, sides.corpus_target, "default"))
        selection = _choose(recipe, sides, vectors, table, out)
        spec = "{}:{}".format(*selection.chosen or table.best())
    maps = replace(fit_sides(sides, recipe.map, spec), r2_table=table, selection=selection)
    return _finished(maps, vectors, out)


def fit_sides(sides: Sides, settings: MapSettings, blocks: str, address: str | None = None) -> MapSet:
    """The map of these blocks on the corpus with a recipe's options, for vectors from the contrast texts."""
    return fit(
        sides.corpus_source,
        sides.corpus_target,
        blocks,
        settings.options(),
        address=address,
        vectors_at=sides.contrast_source.blocks,
    )


def reduce_sides(
    sides: Sides,
    settings: MapSettings,
    out: Location,
    method: str = "mean",
    address: str | None = None,
) -> tuple[MapSet, Vectors]:
    """Vectors of every concept, the map, and the vectors through it, all saved under `out`.

    Args:
        sides: The activation sets.
        settings: Of the map. `blocks: best` is the pair of highest validation R2, none is matched depth.
        out: For `vectors/` and `maps/`.
        method: Of the concept vectors, `mean` or `pca`.
        address: Of the Ray cluster, as `--address` has it.

    Returns:
        The map, and the source's vectors through it, by concept.

    Raises:
        UserError: For more than one pair of blocks.
    """
    vectors = refine_sides(sides, out, method)
    maps = fit_sides(sides, settings, settings.blocks or "depth", address=address)
    maps = _finished(maps, vectors, out)
    carried = {concept: maps.carry(vector, settings.norm) for concept, vector in vectors["source"].items()}
    save_vectors(carried, out, "vector")
    return maps, carried


def _finished(maps: MapSet, vectors: dict[str, Vectors], out: Location) -> MapSet:
    """Say how near the mapped vectors come to the target's own, and save the map."""
    source, target = pair = maps.only_pair()
    cosines = {
        concept: cosine(maps.carry(vector).at(target), vectors["target"][concept].at(target))
        for concept, vector in vectors["source"].items()
    }
    maps = replace(maps, cosines={pair: cosines})
    maps.save(out / "maps" / "corpus.safetensors")
    mapping, mean = maps.maps[pair], np.mean(list(cosines.values()))
    r2 = "" if mapping.r2_test is None else f"held-out R2 {mapping.r2_test:.3f}, "
    note(
        f"map {source} -> {target}: {r2}rank {mapping.rank}, condition number "
        f"{mapping.condition_number:.3g}, mean cosine to the target's own {mean:.2f}"
    )
    return maps


def candidates(table: BlockTable) -> list[Pair]:
    """Pairs worth trying: all where they are few, else each target block with its best source block."""
    if len(table.source) * len(table.target) <= _MOST_PAIRS:
        return [(source, target) for source in table.source for target in table.target]
    return [(table.best_source(target), target) for target in table.target]


def _choose(
    recipe: Recipe, sides: Sides, vectors: dict[str, Vectors], table: BlockTable, out: Location
) -> BlockSelection:
    """The pair whose vectors steer validation items best, under the first evaluation that has some; by R2
    where none has.

    R2 alone proves little: a block can be predicted well and yet take no steering at all. Where there is a
    perplexity budget, pairs and strengths beyond it do not count: a broken model is not toxic either.
    """
    settings = recipe.chosen_on
    if settings is None:
        source, target = table.best()
        note(f"blocks {source} -> {target} chosen by R2: no evaluation has validation items")
        return BlockSelection(criterion="validation R2", chosen=(source, target))
    strengths = few_strengths(settings.strengths)
    if not strengths:
        raise UserError(f"map.blocks: best: benchmark {settings.benchmark} needs a strength other than 0")
    pairs = {f"{source}:{target}": (source, target) for source, target in candidates(table)}
    steered = _candidate_steering(recipe, sides, vectors, pairs)
    if settings.concepts is not None:
        steered = steered.about(settings.concepts)
    trials = try_out(
        recipe.target, settings, steered, strengths, out / "selection", recipe.cluster, "choose blocks"
    )
    tried = [trial for trial in trials.candidates if trial.strength != 0]
    best = max(
        trials.within(tried) or tried,
        key=lambda trial: (trials.gain(trial), table.at(pairs[trial.condition]), -abs(trial.strength)),
    )
    source, target = pairs[best.condition]
    note(
        f"blocks {source} -> {target} chosen on validation items: {trials.criterion} {best.score:.2f} at "
        f"strength {best.strength:g}"
    )

    def of_pair(trial: Trial) -> TriedPair:
        source, target = pairs[trial.condition]
        outcome = trial.model_dump(exclude={"condition"})
        return TriedPair(source=source, target=target, **outcome)

    return BlockSelection(
        criterion=trials.criterion,
        candidates=[of_pair(trial) for trial in tried],
        chosen=(source, target),
        best=of_pair(best),
    )


def few_strengths(strengths: tuple[float, ...]) -> tuple[float, ...]:
    """Every second strength, the largest among them: enough to rank pairs."""
    return tuple(sorted(strength for strength in strengths if strength != 0))[::-1][::2]


def _candidate_steering(
    recipe: Recipe, sides: Sides, vectors: dict[str, Vectors], pairs: dict[str, Pair]
) -> Steering:
    """The transplanted vectors of every candidate as conditions, by the names of the pairs."""
    given: dict[str, Vectors] = {"vector": dict(vectors["target"])}
    options = recipe.map.options()
    aligned = join(sides.corpus_source, sides.corpus_target, options.protocol)
    fitted = fit_one_by_one(
        aligned, list(pairs.values()), options, shuffled=False, vectors_at=sides.contrast_source.blocks
    )
    with Progress("fit maps", len(pairs), "pairs of blocks") as progress:
        for name, maps in zip(pairs, fitted, strict=True):
            given[name] = {
                concept: maps.carry(vector, recipe.map.norm) for concept, vector in vectors["source"].items()
            }
            progress.advance(1)
    return steering(given, list(pairs))
