"""Further models that vectors come from, besides source and target."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from contrans_dist.config import ModelSettings, Recipe
from contrans_dist.errors import UserError
from contrans_dist.evaluation.sides import Vectors
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.from_activations import concept_rows, refine

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
    """The target's instruct model, if the recipe names one."""
    return {} if recipe.target_instruct is None else {INSTRUCT: FurtherModel(recipe.target_instruct, False)}


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


def brought(
    recipe: Recipe,
    name: str,
    source: Further,
    own: Vectors,
    block: int,
    corpus_target: ActivationSet | None = None,
) -> Vectors:
    """The concept vectors of a further source in the target's space: through a map of its own, if it has one.

    Args:
        recipe: The run's.
        name: Of the source.
        source: Its states.
        own: The target's own vectors, by concept.
        block: Of the target, that is steered.
        corpus_target: The target's states of the corpus, for a source that has some too.

    Raises:
        UserError: For a source without a map that is not as wide as the target.
    """
    settings = recipe.concepts
    rows = {c: concept_rows(source.contrast, c, settings.seed, settings.limit) for c in own}
    vectors = {
        concept: refine(source.contrast, positive, negative, concept, settings.method)
        for concept, (positive, negative) in rows.items()
    }
    if source.corpus is None or corpus_target is None:
        return _as_they_are(vectors, own, block, name)
    mapping = _map_of(recipe, source, source.corpus, corpus_target, block)
    return {concept: mapping.carry(vector, recipe.map.norm) for concept, vector in vectors.items()}


def _map_of(
    recipe: Recipe, given: Further, corpus: ActivationSet, corpus_target: ActivationSet, target: int
) -> MapSet:
    """The map from a further source to the block that the recipe steers, from its best or matched block."""
    from contrans_dist.mapping.aligned_rows import join
    from contrans_dist.mapping.block_pairs import all_pairs, upper_part
    from contrans_dist.mapping.driver import fit  # Ray waits until something is fitted

    if recipe.blocks in ("best", "r2"):
        table = all_pairs(join(corpus, corpus_target, "default"))
        if recipe.blocks == "best":
            table = upper_part(table, corpus.n_blocks, corpus_target.n_blocks)
        source = table.best_source(target)
    else:
        source = corpus.blocks[-1]  # the pair's own; those below it are read beside it
    return fit(
        corpus,
        corpus_target,
        f"{source}:{target}",
        recipe.map.options(),
        vectors_at=given.contrast.blocks,
        quiet=True,
    )


def _as_they_are(vectors: Vectors, own: Vectors, block: int, name: str) -> Vectors:
    """Vectors of a model as wide as the target, at the block that is steered, without a map."""
    for concept, vector in vectors.items():
        if vector.d != own[concept].d:
            raise UserError(f"source {name}: {vector.d} wide, the target {own[concept].d}; it needs a map")
    return {
        concept: replace(vector.only(block), model=own[concept].model) for concept, vector in vectors.items()
    }
