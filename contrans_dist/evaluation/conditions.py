"""The registry of conditions: each is one entry, and nothing else in the program names it.

A condition is something that an evaluation scores: a vector that is added to the target, a control that shows
what an effect must exceed, a yardstick, or a baseline that is no vector. Read by reports, so without torch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from contrans_dist.config import EvaluationSettings, Recipe
from contrans_dist.errors import UserError, meant
from contrans_dist.evaluation import baselines, combined, derived, sources, transfers
from contrans_dist.evaluation.baselines import Available, System
from contrans_dist.evaluation.derived import RowMaker
from contrans_dist.evaluation.sides import Vectors
from contrans_dist.evaluation.sources import FurtherModel
from contrans_dist.evaluation.transfers import Material, VectorsMaker

Role = Literal["tested", "variant", "yardstick", "baseline", "control"]
"""What a score may be compared with: `tested` is the effect itself, `variant` another form of it; `yardstick`
is the target's own vector, `baseline` no steering or no vector; a `control` must be exceeded."""
Look = tuple[str, str, Any]
"""Colour, marker, and dash in any form that matplotlib takes."""


@dataclass(frozen=True)
class Condition:
    """One condition. Exactly one of `vectors`, `row` and `system` makes it; the base has none of them."""

    name: str
    """As recipes, tables and `metrics.json` have it."""
    title: str
    phrase: str
    """As it stands inside a sentence."""
    role: Role
    meaning: str
    look: Look
    vectors: VectorsMaker | None = None
    """Its vectors in the target's space, from what a run has made; None from it where they cannot be had."""
    row: RowMaker | None = None
    """What is added for a concept, where it follows from the vectors under `vector` alone."""
    system: Callable[[Available], System | None] | None = None
    """Who answers instead; None from it where what that takes is not there. Its rows say strength 1."""
    sources: Callable[[Recipe, str], dict[str, FurtherModel]] = sources.no_sources
    """The further models that its vectors come from, by name."""
    requires: str = ""
    """What must be there for it, in words."""
    as_long: bool = False
    """Brought to the norm of the condition under test: a control that is shorter would prove little."""
    drawn: bool = False
    """A random direction of its own for every item: a single one proves little. Where transplanted emotions
    reached a mean Token Acc of .85, single directions reached 0 to .85 (two trained models, TinyStories)."""
    same_width: bool = False
    """Possible only for models whose residual streams are equally wide."""
    several: bool = False
    """Possible only where there are several concepts."""
    without_source: bool = False
    """Possible in a recipe that has no source: nothing of it goes through a map."""
    caveat: str = ""
    """A sentence that follows every verdict in its favour."""

    @property
    def no_vector(self) -> bool:
        """Another model or prompt, to which nothing is added: it has no strength."""
        return self.system is not None


CONDITIONS = [
    Condition(
        "vector", "Transplanted vector", "the transplanted vector", "tested",
        "the source's concept vector, sent through the map and added to the target",
        ("#0072b2", "o", "-"), vectors=transfers.carried,
    ),
    Condition(
        "lcross-own", "L-Cross, own concept", "the L-Cross vector", "tested",
        "the map fitted on the concept's own contrast prompts; close to memorising the target's own vector",
        ("#d55e00", "P", "-"), vectors=transfers.lcross_own,
        caveat="Its map was fitted on the concept's own prompts, so it is nearly the target's own vector "
        "again: no transfer.",
    ),
    Condition(
        "lcross-unrelated", "L-Cross, other concepts", "the L-Cross vector of unrelated prompts", "variant",
        "the map fitted on another concept's contrast prompts",
        ("#8a5a00", "v", (0, (6, 2))), vectors=transfers.lcross_unrelated,
        requires="a second concept", several=True,
    ),
    Condition(
        "averaged", "Averaged over sources", "the vector averaged over sources", "variant",
        "the mean of the vectors that several sources give, each through a map of its own",
        ("#0f7a9c", "h", (0, (8, 2))), vectors=combined.averaged, sources=sources.mapped_sources,
    ),
    Condition(
        "sum", "Sum of concepts", "the sum of the concepts' vectors", "variant",
        "the vectors of all concepts added together",
        ("#8c510a", "p", (0, (5, 1, 1, 1, 1, 1))), vectors=combined.summed,
    ),
    Condition(
        "orthogonal", "Orthogonal sum", "the sum of orthogonal vectors", "variant",
        "the same sum after the vectors were made orthogonal to each other",
        ("#a63d57", "d", (0, (2, 1))), vectors=combined.orthogonal,
    ),
    Condition(
        "self-align", "Target's own vector", "the target's own vector", "yardstick",
        "the concept vector made from the target itself, or from its instruct model",
        ("#009e73", "s", "--"), vectors=transfers.aligned, sources=sources.instruct_source,
        without_source=True,
    ),
    Condition(
        "self-modulation", "Self-modulation", "self-modulation", "yardstick",
        "the target's own vector, as L-Cross Modulation applies it",
        ("#5e8c31", "*", (0, (7, 2, 2, 2))), vectors=transfers.targets_own, without_source=True,
    ),
    Condition(
        "align-training", "Align-training", "alignment training", "baseline",
        "the target after alignment training: another model, to which nothing is added",
        ("#1c1c1a", "s", (0, (9, 3))), system=baselines.align_training,
        requires="`target_instruct` in the recipe", without_source=True,
    ),
    Condition(
        "inst-align", "Inst-align", "the instruction", "baseline",
        "the target with an instruction before every prompt, to which nothing is added",
        ("#7a4f9e", "^", (0, (9, 3, 2, 3))), system=baselines.inst_align,
        requires="an `instruction` in the evaluation", without_source=True,
    ),
    Condition(
        "proxy-tuning", "Proxy-tuning", "proxy-tuning", "baseline",
        "the target's logits plus what alignment training changed in the source's",
        ("#a8480f", "D", (0, (5, 3))), system=baselines.proxy_tuning, requires="`source_base` in the recipe",
    ),
    Condition(
        "random", "Random direction", "a random direction", "control",
        "a random direction of the same norm, another for each scenario",
        ("#6f6f6f", "X", ":"), row=derived.main_row, drawn=True, as_long=True, without_source=True,
    ),
    Condition(
        "shuffled-map", "Shuffled map", "the shuffled map", "control",
        "the same vector through the map with its rows shuffled",
        ("#c27c00", "^", "-."), row=derived.shuffled_row, as_long=True,
    ),
    Condition(
        "other-concept", "Another concept", "another concept's vector", "control",
        "the vector of another concept",
        ("#b04f8c", "D", (0, (4, 1.5, 1, 1.5))), row=derived.other_row, without_source=True,
        requires="a second concept", several=True,
    ),
    Condition(
        "random-map", "Random map", "a random map", "control",
        "the same vector through a random map",
        ("#44403c", "<", (0, (1, 1))), vectors=transfers.through_random_map, as_long=True,
    ),
    Condition(
        "no-map", "Without a map", "the unmapped vector", "control",
        "the source's vector as it is, where the widths agree",
        ("#7a5195", ">", (0, (3, 3))), vectors=transfers.unmapped, requires="models of one width",
        same_width=True,
    ),
]  # fmt: skip
BASE = Condition(
    "base", "No steering", "no steering", "baseline", "the target as it is", ("#8a8a86", "o", (0, (1, 2)))
)
_BY_NAME = {condition.name: condition for condition in [*CONDITIONS, BASE]}
_SPARE = [("#3d7ea6", "h"), ("#8c510a", "p"), ("#5e8c31", "*"), ("#a63d57", "d")]
"""Looks of conditions that have no entry of their own."""


def condition_of(name: str) -> Condition:
    """The condition of a name; of one that is not known, a variant that only a report can show."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    look = (*_SPARE[sum(name.encode()) % len(_SPARE)], (0, (2, 1)))
    source = name.removeprefix(sources.FROM)
    if source == name:
        return Condition(name, name, name, "variant", "", look)
    return Condition(
        name, f"From {source}", f"the vector from {source}", "variant",
        f"the concept vector of the further source {source}",
        look, vectors=transfers.from_source, sources=sources.named_source,
    )  # fmt: skip


def known(name: str, where: str) -> Condition:
    """The condition of a name that somebody asks for. Raises UserError, naming the nearest, for any other."""
    condition = condition_of(name)
    if condition in CONDITIONS or condition.vectors is not None:
        return condition
    names = [*(entry.name for entry in CONDITIONS), f"{sources.FROM}<source>"]
    raise UserError(f"{where}: no condition {name!r}; {meant(name, names)}")


def condition_order(name: str) -> tuple[float, str]:
    """Sort key: as in the registry; those without an entry of their own end the variants."""
    order = list(_BY_NAME)
    return (order.index(name) if name in order else order.index("orthogonal") + 0.5, name)


def reference_of(names: Iterable[str]) -> str | None:
    """The condition under test, against which the others are tested; None where there is none.

    `vector`, else the first that is neither base nor a control; one that is no vector only for want of
    another.
    """
    tried = [name for name in names if name != BASE.name and condition_of(name).role != "control"]
    return min(tried, key=lambda name: (name != "vector", condition_of(name).no_vector), default=None)


def conditions_of(recipe: Recipe) -> list[Condition]:
    """Every condition that an evaluation of the recipe names. Raises UserError for one that there is not, or
    that needs a source where the recipe has none."""
    names = {
        name: f"evaluations.{evaluation}.conditions"
        for evaluation, settings in recipe.evaluations.items()
        for name in settings.conditions
    }
    conditions = [known(name, where) for name, where in names.items()]
    if recipe.source is None:
        for condition in conditions:
            if not condition.without_source:
                where = f"{names[condition.name]}: {condition.name} needs a source"
                possible = ", ".join(entry.name for entry in CONDITIONS if entry.without_source)
                raise UserError(f"{where}; without one there are {possible}")
    return conditions


def further_sources(recipe: Recipe) -> dict[str, FurtherModel]:
    """The models that vectors come from besides source and target, by name; only those that are needed."""
    needed: dict[str, FurtherModel] = {}
    for condition in conditions_of(recipe):
        needed |= condition.sources(recipe, condition.name)
    order = [*recipe.sources, sources.INSTRUCT]
    return dict(sorted(needed.items(), key=lambda entry: order.index(entry[0])))


def main_of(recipe: Recipe) -> str:
    """The condition that a recipe is about, from whose vectors controls are derived: the transplanted
    vectors, or without a source the target's own."""
    return "vector" if recipe.source is not None else "self-align"


def vectors_for(material: Material, names: Iterable[str]) -> dict[str, Vectors]:
    """Vectors in the target's space, condition -> concept -> vector, of the recipe's main condition and of
    every condition that has vectors of its own and can have them for these models and concepts."""
    made, alone = {}, len(material.vectors["target"]) < 2
    for condition in map(condition_of, dict.fromkeys([main_of(material.recipe), *names])):
        if condition.several and alone:
            continue
        vectors = condition.vectors(material, condition.name) if condition.vectors is not None else None
        if vectors is not None:
            made[condition.name] = vectors
    return made


def systems_of(recipe: Recipe, settings: EvaluationSettings) -> list[System]:
    """The conditions of an evaluation that are no vectors. Raises UserError naming what one of them lacks."""
    return systems(Available.of(recipe, settings), settings.conditions)


def systems(available: Available, names: Iterable[str] | None = None) -> list[System]:
    """Those of the conditions that are no vectors; without `names` all for which everything is there.

    Raises UserError naming what one of `names` lacks.
    """
    answering = []
    for entry in CONDITIONS if names is None else map(condition_of, names):
        if entry.system is None:
            continue
        system = entry.system(available)
        if system is not None:
            answering.append(replace(system, name=entry.name))
        elif names is not None:
            raise UserError(f"condition {entry.name}: it needs {entry.requires}")
    return answering
