"""Further models that vectors come from, besides source and target."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from contrans_dist.config import ModelSettings, Recipe
from contrans_dist.errors import UserError
from contrans_dist.evaluation.sides import Sides, Vectors, refined
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.activation_set import ActivationSet

FROM = "from:"
INSTRUCT = "target-instruct"
"""Name of the further source that is the target after alignment training; its vectors need no map."""


class FurtherModel(NamedTuple):
    """A further model that vectors come from, and whether they go through a map of its own."""

    settings: ModelSettings
    mapped: bool


@dataclass(frozen=True)
class Further:
    """A further source: its states of the contrast texts and, where it is mapped, of the corpus."""

    contrast: ActivationSet
    corpus: ActivationSet | None


def no_sources(_recipe: Recipe, _name: str) -> dict[str, FurtherModel]:
    """Source and target alone."""
    return {}


def instruct_source(recipe: Recipe, _name: str) -> dict[str, FurtherModel]:
    """The target's instruct model, if the recipe names one; none for a target that is steered with its own
    vectors."""
    if recipe.target_instruct is None or recipe.source is None:
        return {}
    return {INSTRUCT: FurtherModel(recipe.target_instruct, False)}


def mapped_sources(recipe: Recipe, _name: str) -> dict[str, FurtherModel]:
    """All further sources that have a map of their own."""
    return {name: _source(recipe, name) for name, source in recipe.sources.items() if source.map}


def named_source(recipe: Recipe, name: str) -> dict[str, FurtherModel]:
    """The further source of `from:<source>`. Raises UserError when the recipe has none of that name."""
    source = name.removeprefix(FROM)
    if source not in recipe.sources:
        known = ", ".join(recipe.sources) or "none"
        raise UserError(f"condition {name}: no such entry under `sources`; there are {known}")
    return {source: _source(recipe, source)}


def _source(recipe: Recipe, name: str) -> FurtherModel:
    source = recipe.sources[name]
    return FurtherModel(ModelSettings(**source.model_dump(exclude={"map"})), source.map)


def brought(recipe: Recipe, sides: Sides, maps: MapSet, name: str, source: Further) -> Vectors:
    """The concept vectors of a further source in the target's space: through a map of its own, if it has one.

    Raises UserError for one without a map that is not as wide as the target.
    """
    settings = recipe.concepts
    vectors = refined(source.contrast, sides.concepts, settings.method, settings.seed, settings.limit)
    if source.corpus is None:
        return _as_they_are(vectors, maps, name)
    mapping = _map_of(recipe, sides, source, source.corpus, maps)
    return {concept: mapping.carry(vector, recipe.map.norm) for concept, vector in vectors.items()}


def _map_of(recipe: Recipe, sides: Sides, given: Further, corpus: ActivationSet, maps: MapSet) -> MapSet:
    """The map from a further source to the block that the recipe steers, from its best or matched block."""
    from contrans_dist.mapping.aligned_rows import join
    from contrans_dist.mapping.block_pairs import UPPER, all_pairs
    from contrans_dist.mapping.driver import fit  # Ray waits until something is fitted
    from contrans_dist.models import upper_blocks  # and torch

    _, target = maps.only_pair()
    if recipe.blocks in ("best", "r2"):
        table = all_pairs(join(corpus, sides.corpus_target, "default"))
        if recipe.blocks == "best":
            table = table.only(upper_blocks(corpus.n_blocks, UPPER), [target])
        source = table.best_source(target)
    else:
        source = corpus.blocks[-1]  # the pair's own; those below it are read beside it
    return fit(
        corpus,
        sides.corpus_target,
        f"{source}:{target}",
        recipe.map.options(),
        vectors_at=given.contrast.blocks,
        quiet=True,
    )


def _as_they_are(vectors: Vectors, maps: MapSet, name: str) -> Vectors:
    """Vectors of a model as wide as the target, at the block that is steered, without a map."""
    _, target = maps.only_pair()
    for vector in vectors.values():
        width = len(next(iter(maps.maps.values())).bias)
        if vector.d != width:
            raise UserError(f"source {name}: {vector.d} wide, the target {width}; it needs a map")
    return {
        concept: replace(vector.only(target), model=maps.target_model) for concept, vector in vectors.items()
    }
