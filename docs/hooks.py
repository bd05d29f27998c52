"""What mkdocs fills in: commands, recipe keys and conditions from the code, and the notebook."""

import ast
import inspect
import json
import re
import textwrap
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.main import get_command

from contrans_dist.benchmarks.registry import ours
from contrans_dist.cli import app
from contrans_dist.config import EvaluationSettings, Recipe, Settings
from contrans_dist.evaluation.conditions import CONDITIONS


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page before it is rendered: fills in `<!-- commands -->` and its like."""
    for name, fill in _FILLED.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", fill())
    return markdown


def commands() -> str:
    """Every command: its usage, what it does, and its options, as Markdown."""
    root: Any = get_command(app)
    parts = ["## For every command", _options(root)]
    for name, command in root.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["contrans", name, "[OPTIONS]", *(p.metavar or p.name.upper() for p in arguments)])
        help_text = re.sub(r"(?m)^ +", "", command.help or "")
        parts += [f"## {name}", f"```text\n{usage}\n```", help_text, _options(command)]
    return "\n\n".join(parts)


def _options(command: Any) -> str:
    """The parameters of a command as a table: name, what it is, default."""
    lines = ["| | | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name in ("help", "version"):
            continue
        lines.append(f"| {_name(parameter)} | {_cell(parameter.help or '')} | {_default(parameter)} |")
    return "\n".join(lines)


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return f"`{parameter.opts[0]}`" + (", repeated" if parameter.multiple else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.is_flag:
        return "off"
    if parameter.default is None or parameter.multiple:
        return ""
    return f"`{_cell(str(parameter.default))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def recipe_keys() -> str:
    """Every key of a recipe, section by section, with its default and what it is."""
    parts = [_keys(Recipe)]
    for inner, names in _held(Recipe).items():
        if inner is not EvaluationSettings:
            parts += _section(inner, names)
    common = set(EvaluationSettings.model_fields) - {"texts"}
    parts += ["### `evaluations.NAME`", "What every benchmark takes:", _keys(EvaluationSettings, common)]
    for inner, names in _held(EvaluationSettings, "evaluations.NAME.").items():
        parts += _section(inner, names)
    for benchmark in ours():
        settings = benchmark.settings_class
        name = settings.model_fields["benchmark"].default
        keys = set(settings.model_fields) - common
        parts += [f"### `benchmark: {name}`", inspect.getdoc(settings) or "", _keys(settings, keys)]
    return "\n\n".join(parts)


def _section(settings: type[Settings], names: list[str]) -> list[str]:
    """The keys of settings that stand under these names, and of those inside them."""
    parts = [
        f"### {', '.join(f'`{name}`' for name in names)}",
        inspect.getdoc(settings) or "",
        _keys(settings),
    ]
    for inner, inside in _held(settings, f"{names[0]}.").items():
        parts += _section(inner, inside)
    return parts


def _held(settings: type[Settings], before: str = "") -> dict[type[Settings], list[str]]:
    """The settings classes that the fields of one hold, each with the keys it stands under."""
    held: dict[type[Settings], list[str]] = {}
    for name, field in settings.model_fields.items():
        inner = _settings_in(field.annotation)
        if inner is not None:
            key = f"{before}{name}" + (".NAME" if _by_name(field.annotation) else "")
            held.setdefault(inner, []).append(key)
    return held


def _by_name(annotation: Any) -> bool:
    """Whether settings stand in a mapping whose keys are names."""
    return get_origin(annotation) is dict or any(
        _by_name(inner) for inner in get_args(annotation) if _settings_in(inner)
    )


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The settings class that an annotation holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _settings_in(inner))), None)


def _keys(settings: type[Settings], only: set[str] | None = None) -> str:
    """The keys of a settings class as a table."""
    said = _attribute_docs(settings)
    lines = ["| key | | default |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        if only is not None and name not in only:
            continue
        inner = _settings_in(field.annotation)
        about = said.get(name) or (inspect.getdoc(inner) or "").partition("\n\n")[0]
        lines.append(f"| `{name}` | {_cell(about)} | {_cell(_value(field))} |")
    return "\n".join(lines)


def _value(field: FieldInfo) -> str:
    """The default of a setting, as YAML would have it; empty where it says nothing."""
    if field.is_required():
        return "required"
    if field.default in (None, "", (), PydanticUndefined) or isinstance(field.default, Settings):
        return ""
    plain = isinstance(field.default, str | date)
    return f"`{field.default if plain else json.dumps(field.default)}`"


def _attribute_docs(settings: type) -> dict[str, str]:
    """What stands in quotes below each field of a class and of those it is made from."""
    said: dict[str, str] = {}
    for one in reversed(settings.__mro__):
        if one.__module__.startswith("contrans_dist."):
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # type: ignore[attr-defined]
            for field, text in pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    said[ast.unparse(field.target)] = ast.literal_eval(text.value)
    return said


def conditions() -> str:
    """Every condition of the registry as a table."""
    lines = ["| condition | role | what is done | needs |", "|---|---|---|---|"]
    for entry in CONDITIONS:
        lines.append(f"| `{entry.name}` | {entry.role} | {entry.meaning} | {_cell(entry.requires)} |")
    lines.append("| `from:NAME` | variant | a further source's vector | `sources.NAME` in the recipe |")
    return "\n".join(lines)


def notebook() -> str:
    """The cells of a notebook with their stored outputs, as Markdown."""
    path, parts = Path(__file__).parent / "notebook.ipynb", []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                parts.append(f"![figure](data:image/png;base64,{output['data']['image/png'].strip()})")
    return "\n\n".join(parts)


_FILLED = {
    "commands": commands, "recipe-keys": recipe_keys, "conditions": conditions, "notebook": notebook,
}  # fmt: skip
