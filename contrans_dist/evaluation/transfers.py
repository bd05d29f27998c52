"""Every way to get a vector into the target: ConTrans, the target's own, L-Cross Modulation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config import Recipe
from contrans_dist.console import note
from contrans_dist.mapping.driver import fit
from contrans_dist.mapping.fit import random_map
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.addresses import file_names
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.from_activations import concept_rows, concepts_in, refine

Vectors = dict[str, ConceptVector]
"""concept -> vector"""


@dataclass(frozen=True)
class Sides:
    """The four activation sets of a run."""

    corpus_source: ActivationSet
    corpus_target: ActivationSet
    contrast_source: ActivationSet
    contrast_target: ActivationSet

    @property
    def concepts(self) -> list[str]:
        return concepts_in(self.contrast_source)


def refine_sides(
    sides: Sides, out: Location, method: str = "mean", seed: int = 0, limit: int | None = None
) -> dict[str, Vectors]:
    """The concept vectors of both models, `source` and `target` -> concept -> vector, saved under `out`."""
    vectors: dict[str, Vectors] = {}
    for side, rows in (("source", sides.contrast_source), ("target", sides.contrast_target)):
        groups = {concept: concept_rows(rows, concept, seed, limit) for concept in sides.concepts}
        vectors[side] = {
            concept: refine(rows, positive, negative, concept, method)
            for concept, (positive, negative) in groups.items()
        }
        save_vectors(vectors[side], out, side)
    return vectors


def save_vectors(vectors: Vectors, out: Location, name: str) -> None:
    """Save as `vectors/<name>/<concept>.safetensors` under `out`."""
    files = file_names(vectors)
    for concept, vector in vectors.items():
        vector.save(out / "vectors" / name / f"{files[concept]}.safetensors")


def condition_vectors(
    recipe: Recipe, sides: Sides, own: dict[str, Vectors], maps: MapSet, conditions: Sequence[str]
) -> dict[str, Vectors]:
    """Vectors in the target's space for each condition that needs its own: condition -> concept -> vector.

    Conditions that cannot be had for these models (`no-map` across widths) are left out, with a note.
    """
    source, target = maps.only_pair()
    norm = recipe.map.norm
    made: dict[str, Vectors] = {}
    for condition in dict.fromkeys(conditions):
        if condition == "vector":
            made[condition] = {c: maps.carry(v, norm) for c, v in own["source"].items()}
        elif condition in ("self-align", "self-modulation"):
            made[condition] = {c: v.only(target) for c, v in own["target"].items()}
        elif condition == "random-map":
            other = replace(maps, maps={(source, target): random_map(maps.maps[source, target])}, shuffled={})
            made[condition] = {c: other.carry(v, norm) for c, v in own["source"].items()}
        elif condition == "no-map":
            if recipe_widths_differ(sides):
                note("condition no-map is left out: the two models differ in width")
                continue
            made[condition] = {c: _as_it_is(v, maps) for c, v in own["source"].items()}
        else:
            made[condition] = {
                c: _lcross(recipe, sides, v, (source, target), unrelated=condition == "lcross-unrelated")
                for c, v in own["source"].items()
            }
    return made


def recipe_widths_differ(sides: Sides) -> bool:
    """Whether source and target have residual streams of different width."""
    return sides.contrast_source.d != sides.contrast_target.d


def _as_it_is(vector: ConceptVector, maps: MapSet) -> ConceptVector:
    """The source's row added to the target unchanged: what L-Cross Modulation calls "without T"."""
    source, target = maps.only_pair()
    values = np.zeros((maps.n_target_blocks, vector.d), np.float32)
    values[target] = vector.at(source)
    step = f"block {source} taken as block {target}, without a map"
    return replace(
        vector, values=values, model=maps.target_model, norms=maps.target_norms, steps=(*vector.steps, step)
    )


def _lcross(
    recipe: Recipe, sides: Sides, vector: ConceptVector, pair: tuple[int, int], unrelated: bool
) -> ConceptVector:
    """v T with T fitted on contrast prompts: this concept's own, or another's that share none with it.

    Least squares with pseudo-inverse and no bias, as in L-Cross Modulation (arXiv 2501.02009).
    """
    concepts = sides.concepts
    fitted_on = (
        concepts[(concepts.index(vector.concept) + 1) % len(concepts)] if unrelated else vector.concept
    )
    rows = _prompt_rows(recipe, sides, fitted_on, without=vector.concept if unrelated else None)
    maps = fit(
        sides.contrast_source, sides.contrast_target, f"{pair[0]}:{pair[1]}", "lcross", rows, quiet=True
    )
    return maps.carry(vector, recipe.map.norm)


def _prompt_rows(recipe: Recipe, sides: Sides, concept: str, without: str | None) -> NDArray[np.int64]:
    """The rows a concept's contrast set is made of, less those that are about `without`."""
    settings = recipe.concepts
    positive, negative = concept_rows(sides.contrast_source, concept, settings.seed, settings.limit)
    rows = np.sort(np.concatenate([positive, negative]))
    if without is None:
        return rows
    about = sides.contrast_source.read_columns(["concept"]).column("concept").to_numpy(zero_copy_only=False)
    return rows[about[rows] != without]
