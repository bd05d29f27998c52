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


def flags(command: Any) -> set[str]:
    """The options of a command, and the names of its arguments."""
    app = typer.Typer(add_completion=False)
    app.command()(command)
    parsed = typer.main.get_command(app)
    return {option for parameter in parsed.params for option in [*parameter.opts, *parameter.secondary_opts]}
