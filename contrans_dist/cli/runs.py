"""Commands on whole runs and on artefacts: demo, run, report, status, inspect."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from contrans_dist.cli.options import Address, AsJson, emit, lasting, show
from contrans_dist.recipe import load_recipe
from contrans_dist.storage import Location


def demo(
    out: Annotated[str, typer.Option(help="Folder of the run.", callback=lasting)] = "runs/demo",
    as_json: AsJson = False,
) -> None:
    """Move six emotions between the two bundled models and write the report. Needs no GPU and no network."""
    from contrans_dist.pipeline import run_demo

    _finish(run_demo(Location.parse(out)), as_json)


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, or the name of a bundled recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: key.subkey=value.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URI of the run. Default: runs/NAME.", callback=lasting)
    ] = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do all of a recipe: harvest, reduce, transplant, evaluate, report. What is already there is reused."""
    from contrans_dist.pipeline import find_recipe, run_recipe

    path = find_recipe(recipe)
    settings = load_recipe(path, [*(set_ or []), *([f"cluster.address={address}"] if address else [])])
    if dry_run:
        content = settings.model_dump(mode="json")
        emit(as_json, content, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())
        return
    _finish(run_recipe(settings, Location.parse(out or f"runs/{settings.name}")), as_json)


def _finish(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(True, summary, "")
        return
    for lines in summary["evaluations"].values():
        show(lines["verdict"])
    show(f"report: {summary['report']}")


def report(uri: Annotated[str, typer.Argument(help="Folder of a run or of an evaluation.")]) -> None:
    """Write report.html from the artefacts of a run."""
    from contrans_dist.report import write_report

    show(f"report: {write_report(Location.parse(uri))}")


def status(
    uri: Annotated[str, typer.Argument(help="Folder of a harvest or run.")], as_json: AsJson = False
) -> None:
    """How far a harvest or a run is."""
    from contrans_dist.inspection import status_of

    found = status_of(Location.parse(uri))
    emit(as_json, found, "\n".join(f"{name}: {state}" for name, state in found.items()))


def inspect(uri: Annotated[str, typer.Argument(help="Any artefact.")], as_json: AsJson = False) -> None:
    """What an artefact is and where it comes from."""
    from contrans_dist.inspection import describe

    found = describe(Location.parse(uri))
    if as_json:
        emit(True, found, "")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in found.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(table)
