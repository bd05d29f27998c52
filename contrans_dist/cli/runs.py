"""Commands on whole runs and on artefacts: demo, run, report, status, inspect."""

from pathlib import Path
from typing import Annotated, Any

import typer

from contrans_dist.cli.options import Address, AsJson, emit, lasting, show
from contrans_dist.console import count_of, note
from contrans_dist.errors import RunError, UserError


def demo(
    out: Annotated[str, typer.Option(help="Folder of the run.", callback=lasting)] = "runs/demo",
    as_json: AsJson = False,
) -> None:
    """Move six emotions between the two bundled models and write the report. Needs no GPU and no network."""
    from contrans_dist.pipeline.runs import run_demo
    from contrans_dist.store.location import Location

    _finish(run_demo(Location.parse(out)), as_json)


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, or the name of a bundled recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: key.subkey=value.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URI of the run. Default: runs/NAME.", callback=lasting)
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="The recipe's small variant, on bundled models.")
    ] = False,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do all of a recipe: harvest, reduce, transplant, evaluate, report. What is already there is reused."""
    import yaml

    from contrans_dist.pipeline.run import resolved
    from contrans_dist.pipeline.runs import open_recipe, run_recipe
    from contrans_dist.store.location import Location

    changes = [*(set_ or []), *([f"cluster.address={address}"] if address else [])]
    settings = open_recipe(recipe, changes, small)
    if dry_run:
        text = resolved(settings)
        emit(as_json, yaml.safe_load(text), text.rstrip())
        return
    _finish(run_recipe(settings, Location.parse(out or f"runs/{settings.name}")), as_json)


def _finish(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(True, summary, "")
        return
    results = summary["evaluations"]
    for name, result in results.items():
        show(f"{name}: {result['verdict']}" if len(results) > 1 else result["verdict"])
    show(f"report: {summary['report']}")


def report(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help="Folders of runs or of evaluations.")],
    out: Annotated[
        str | None, typer.Option(help="Where the page that compares several runs goes. Default: here.")
    ] = None,
) -> None:
    """Write report.html from the artefacts of a run; given several runs, a page that compares them."""
    from contrans_dist.evaluation.analysis import run_folders
    from contrans_dist.report import write_comparison, write_report
    from contrans_dist.store.location import Location

    places = [Location.parse(uri) for uri in uris]
    several = run_folders(places[0]) if len(places) == 1 else places
    if not several:
        if out is not None:
            raise UserError(
                f"--out {out}: expected several runs to compare; the page of one goes into {uris[0]}"
            )
        show(f"report: {write_report(places[0])}")
        return
    if len(places) == 1:
        for run in several:
            write_report(run)
    target = Location.parse(out) if out else places[0] if len(places) == 1 else Location.parse(".")
    show(f"report: {write_comparison(several, target)}")


def status(
    uri: Annotated[str, typer.Argument(help="Folder of a harvest or run.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte of its activations and check it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How far a harvest or a run is."""
    from contrans_dist.pipeline.status import status_of
    from contrans_dist.store import verification
    from contrans_dist.store.location import Location

    damaged = verification.verify(Location.parse(uri)) if verify else []
    for line in damaged:
        note(line)
    if damaged:
        raise RunError(f"{uri}: {count_of(len(damaged), 'file')} damaged, as told above")
    states = status_of(Location.parse(uri))
    emit(as_json, states, "\n".join(f"{name}: {state}" for name, state in states.items()))


def inspect(uri: Annotated[str, typer.Argument(help="Any artefact.")], as_json: AsJson = False) -> None:
    """What an artefact is, what it was made from, how, and what is in it."""
    from contrans_dist.pipeline.inspection import inspected
    from contrans_dist.store.location import Location

    artefact = inspected(Location.parse(uri))
    emit(as_json, artefact.content, artefact.text())
