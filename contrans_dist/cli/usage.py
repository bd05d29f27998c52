"""What is wrong with a command line, in one line; and texts of strangers made fit for a terminal."""

import difflib
import re
import sys
from typing import Any

import typer

from contrans_dist.errors import UserError

_NO_COMMAND = re.compile(r"No such command '(.*?)'")


def run_command(app: typer.Typer) -> None:
    """Parse the command line and do what it asks.

    Raises UserError for a command line that is wrong, with the nearest right name; SystemExit with the code
    of a command that ended with another one than 0.
    """
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"argument {argument!a}: expected UTF-8") from error
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        # Typer has a copy of Click in some versions, and its exceptions no public name.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            sys.exit(2)
        raise UserError(_line(error)) from error
    sys.exit(code if isinstance(code, int) else 0)


def _line(error: Any) -> str:
    """What a usage error says, without its box."""
    context, said = getattr(error, "ctx", None), " ".join(str(error.format_message()).split())
    path = context.command_path if context is not None else "contrans"
    wrong, command = getattr(error, "option_name", None), _NO_COMMAND.match(said)
    kind, of = type(error).__name__, "".join(f"{name}: " for name in path.split()[1:])
    if kind == "NoSuchOption" and context is not None:
        names = [name for option in context.command.get_params(context) for name in option.opts]
        return f"{of}no option {wrong}{_near(str(wrong), names, path)}"
    if command is not None and context is not None:
        names = context.command.list_commands(context)
        return f"{of}no command {command[1]!r}{_near(command[1], names, path)}"
    parameter = getattr(error, "param", None)
    if parameter is None:
        return f"{of}{_lowered(said)}; `{path} --help` says more"
    name = (
        parameter.opts[0] if parameter.param_type_name == "option" else f"argument {parameter.name.upper()}"
    )
    if kind == "MissingParameter":
        return f"{of}{name} is missing; `{path} --help` says more"
    return f"{of}{name}: {_lowered(str(error.message))}"


def _near(name: str, names: list[str], path: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; `{path} --help` lists all"


def _lowered(text: str) -> str:
    text = " ".join(text.split()).rstrip(".").replace("Input should be", "expected")
    return text[:1].lower() + text[1:]
