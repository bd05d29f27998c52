"""Which blocks a recipe needs, and which pair of them the map joins: by rule, by name, or by trial."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config import MapSettings, Recipe
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.evaluation.block_candidates import best_sources, cosines
from contrans_dist.evaluation.block_trials import choose_for_sides, selected, try_blocks
from contrans_dist.evaluation.sides import Sides, Vectors, refine_sides, save_vectors
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.block_pairs import all_pairs, one_block
from contrans_dist.mapping.driver import fit
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.models import matched_depth
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection

_ENDS_ALIKE = 0.5
"""Share of a corpus that ends as the contrast prompts do, below which that is told."""


def harvested_blocks(recipe: Recipe, side: str, n_blocks: int) -> str:
    """The blocks of `side` that the recipe's map needs, as a `--blocks` specification; without a source the
    one that is steered, or all to choose it from."""
    spec = recipe.blocks
    if spec in ("best", "r2"):
        return "all"
    if spec == "depth":
        block = matched_depth(n_blocks)
    elif recipe.source is None:
        block = one_block(spec, n_blocks, "map.blocks")
    else:
        left, mark, right = spec.partition(":")
        if not mark:
            raise UserError(
                f"map.blocks: expected depth, best, r2, or source:target such as 24:30, found {spec!r}"
            )
        block = one_block(left if side == "source" else right, n_blocks, "map.blocks")
    if side == "target":
        return str(block)
    return ",".join(map(str, recipe.map.options().blocks_below(block)))


def fit_chosen(recipe: Recipe, sides: Sides, vectors: dict[str, Vectors], out: Location) -> MapSet:
    """Fit the map of the recipe's pair of blocks, and save it with cosines to the target's own vectors.

    Args:
        recipe: With the places of its files; `map.blocks` says how the pair is chosen (`check_choice`).
        sides: The activation sets.
        vectors: Of both models, `source` and `target` -> concept -> vector.
        out: The run's folder; the map goes to `maps/corpus.safetensors`, trials of pairs to `selection/`.
    """
    if recipe.blocks != "best":
        return _finished(fit_sides(sides, recipe.map, recipe.blocks), vectors, out)
    table = all_pairs(join(sides.corpus_source, sides.corpus_target, "default"))
    selection = _choose(recipe, sides, vectors, out)
    maps = fit_sides(sides, recipe.map, "{}:{}".format(*selection.chosen))
    return _finished(replace(maps, r2_table=table, selection=selection), vectors, out)


def fit_sides(sides: Sides, settings: MapSettings, blocks: str, address: str | None = None) -> MapSet:
    """The map of these blocks on the corpus with a recipe's options, for vectors from the contrast texts."""
    _tell_ends(sides)
    return fit(
        sides.corpus_source,
        sides.corpus_target,
        blocks,
        settings.options(),
        address=address,
        vectors_at=sides.contrast_source.blocks,
    )


def _tell_ends(sides: Sides) -> None:
    """Say so where the corpus ends on other tokens than the contrast prompts, in either model
    (jobs/MAPS.md); nothing of rows that are the mean of a prompt, which have no token."""

    def ends(rows: ActivationSet) -> NDArray[np.int32]:
        found: NDArray[np.int32] = rows.read_columns(["token_id"]).column("token_id").to_numpy()
        return found

    if any((ends(rows) < 0).any() for rows in (sides.corpus_source, sides.contrast_source)):
        return
    share = min(
        float(np.isin(ends(corpus), ends(prompts)).mean())
        for corpus, prompts in (
            (sides.corpus_source, sides.contrast_source),
            (sides.corpus_target, sides.contrast_target),
        )
    )
    if share < _ENDS_ALIKE:
        note(
            f"{share:.0%} of the corpus end on a token that contrast prompts end on: a map carries more over "
            "where most do (corpus.template, or corpus.cut: after)"
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
        settings: Of the map. `blocks: best` is the pair whose vectors steer contrast prompts best; no
            `blocks` is matched depth.
        out: For `vectors/` and `maps/`.
        method: Of the concept vectors, `mean` or `pca`.
        address: Of the Ray cluster, as `--address` has it.

    Returns:
        The map, and the source's vectors through it, by concept.

    Raises:
        UserError: For more than one pair of blocks.
    """
    vectors = refine_sides(sides.contrast, out, method)
    spec, selection = settings.blocks or "depth", None
    if spec == "best":
        selection = choose_for_sides(sides, settings, vectors, out, address)
        spec = "{}:{}".format(*selection.chosen)
    maps = replace(fit_sides(sides, settings, spec, address=address), selection=selection)
    maps = _finished(maps, vectors, out)
    carried = {concept: maps.carry(vector, settings.norm) for concept, vector in vectors["source"].items()}
    save_vectors(carried, out, "vector")
    return maps, carried


def _finished(maps: MapSet, vectors: dict[str, Vectors], out: Location) -> MapSet:
    """Say how near the mapped vectors come to the target's own, and save the map."""
    source, target = pair = maps.only_pair()
    carried = {concept: maps.carry(vector) for concept, vector in vectors["source"].items()}
    near = cosines(carried, vectors["target"], target)
    maps = replace(maps, cosines={pair: near})
    maps.save(out / "maps" / "corpus.safetensors")
    mapping, mean = maps.maps[pair], np.mean(list(near.values()))
    r2 = "" if mapping.r2_test is None else f"held-out R2 {mapping.r2_test:.3f}, "
    note(
        f"map {source} -> {target}: {r2}rank {mapping.rank}, condition number "
        f"{mapping.condition_number:.3g}, mean cosine to the target's own {mean:.2f}"
    )
    return maps


def _choose(recipe: Recipe, sides: Sides, vectors: dict[str, Vectors], out: Location) -> BlockSelection:
    """The pair whose vectors steer best what they are tried on."""
    candidates = best_sources(sides, recipe.map, vectors)
    carried = {candidate.name: candidate.carried for candidate in candidates}
    tried = try_blocks(recipe, carried, vectors["target"], sides.contrast_target, out)
    return selected(tried, candidates)
