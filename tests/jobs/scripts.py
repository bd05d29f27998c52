"""The scripts of jobs/ and the flags that they take."""

from typing import Any

import typer

from contrans_dist.cli import reducing, runs, stages, steered

COMMANDS = {
    "harvest": stages.harvest,
    "reduce": reducing.reduce,
    "evaluate": steered.evaluate,
    "pipeline": runs.run,
}


def parser(command: Any) -> Any:
    """What takes a command's arguments, as click has it."""
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return typer.main.get_command(app)


def flags(command: Any) -> set[str]:
    """The options of a command, and the names of its arguments."""
    parameters = parser(command).params
    return {option for each in parameters for option in [*each.opts, *each.secondary_opts]}
