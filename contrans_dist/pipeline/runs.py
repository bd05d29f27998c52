"""A whole run from one recipe: texts, harvests, vectors, maps, transplants, evaluations, report."""

import tempfile
import time
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

from contrans_dist.config import Recipe
from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.console import note
from contrans_dist.distributed.actors import kept_actors
from contrans_dist.distributed.cluster import connected
from contrans_dist.errors import OverflowedError, UserError
from contrans_dist.evaluation.conditions import conditions_of
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.run import RunDriver, identity_of, keep_recipe
from contrans_dist.report import write_comparison
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location

RUNS = "runs"
"""Folder of a recipe's runs, where it has several."""
RECIPES = Path(str(files("contrans_dist.pipeline"))) / "recipes"


def find_recipe(name: Path) -> Path:
    """The recipe file: the name of a bundled recipe, or a path, which has a suffix or a folder in it.

    Raises UserError naming what is bundled.
    """
    if len(name.name) > 200:  # no file system takes it
        raise UserError(f"{str(name)[:60]}...: expected the name of a recipe")
    bundled = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if str(name) in bundled:
        return bundled[str(name)]
    if not name.exists() and not name.suffix:
        raise UserError(f"{name}: no such recipe; bundled are {', '.join(sorted(bundled))}")
    return name


def open_recipe(name: Path, changes: list[str] | None = None, small: bool = False) -> Recipe:
    """A recipe by name or file, with `key=value` changes, in its small variant if that is asked for.

    Raises UserError for whatever is wrong with it, conditions that there are not included.
    """
    recipe = load_recipe(find_recipe(name), changes, small)
    for one in runs_of(recipe).values() if recipe.runs else (recipe,):
        conditions_of(one)
    return recipe


def run_demo(out: Location) -> dict[str, Any]:
    """The bundled recipe `demo`."""
    return run_recipe(open_recipe(Path("demo")), out)


def run_recipe(recipe: Recipe, out: Location, shared: Location | None = None) -> dict[str, Any]:
    """Do all that a recipe says; what is already there is reused.

    Args:
        recipe: Relative paths in it start at the working directory.
        out: The run's folder.
        shared: A common folder of harvests, for this and other recipes, in a folder above `out`.

    Returns:
        A summary: `name`, `out`, `report` (where it is), `evaluations` (by name, `verdict` and the place of
        `metrics`), `seconds`.

    Raises:
        UserError: For texts, models or data that are missing or wrong, an artefact of other settings, or a
            run of another recipe that is at work in the folder.
        RunError: When a part failed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if recipe.runs:
            shared = shared or out / "activations"
        drivers = {
            name: RunDriver(one, out / RUNS / name if recipe.runs else out, RecipeTexts(one, folder), shared)
            for name, one in runs_of(recipe).items()
        }
        for driver in drivers.values():  # what is wrong with the last is told before the first begins
            driver.check()
        stack.enter_context(connected(recipe.cluster.address))
        stack.enter_context(kept_actors())
        if not recipe.runs:
            return drivers["all"].all()
        with claimed(out, identity_of(recipe)):
            return _several(recipe, out, drivers)


def _several(recipe: Recipe, out: Location, drivers: dict[str, RunDriver]) -> dict[str, Any]:
    """Every run of a recipe, with common harvests, and the page that compares them."""
    keep_recipe(recipe, out)
    began, summaries, overflowed = time.monotonic(), {}, []
    for name, driver in drivers.items():
        note(f"=== run {name}")
        try:
            summaries[name] = driver.all()
        except OverflowedError as error:  # of one of its evaluations; all else of it is there
            overflowed.append(error)
    if overflowed and not summaries:
        raise overflowed[0]
    page = write_comparison([driver.out for driver in drivers.values()], out)
    if overflowed:
        raise overflowed[0]
    return {
        "name": recipe.name,
        "out": str(out),
        "report": str(page),
        "evaluations": {
            f"{run}, {name}": result
            for run, summary in summaries.items()
            for name, result in summary["evaluations"].items()
        },
        "seconds": round(time.monotonic() - began, 1),
    }
