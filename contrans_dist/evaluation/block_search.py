"""Which blocks a recipe needs, and which pair of them the map joins: by rule, by name, or by trial."""

from dataclasses import replace
from typing import Any

import numpy as np

from contrans_dist.config import EvaluationSettings, MapSettings, Recipe
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.evaluation.block_candidates import best_sources, cosines
from contrans_dist.evaluation.block_trials import (
    as_conditions,
    choose_for_sides,
    contrast_strengths,
    few_strengths,
    on_contrast,
    selected,
    vectors_of,
)
from contrans_dist.evaluation.sides import Sides, Vectors, refine_sides, save_vectors
from contrans_dist.evaluation.trials import try_out
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.block_pairs import all_pairs, one_block
from contrans_dist.mapping.driver import fit
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.models import matched_depth
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection

_MOST_ITEMS = 96
"""Validation items that they are tried on: enough to rank pairs."""
_MOST_TOKENS = 300
"""Of the text whose perplexity is the budget: the ratio to the base is known to some per cent by then."""
_ENDS_ALIKE = 0.5
"""Share of a corpus that ends as the contrast prompts do, below which that is told."""


def harvested_blocks(recipe: Recipe, side: str, n_blocks: int) -> str:
    """The blocks of `side` that the recipe's map needs, as a `--blocks` specification."""
    spec = recipe.blocks
    if spec in ("best", "r2"):
        return "all"
    if spec == "depth":
        block = matched_depth(n_blocks)
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
        recipe: With the places of its files; `map.blocks` says how the pair is chosen.
        sides: The activation sets.
        vectors: Of both models, `source` and `target` -> concept -> vector.
        out: The run's folder; the map goes to `maps/corpus.safetensors`, trials of pairs to `selection/`.

    Raises:
        UserError: For validation items that are scored too, and where there is no strength to try.
    """
    spec, table, selection = recipe.blocks, None, None
    if spec in ("best", "r2"):
        table = all_pairs(join(sides.corpus_source, sides.corpus_target, "default"))
    if spec == "best":
        selection = _choose(recipe, sides, vectors, out)
        spec = "{}:{}".format(*selection.chosen)
    maps = replace(fit_sides(sides, recipe.map, spec), r2_table=table, selection=selection)
    return _finished(maps, vectors, out)


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
    """Say so where the corpus ends on other tokens than the contrast prompts (jobs/MAPS.md)."""
    corpus, prompts = (
        side.read_columns(["token_id"]).column("token_id").to_numpy()
        for side in (sides.corpus_target, sides.contrast_target)
    )
    share = float(np.isin(corpus, prompts).mean())
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
    vectors = refine_sides(sides, out, method)
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


def tried_on(settings: EvaluationSettings) -> EvaluationSettings:
    """An evaluation as pairs are tried on it: on some of its items, and of the text of its budget."""
    changes: dict[str, Any] = {"sample": min(settings.sample or _MOST_ITEMS, _MOST_ITEMS)}
    if settings.search is not None:
        limit = min(settings.search.limit or _MOST_TOKENS, _MOST_TOKENS)
        changes["search"] = settings.search.model_copy(update={"limit": limit})
    return settings.model_copy(update=changes)


def _choose(recipe: Recipe, sides: Sides, vectors: dict[str, Vectors], out: Location) -> BlockSelection:
    """The pair whose vectors steer validation items best, under the first evaluation that has some; where
    none has, contrast prompts (`on_contrast`).

    Where there is a perplexity budget, pairs and strengths beyond it do not count: a broken model is not
    toxic either.
    """
    settings, candidates = recipe.chosen_on, best_sources(sides, recipe.map, vectors)
    if settings is None:
        return on_contrast(
            recipe.target, candidates, sides.contrast_target, vectors["target"], contrast_strengths(recipe),
            out / "selection", recipe.cluster, recipe.concepts.seed, recipe.concepts.limit,
        )  # fmt: skip
    strengths = few_strengths(settings.strengths)
    if not strengths:
        raise UserError(f"map.blocks: best: benchmark {settings.benchmark} needs a strength other than 0")
    settings, steered = tried_on(settings), as_conditions(vectors_of(candidates), vectors["target"])
    if settings.concepts is not None:
        steered = steered.about(settings.concepts)
    trials = try_out(
        recipe.target, settings, steered, strengths, out / "selection", recipe.cluster, "choose blocks"
    )
    return selected(trials, candidates, "validation items")
