"""A whole run from one recipe: texts, harvests, vectors, maps, transplants, evaluations, report."""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import yaml

from contrans_dist.analysis import judge, read_evaluation, sentence
from contrans_dist.artifacts import ActivationSet
from contrans_dist.cluster import connected
from contrans_dist.conditions import DERIVED, steering
from contrans_dist.config import Recipe
from contrans_dist.errors import UserError
from contrans_dist.evaluate import evaluate
from contrans_dist.harvest import HarvestJob, harvest_sets
from contrans_dist.maps import MapSet
from contrans_dist.models import model_facts
from contrans_dist.preparation import RecipeTexts, captures
from contrans_dist.progress import note
from contrans_dist.provenance import command_line, git_commit, now, versions, without_credentials
from contrans_dist.recipe import load_recipe
from contrans_dist.report import write_report
from contrans_dist.selection import fit_chosen
from contrans_dist.storage import Location
from contrans_dist.transfers import Sides, Vectors, condition_vectors, refine_sides, save_vectors

T = TypeVar("T")
RECIPES = Path(str(files("contrans_dist"))) / "recipes"


def find_recipe(name: Path) -> Path:
    """The recipe file: a path, or the name of a bundled recipe. Raises UserError naming what is bundled."""
    bundled = RECIPES / f"{name}.yaml"
    if name.exists() or not bundled.exists():
        if not name.exists() and not name.suffix:
            known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
            raise UserError(f"{name}: no such recipe; bundled are {known}")
        return name
    return bundled


def run_demo(out: Location) -> dict[str, Any]:
    """The bundled recipe `demo`."""
    return run_recipe(load_recipe(RECIPES / "demo.yaml"), out)


def run_recipe(recipe: Recipe, out: Location) -> dict[str, Any]:
    """Do all that a recipe asks for into one folder; what is already there is reused.

    Returns a summary: `report` (its place), `evaluations` (name to verdict and metrics file), `seconds`.
    Relative paths in the recipe start at the working directory.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(connected(recipe.cluster.address))
        return _Run(recipe, out, RecipeTexts(recipe, Path(folder))).all()


class _Run:
    """The stages, in order; each leaves its artefacts in the run's folder."""

    def __init__(self, recipe: Recipe, out: Location, texts: RecipeTexts) -> None:
        self.recipe, self.out, self.texts = recipe, out, texts
        self.stages: list[dict[str, Any]] = []
        self.started = now()

    def all(self) -> dict[str, Any]:
        resolved = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (self.out / "recipe.yaml").write_bytes(without_credentials(resolved).encode())
        sides = self._stage("harvest", self._harvest)
        own = self._stage("refine", lambda: self._refine(sides))
        maps = self._stage("fit", lambda: fit_chosen(self.recipe, sides, own, self.out, self.texts.place))
        self._stage("evaluate", lambda: self._evaluate(sides, own, maps))
        self._write_facts()
        page = self._stage("report", lambda: write_report(self.out))
        self._write_facts()
        return {
            "name": self.recipe.name,
            "out": str(self.out),
            "report": str(page),
            "evaluations": {name: self._result(name) for name in self.recipe.evaluations},
            "seconds": round(sum(stage["seconds"] for stage in self.stages), 1),
        }

    def _result(self, name: str) -> dict[str, Any]:
        folder = self.out / "evaluations" / name
        judged = judge(read_evaluation(folder), "token_acc_negative")
        return {
            "verdict": sentence(judged) if judged else "nothing was steered",
            "metrics": str(folder / "metrics.json"),
        }

    def _stage(self, name: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        note(f"== {name}")
        result = work()
        self.stages.append({"name": name, "seconds": round(time.monotonic() - began, 2)})
        return result

    def _write_facts(self) -> None:
        facts = {
            "name": self.recipe.name,
            "description": self.recipe.description,
            "command": command_line(),
            "git_commit": git_commit(),
            "versions": versions(),
            "started": self.started,
            "finished": now(),
            "stages": self.stages,
        }
        (self.out / "run.json").write_json(facts)

    # -- stages ----------------------------------------------------------------------------------

    def _keep_texts(self, name: str, table: pa.Table) -> None:
        lines = [
            json.dumps(row, ensure_ascii=False) for row in table.drop_columns(["row", "text_id"]).to_pylist()
        ]
        (self.out / "texts" / f"{name}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())

    def _harvest(self) -> Sides:
        corpus, contrast = self.texts.corpus(), self.texts.contrast()
        self._keep_texts("corpus", corpus)
        self._keep_texts("contrast", contrast)
        sets: dict[str, ActivationSet] = {}
        for side, model in (("source", self.recipe.source), ("target", self.recipe.target)):
            n_blocks = model_facts(model.id, trust_remote_code=model.trust_remote_code).n_blocks
            plain, prompted = captures(self.recipe, side, n_blocks)
            folder = self.out / "activations"
            jobs = [
                HarvestJob(corpus, folder / f"corpus-{side}", plain),
                HarvestJob(contrast, folder / f"contrast-{side}", prompted),
            ]
            sets[f"corpus-{side}"], sets[f"contrast-{side}"] = harvest_sets(model, jobs, self.recipe.cluster)
        return Sides(
            sets["corpus-source"], sets["corpus-target"], sets["contrast-source"], sets["contrast-target"]
        )

    def _refine(self, sides: Sides) -> dict[str, Vectors]:
        settings = self.recipe.concepts
        return refine_sides(sides, self.out, settings.method, settings.seed, settings.limit)

    def _evaluate(self, sides: Sides, own: dict[str, Vectors], maps: MapSet) -> None:
        for name, settings in self.recipe.evaluations.items():
            needed = [condition for condition in settings.conditions if condition not in DERIVED]
            given = condition_vectors(self.recipe, sides, own, maps, ["vector", *needed])
            for condition, vectors in given.items():
                save_vectors(vectors, self.out, condition)
            conditions = [c for c in settings.conditions if c in DERIVED or c in given]
            evaluate(
                self.recipe.target,
                self.texts.placed(settings),
                steering(given, conditions, seed=settings.seed),
                self.out / "evaluations" / name,
                self.recipe.cluster,
                replace=True,
            )
