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

from contrans_dist import demo
from contrans_dist.analysis import judge, read_evaluation, sentence
from contrans_dist.artifacts import ActivationSet
from contrans_dist.benchmarks.scenarios import read_scenarios
from contrans_dist.cluster import connected
from contrans_dist.conditions import DERIVED, steering
from contrans_dist.config import CaptureSettings, EvaluationSettings, Recipe
from contrans_dist.corpus import prepare_corpus
from contrans_dist.errors import UserError
from contrans_dist.evaluate import evaluate
from contrans_dist.harvest import HarvestJob, harvest_sets
from contrans_dist.maps import MapSet
from contrans_dist.models import model_facts
from contrans_dist.progress import note
from contrans_dist.provenance import command_line, git_commit, now, versions, without_credentials
from contrans_dist.recipe import load_recipe
from contrans_dist.report import write_report
from contrans_dist.selection import fit_chosen, harvested_blocks
from contrans_dist.storage import Location
from contrans_dist.texts import read_texts, text_table
from contrans_dist.transfers import Sides, Vectors, condition_vectors, refine_sides, save_vectors

T = TypeVar("T")
_BUNDLED = "demo:"
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
    run = _Run(recipe, out)
    with ExitStack() as stack:
        run.texts_folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(connected(recipe.cluster.address))
        return run.all()


class _Run:
    """The stages, in order; each leaves its artefacts in the run's folder."""

    def __init__(self, recipe: Recipe, out: Location) -> None:
        self.recipe, self.out = recipe, out
        self.texts_folder = Path()
        self.stages: list[dict[str, Any]] = []
        self.started = now()

    def all(self) -> dict[str, Any]:
        resolved = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (self.out / "recipe.yaml").write_bytes(without_credentials(resolved).encode())
        sides = self._stage("harvest", self._harvest)
        own = self._stage("refine", lambda: self._refine(sides))
        maps = self._stage("fit", lambda: fit_chosen(self.recipe, sides, own, self.out, self._place))
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

    # -- texts -----------------------------------------------------------------------------------

    def _place(self, path: str) -> str:
        """Where a text file of the recipe is; `demo:NAME` are bundled texts, made when first asked for."""
        if not path.startswith(_BUNDLED):
            return path
        if not any(self.texts_folder.iterdir()):
            demo.write_texts(self.texts_folder)
        found = self.texts_folder / path.removeprefix(_BUNDLED)
        if not found.exists():
            known = ", ".join(f"{_BUNDLED}{each.name}" for each in sorted(self.texts_folder.iterdir()))
            raise UserError(f"{path}: no such bundled texts; there are {known}")
        return str(found)

    def _contrast(self) -> pa.Table:
        given = self.recipe.concepts.texts
        if isinstance(given, str):
            rows = read_scenarios(self._place(given))
            return text_table({name: [row[name] for row in rows] for name in rows[0]}, given)
        parts = []
        for concept, path in given.items():
            table = read_texts(self._place(path))
            if "label" not in table.column_names:
                raise UserError(f"{path}: expected positive and negative texts (a column `label`)")
            parts.append(table.append_column("concept", pa.array([concept] * table.num_rows)))
        # A template may name any column that all the files have.
        names = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
        return text_table(pa.concat_tables([part.select(names) for part in parts]), "concepts.texts")

    def _corpus(self) -> pa.Table:
        settings = self.recipe.corpus
        table = read_texts(self._place(settings.texts))
        return prepare_corpus(
            table, settings.cut, settings.per_text, settings.seed, settings.limit, settings.words
        )

    def _keep_texts(self, name: str, table: pa.Table) -> None:
        lines = [
            json.dumps(row, ensure_ascii=False) for row in table.drop_columns(["row", "text_id"]).to_pylist()
        ]
        (self.out / "texts" / f"{name}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())

    # -- stages ----------------------------------------------------------------------------------

    def _harvest(self) -> Sides:
        recipe, settings = self.recipe, self.recipe.concepts
        corpus, contrast = self._corpus(), self._contrast()
        self._keep_texts("corpus", corpus)
        self._keep_texts("contrast", contrast)
        sets: dict[str, ActivationSet] = {}
        for side, model in (("source", recipe.source), ("target", recipe.target)):
            n_blocks = model_facts(model.id, trust_remote_code=model.trust_remote_code).n_blocks
            blocks = harvested_blocks(recipe.map.blocks, side, n_blocks)
            own = side == "source"
            plain = CaptureSettings(
                blocks=blocks,
                batch_tokens=recipe.batch_tokens,
                template=recipe.corpus.source_template if own else None,
            )
            template = (settings.source_template if own else None) or settings.template
            prompted = plain.model_copy(
                update={"template": template, "chat": settings.chat, "position": settings.position}
            )
            folder = self.out / "activations"
            jobs = [
                HarvestJob(corpus, folder / f"corpus-{side}", plain),
                HarvestJob(contrast, folder / f"contrast-{side}", prompted),
            ]
            sets[f"corpus-{side}"], sets[f"contrast-{side}"] = harvest_sets(model, jobs, recipe.cluster)
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
                self._placed(settings),
                steering(given, conditions, seed=settings.seed),
                self.out / "evaluations" / name,
                self.recipe.cluster,
                replace=True,
            )

    def _placed(self, settings: EvaluationSettings) -> EvaluationSettings:
        shots = None if settings.shots is None else self._place(settings.shots)
        return settings.model_copy(update={"texts": self._place(settings.texts), "shots": shots})
