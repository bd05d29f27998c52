"""What transplanted vectors are compared with: further sources, several concepts at once, other systems."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from contrans_dist.config import EvaluationSettings, ModelSettings, Recipe
from contrans_dist.errors import UserError
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.transfers import Sides, Vectors
from contrans_dist.mapping.driver import all_pairs, fit, join
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.from_activations import concept_rows, refine

INSTRUCT = "target-instruct"
"""Name of the further source that is the target after alignment training; its vectors need no map."""
_FROM = "from:"
COMBINED = ("sum", "orthogonal", "averaged")
"""Conditions that are made of other conditions' vectors."""


@dataclass(frozen=True)
class Further:
    """A further source: its states of the contrast texts and, where it is mapped, of the corpus."""

    contrast: ActivationSet
    corpus: ActivationSet | None


def further_sources(recipe: Recipe) -> dict[str, tuple[ModelSettings, bool]]:
    """Models that vectors come from besides source and target, by name, and whether they take a map.

    Only those that a condition needs.
    """
    wanted = conditions_of(recipe)
    needed = {name.removeprefix(_FROM) for name in wanted if name.startswith(_FROM)}
    unknown = sorted(needed - set(recipe.sources))
    if unknown:
        known = ", ".join(recipe.sources) or "none"
        raise UserError(f"condition {_FROM}{unknown[0]}: no such entry under `sources`; there are {known}")
    if "averaged" in wanted:
        needed |= {name for name, source in recipe.sources.items() if source.map}
    found = {
        name: (ModelSettings(**source.model_dump(exclude={"map"})), source.map)
        for name, source in recipe.sources.items()
        if name in needed
    }
    if "self-align" in wanted and recipe.target_instruct is not None:
        found[INSTRUCT] = (recipe.target_instruct, False)
    return found


def conditions_of(recipe: Recipe) -> set[str]:
    """Every condition that an evaluation of the recipe names."""
    return {condition for settings in recipe.evaluations.values() for condition in settings.conditions}


def further_vectors(
    recipe: Recipe, sides: Sides, sources: dict[str, Further], maps: MapSet
) -> dict[str, Vectors]:
    """The vectors of further sources in the target's space: condition -> concept -> vector."""
    made: dict[str, Vectors] = {}
    for name, source in sources.items():
        own = _refined(recipe, sides, source.contrast)
        if name == INSTRUCT:
            made["self-align"] = _as_they_are(own, maps, name)
        elif source.corpus is None:
            made[_FROM + name] = _as_they_are(own, maps, name)
        else:
            mapping = _map_of(recipe, sides, source, source.corpus, maps)
            made[_FROM + name] = {c: mapping.carry(v, recipe.map.norm) for c, v in own.items()}
    return made


def _refined(recipe: Recipe, sides: Sides, contrast: ActivationSet) -> Vectors:
    settings = recipe.concepts
    rows = {c: concept_rows(contrast, c, settings.seed, settings.limit) for c in sides.concepts}
    return {
        concept: refine(contrast, positive, negative, concept, settings.method)
        for concept, (positive, negative) in rows.items()
    }


def _map_of(recipe: Recipe, sides: Sides, given: Further, corpus: ActivationSet, maps: MapSet) -> MapSet:
    """The map from a further source to the block that the recipe steers, from its best or matched block."""
    _, target = maps.only_pair()
    if recipe.blocks != "best":
        source = corpus.blocks[-1]  # the pair's own; those below it are read beside it
    else:
        table = all_pairs(join(corpus, sides.corpus_target, "default"))
        source = table.source[int(np.nanargmax(table.r2[:, table.target.index(target)]))]
    return fit(
        corpus,
        sides.corpus_target,
        f"{source}:{target}",
        recipe.map.protocol,
        options=recipe.map.fitting(),
        source_blocks=recipe.map.source_blocks,
        vectors_at=given.contrast.blocks,
        quiet=True,
    )


def _as_they_are(own: Vectors, maps: MapSet, name: str) -> Vectors:
    """Vectors of a model as wide as the target, at the block that is steered, without a map."""
    _, target = maps.only_pair()
    for vector in own.values():
        width = len(next(iter(maps.maps.values())).bias)
        if vector.d != width:
            raise UserError(f"source {name}: {vector.d} wide, the target {width}; it needs a map")
    return {concept: replace(vector.only(target), model=maps.target_model) for concept, vector in own.items()}


def combined_vectors(given: dict[str, Vectors], conditions: Sequence[str]) -> dict[str, Vectors]:
    """Conditions made of the transplanted vectors: condition -> concept -> vector.

    `sum`: all concepts' vectors added, the same for every concept. `orthogonal`: the same after they were
    made orthogonal to each other. `averaged`: each concept's mean over the source and every further source
    that came through a map.
    """
    made: dict[str, Vectors] = {}
    main = given["vector"]
    for condition in conditions:
        if condition == "averaged":
            through = [
                vectors
                for name, vectors in given.items()
                if name.startswith(_FROM) and all(v.map_text_hashes.size for v in vectors.values())
            ]
            families = [main, *through]
            made[condition] = {
                c: _joined([family[c] for family in families], 1 / len(families), "mean over sources")
                for c in main
            }
        elif condition in ("sum", "orthogonal"):
            parts = list(main.values())
            if condition == "orthogonal":
                parts = orthogonalised(parts)
            made[condition] = {
                c: replace(_joined(parts, 1.0, f"{condition} of {', '.join(main)}"), concept=c) for c in main
            }
    return made


def orthogonalised(vectors: Sequence[ConceptVector]) -> list[ConceptVector]:
    """The vectors made orthogonal at each block they carry, each as near to itself as can be.

    Löwdin's symmetric way, U V^T of the SVD of the unit rows: no vector goes first. Lengths are kept.
    """
    values = np.stack([vector.values.astype(np.float64) for vector in vectors])  # [concepts, blocks, d]
    made = np.zeros_like(values)
    for block in vectors[0].blocks:
        rows = values[:, block]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        left, _, right = np.linalg.svd(rows / lengths, full_matrices=False)
        made[:, block] = lengths * (left @ right)
    return [
        replace(vector, values=rows.astype(np.float32), shuffled_map=None)
        for vector, rows in zip(vectors, made, strict=True)
    ]


def _joined(vectors: Sequence[ConceptVector], scale: float, step: str) -> ConceptVector:
    first = vectors[0]
    total = np.stack([vector.values for vector in vectors]).sum(axis=0, dtype=np.float64)
    return replace(
        first,
        values=np.asarray(scale * total, np.float32),
        shuffled_map=None,
        text_hashes=np.unique(np.concatenate([vector.text_hashes for vector in vectors])),
        map_text_hashes=np.unique(np.concatenate([vector.map_text_hashes for vector in vectors])),
        steps=(*first.steps, step),
    )


def systems_of(recipe: Recipe, settings: EvaluationSettings) -> list[System]:
    """The conditions of an evaluation that are no vectors. Raises UserError naming what one of them lacks."""
    found = []
    for condition in settings.conditions:
        if condition == "align-training":
            if recipe.target_instruct is None:
                raise UserError("condition align-training: the recipe needs `target_instruct`")
            found.append(System(condition, recipe.target_instruct))
        elif condition == "inst-align":
            if not settings.instruction:
                raise UserError("condition inst-align: the evaluation needs an `instruction`")
            found.append(System(condition, recipe.target, instruction=settings.instruction))
        elif condition == "proxy-tuning":
            if recipe.source_base is None:
                raise UserError("condition proxy-tuning: the recipe needs `source_base`")
            found.append(System(condition, recipe.target, guides=(recipe.source, recipe.source_base)))
    return found
