"""One run of a recipe: its stages, one after another."""

import json
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pyarrow as pa
import yaml

from contrans_dist.benchmarks.contrast import ContrastEvaluation
from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.config import AnyEvaluation, CaptureSettings, ModelSettings, Recipe
from contrans_dist.config.limits import RECIPE_BYTES, check_size
from contrans_dist.console import note, without_credentials
from contrans_dist.errors import OverflowedError, UserError, meant
from contrans_dist.evaluation.analysis import sentence
from contrans_dist.evaluation.assess import assess, judged
from contrans_dist.evaluation.block_search import fit_chosen
from contrans_dist.evaluation.block_trials import check_choice
from contrans_dist.evaluation.conditions import (
    condition_of,
    conditions_of,
    further_sources,
    main_of,
    systems_of,
    vectors_for,
)
from contrans_dist.evaluation.own_block import own_block
from contrans_dist.evaluation.sides import Sides, Vectors, refine_sides, save_vectors
from contrans_dist.evaluation.sources import Further
from contrans_dist.evaluation.steering import steering
from contrans_dist.evaluation.transfers import Fitted, Material
from contrans_dist.evaluation.trials import check_tried
from contrans_dist.harvest.driver import HarvestJob, harvest_sets
from contrans_dist.models import model_facts
from contrans_dist.models.loading import describe
from contrans_dist.pipeline.analyses import write_analyses
from contrans_dist.pipeline.inputs import (
    READS,
    SIDES,
    Harvested,
    RecipeTexts,
    captures,
    harvest_key,
    harvested,
)
from contrans_dist.report import write_report
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import made_by, now, versions, without_secrets
from contrans_dist.store.results import RECORD, RunFile, write_file
from contrans_dist.store.tables import ANALYSES

T = TypeVar("T")


def keep_recipe(recipe: Recipe, out: Location) -> None:
    """Write a recipe as it was resolved, `recipe.yaml`. Raises UserError for one that is too large."""
    content = resolved(recipe).encode()
    # Reports read it again, and not without a limit: better now than when hours of work are done.
    check_size(f"{recipe.name}: the recipe as resolved", len(content), RECIPE_BYTES)
    (out / "recipe.yaml").write_bytes(content)


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """What a run is known by: all of its recipe but where it runs."""
    return cast("dict[str, Any]", _told(recipe.model_dump(mode="json", exclude={"cluster"})))


def resolved(recipe: Recipe) -> str:
    """A recipe as YAML, with every default filled in and without secrets."""
    content = _told(recipe.model_dump(mode="json"))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000)


def _told(content: Any) -> Any:
    """Plain data, every text in it `without_secrets`."""
    if isinstance(content, dict):
        return {_told(key): _told(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_told(value) for value in content]
    return without_secrets(content) if isinstance(content, str) else content


def _way(run: Location, shared: Location) -> str:
    """From a run's folder up to the common folder of harvests, which lies in one of those above it."""
    up, at = 0, run
    while str(at) != str(shared.parent):
        if str(at.parent) == str(at):
            raise UserError(f"{shared}: expected a folder beside the run or above it, {run}")
        up, at = up + 1, at.parent
    return "/".join([*[".."] * up, shared.name])


class RunDriver:
    """The stages of one run, in order; each leaves its artefacts in the run's folder.

    `shared`: a common folder of harvests, in a folder above the run's.
    """

    def __init__(
        self, recipe: Recipe, out: Location, texts: RecipeTexts, shared: Location | None = None
    ) -> None:
        self.recipe, self.out, self.texts, self.shared = recipe, out, texts, shared
        self.for_steering = recipe.cluster.for_steering()
        self.activations: dict[str, str] = {}
        """Name to folder as seen from the run's, where harvests are shared with other runs."""
        self.overflowed: OverflowedError | None = None
        """Why an evaluation, the first such one, has no result."""
        self.stages: list[dict[str, Any]] = []
        self.started = now()

    def check(self) -> None:
        """Read what hours of work would lead up to. Raises UserError for texts, data of an evaluation, models
        or concepts that there are not, and for what a condition or a choice lacks."""
        placed, texts = self.texts.placed_recipe(), self.texts.tables()
        models = [one.model for one in harvested(self.recipe)]
        for settings in placed.evaluations.values():
            models += [model for system in systems_of(placed, settings) for model in system.models]
        for name, trusted in dict.fromkeys((model.id, model.trust_remote_code) for model in models):
            describe(name, trust_remote_code=trusted)
        self._check_concepts(texts["contrast"])
        for settings in placed.evaluations.values():
            if settings.search is not None:
                check_tried(settings)
            elif not isinstance(settings, ContrastEvaluation):  # its texts are states, perhaps yet to be made
                load_benchmark(settings).identity()
        check_choice(placed)

    def _check_concepts(self, contrast: pa.Table) -> None:
        there = set(contrast.column("concept").to_pylist()) if "concept" in contrast.column_names else set()
        for name, settings in self.recipe.evaluations.items():
            missing = [concept for concept in settings.concepts or () if there and concept not in there]
            if missing:
                hint = meant(missing[0], sorted(map(str, there)))
                raise UserError(f"evaluations.{name}.concepts: no contrast texts of {missing[0]!r}; {hint}")

    def all(self) -> dict[str, Any]:
        """Every stage, once `check` has found nothing wrong; returns a summary.

        Raises UserError where a run of another recipe is at work in the folder; OverflowedError, when all
        else is done, where that ended an evaluation.
        """
        with claimed(self.out, identity_of(self.recipe)):
            return self._all()

    def _all(self) -> dict[str, Any]:
        (self.out / RECORD).delete()  # before the recipe is another than that of what is there
        keep_recipe(self.recipe, self.out)
        sets = self._stage("harvest", self._harvest)
        contrast = {side: sets[name] for side in SIDES if (name := f"contrast-{side}") in sets}
        concepts = self.recipe.concepts
        vectors = self._stage(
            "refine",
            lambda: refine_sides(contrast, self.out, concepts.method, concepts.seed, concepts.limit),
        )
        step = "fit" if self.recipe.source is not None else "choose"
        material = self._stage(step, lambda: self._material(sets, vectors))
        self._stage("evaluate", lambda: self._evaluate(material))
        if self.recipe.analyses:
            self._stage("analyse", lambda: write_analyses(material, contrast, self.out / ANALYSES))
        self._write_facts()
        page = self._stage("report", lambda: write_report(self.out))
        self._write_facts()
        if self.overflowed is not None:
            raise self.overflowed
        return {
            "name": self.recipe.name,
            "out": str(self.out),
            "report": str(page),
            "evaluations": {name: self._result(name) for name in self.recipe.evaluations},
            "seconds": round(sum(stage["seconds"] for stage in self.stages), 1),
        }

    def _result(self, name: str) -> dict[str, Any]:
        folder = self.out / "evaluations" / name
        verdict = judged(folder)
        return {
            "verdict": sentence(verdict) if verdict else "nothing was steered",
            "metrics": str(folder / "metrics.json"),
        }

    def _stage(self, name: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        note(f"== {name}")
        result = work()
        self.stages.append({"name": name, "seconds": round(time.monotonic() - began, 2)})
        return result

    def _write_facts(self) -> None:
        content = {
            "name": self.recipe.name,
            "description": without_secrets(self.recipe.description),
            **made_by(),
            "versions": versions(),
            "started": self.started,
            "finished": now() if self.overflowed is None else None,
            "stages": self.stages,
            "activations": self.activations,
        }
        write_file(self.out / RECORD, RunFile.model_validate(content))

    # -- stages ----------------------------------------------------------------------------------

    def _keep_texts(self, name: str, table: pa.Table) -> None:
        lines = [
            json.dumps(row, ensure_ascii=False, default=str)
            for row in table.drop_columns(["row", "text_id"]).to_pylist()
        ]
        (self.out / "texts" / f"{name}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())

    def _harvest(self) -> dict[str, ActivationSet]:
        """The states of every model that the recipe needs, by what was read and by whom."""
        texts = self.texts.tables()
        for name, table in texts.items():
            self._keep_texts(name, table)
        sets: dict[str, ActivationSet] = {}
        for model in harvested(self.recipe):
            sets |= self._states(model, {what: texts[what] for what in model.reads})
        return sets

    def _material(self, sets: dict[str, ActivationSet], vectors: dict[str, Vectors]) -> Material:
        """With the map between both models, or without a source with the block that is steered."""
        recipe, fitted = self.texts.placed_recipe().model_copy(update={"cluster": self.for_steering}), None
        if recipe.source is None:
            block = own_block(recipe, sets["contrast-target"], vectors["target"], self.out)
        else:
            sides = Sides(*(sets[f"{what}-{side}"] for what in READS for side in SIDES))
            fitted = Fitted(sides, fit_chosen(recipe, sides, vectors, self.out))
            _, block = fitted.maps.only_pair()
        further = {
            name: Further(sets[f"contrast-{name}"], sets.get(f"corpus-{name}"))
            for name in further_sources(self.recipe)
        }
        return Material(self.recipe, vectors, block, fitted, further)

    def _states(self, of: Harvested, texts: dict[str, pa.Table]) -> dict[str, ActivationSet]:
        """Activation sets `<what>-<name>` of one model, harvested as its side of the map is."""
        name, model = of.name, of.model
        facts = model_facts(model.id, trust_remote_code=model.trust_remote_code)
        captured = captures(self.recipe, of.side, facts.n_blocks)
        jobs = [
            HarvestJob(
                table,
                self._folder(f"{what}-{name}", model, captured[what], table),
                captured[what],
                skip_bad=self.recipe.skip_bad,
            )
            for what, table in texts.items()
        ]
        sets = harvest_sets(model, jobs, self.recipe.cluster)
        return {f"{what}-{name}": states for what, states in zip(texts, sets, strict=True)}

    def _folder(self, name: str, model: ModelSettings, capture: CaptureSettings, table: pa.Table) -> Location:
        """Where an activation set goes: into the run, or by what it holds where runs share them."""
        if self.shared is None:
            return self.out / "activations" / name
        identity = harvest_key(model, capture, table)
        plain = re.sub("[^A-Za-z0-9]+", "-", without_credentials(model.id))
        folder = f"{name.partition('-')[0]}-{plain}-{identity}"
        self.activations[name] = f"{_way(self.out, self.shared)}/{folder}"
        return self.shared / folder

    def _evaluate(self, material: Material) -> None:
        given = vectors_for(material, [condition.name for condition in conditions_of(self.recipe)])
        for name, of_condition in given.items():
            save_vectors(of_condition, self.out, name)
        for name, settings in self.recipe.evaluations.items():
            try:
                self._evaluate_one(name, settings, given)
            except OverflowedError as error:  # another try finds the same; the others do not depend on it
                note(f"evaluation {name} has no result: {error}")
                self.overflowed = self.overflowed or error

    def _evaluate_one(self, name: str, settings: AnyEvaluation, given: dict[str, Vectors]) -> None:
        main = main_of(self.recipe)
        conditions = []
        for condition in map(condition_of, settings.conditions):
            if condition.several and len(given[main]) < 2:
                note(f"condition {condition.name} is left out: there is one concept")
            elif condition.name in given or condition.row is not None:
                conditions.append(condition.name)
        steered = steering(given, conditions, seed=settings.seed, main=main)
        assess(
            self.recipe.target,
            self.texts.placed(settings),
            steered,
            self.out / "evaluations" / name,
            self.for_steering,
            systems_of(self.recipe, settings),
            replace=True,
        )
