"""Ways to get a vector into the target: ConTrans, the target's own, L-Cross Modulation, further sources."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config import Recipe
from contrans_dist.console import note
from contrans_dist.evaluation.sides import Sides, Vectors, lcross_maps
from contrans_dist.evaluation.sources import FROM, INSTRUCT, Further, brought
from contrans_dist.mapping.linear_map import random_map
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.from_activations import concept_rows


@dataclass(frozen=True)
class Fitted:
    """Both models of a run, and the map between them."""

    sides: Sides
    maps: MapSet


@dataclass(frozen=True)
class Material:
    """What a run has made by the time that its conditions get their vectors."""

    recipe: Recipe
    vectors: Mapping[str, Vectors]
    """The concept vectors of both models, `source` and `target`; of the target alone without a source."""
    block: int
    """Of the target, that is steered."""
    fitted: Fitted | None = None
    """None without a source."""
    further: Mapping[str, Further] = field(default_factory=dict)
    """By name, `INSTRUCT` among them."""
    _through: dict[str, Vectors] = field(default_factory=dict)

    @property
    def sides(self) -> Sides:
        assert self.fitted is not None  # what needs a source is refused without one (conditions_of)
        return self.fitted.sides

    @property
    def maps(self) -> MapSet:
        assert self.fitted is not None
        return self.fitted.maps

    def from_source(self, name: str) -> Vectors:
        """The vectors of a further source in the target's space; a map of its own is fitted once."""
        if name not in self._through:
            self._through[name] = brought(self.recipe, self.sides, self.maps, name, self.further[name])
        return self._through[name]


VectorsMaker = Callable[[Material, str], Vectors | None]
"""From what a run has made and the condition's name; None where the condition cannot be had."""


# -- conditions --------------------------------------------------------------------------------------


def carried(material: Material, _name: str) -> Vectors:
    """The source's vectors through the map: ConTrans."""
    norm = material.recipe.map.norm
    return {c: material.maps.carry(v, norm) for c, v in material.vectors["source"].items()}


def targets_own(material: Material, _name: str) -> Vectors:
    """The target's own vectors, at the block that is steered."""
    return {c: v.only(material.block) for c, v in material.vectors["target"].items()}


def aligned(material: Material, name: str) -> Vectors:
    """The vectors of the target's instruct model where the recipe names one, else the target's own."""
    return material.from_source(INSTRUCT) if INSTRUCT in material.further else targets_own(material, name)


def through_random_map(material: Material, _name: str) -> Vectors:
    """The source's vectors through a random map of the same size."""
    maps, pair = material.maps, material.maps.only_pair()
    other = replace(maps, maps={pair: random_map(maps.maps[pair])}, shuffled={})
    return {c: other.carry(v, material.recipe.map.norm) for c, v in material.vectors["source"].items()}


def unmapped(material: Material, name: str) -> Vectors | None:
    """The source's vectors as they are; None, with a note, for models of different widths."""
    if material.sides.contrast_source.d != material.sides.contrast_target.d:
        note(f"condition {name} is left out: the two models differ in width")
        return None
    return {c: _as_it_is(v, material.maps) for c, v in material.vectors["source"].items()}


def lcross_own(material: Material, _name: str) -> Vectors:
    """Through maps fitted on each concept's own contrast prompts."""
    return {c: _lcross(material, v, unrelated=False) for c, v in material.vectors["source"].items()}


def lcross_unrelated(material: Material, _name: str) -> Vectors:
    """Through maps fitted on another concept's contrast prompts."""
    return {c: _lcross(material, v, unrelated=True) for c, v in material.vectors["source"].items()}


def from_source(material: Material, name: str) -> Vectors:
    """`from:<source>`: the vectors of a further source."""
    return material.from_source(name.removeprefix(FROM))


# -- vectors and maps --------------------------------------------------------------------------------


def _as_it_is(vector: ConceptVector, maps: MapSet) -> ConceptVector:
    """The source's row added to the target unchanged: what L-Cross Modulation calls "without T"."""
    source, target = maps.only_pair()
    values = np.zeros((maps.n_target_blocks, vector.d), np.float32)
    values[target] = vector.at(source)
    step = f"block {source} taken as block {target}, without a map"
    return replace(
        vector, values=values, model=maps.target_model, norms=maps.target_norms, steps=(*vector.steps, step)
    )


def _lcross(material: Material, vector: ConceptVector, unrelated: bool) -> ConceptVector:
    """v T with T fitted on contrast prompts: this concept's own, or another's that share none with it.

    Least squares with pseudo-inverse and no bias, as in L-Cross Modulation (arXiv 2501.02009).
    """
    recipe, sides, pair = material.recipe, material.sides, material.maps.only_pair()
    concepts, concept = sides.concepts, vector.concept
    fitted_on = concepts[(concepts.index(concept) + 1) % len(concepts)] if unrelated else concept
    rows = _prompt_rows(recipe, sides, fitted_on, without=concept if unrelated else None)
    return lcross_maps(sides, pair, rows).carry(vector, recipe.map.norm)


def _prompt_rows(recipe: Recipe, sides: Sides, concept: str, without: str | None) -> NDArray[np.int64]:
    """The rows a concept's contrast set is made of, less those that are about `without`."""
    settings = recipe.concepts
    positive, negative = concept_rows(sides.contrast_source, concept, settings.seed, settings.limit)
    rows = np.sort(np.concatenate([positive, negative]))
    if without is None:
        return rows
    about = sides.contrast_source.read_columns(["concept"]).column("concept").to_numpy(zero_copy_only=False)
    return rows[about[rows] != without]
