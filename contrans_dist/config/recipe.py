"""Recipes from YAML, settings from plain data: a mistake is one line with the nearest right key."""

from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from contrans_dist.config import EvaluationSettings, Recipe, Settings, evaluation_class
from contrans_dist.config.characters import check_whole
from contrans_dist.config.limits import RECIPE_BYTES, check_size, raised
from contrans_dist.config.own_vectors import without_defaults
from contrans_dist.config.yamlfiles import parse_yaml
from contrans_dist.errors import UserError, meant, short

S = TypeVar("S", bound=Settings)
_MOST_LETTERS = 200
"""Of a wrong value, in a message."""


def load_recipe(path: Path, overrides: list[str] | None = None, small: bool = False) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        overrides: `key.subkey=value`, the values in YAML.
        small: What stands under that key takes the place of the keys it names.

    Raises:
        UserError: That names the file, the key and the nearest right key.
    """
    content = parse_yaml(_read(path), str(path))
    if not isinstance(content, dict):
        keys = "source, target, corpus, concepts and evaluations"
        raise UserError(f"{path}: expected a mapping with {keys}, or without source and corpus")
    if small:
        if not isinstance(content.get("small"), dict):
            raise UserError(f"{path}: --small: the recipe has no key `small`")
        content |= content.pop("small")
    for change in overrides or []:
        _override_runs(content, *override(content, change))
    return validated(Recipe, content, str(path))


def _read(path: Path) -> bytes:
    """The bytes of a recipe, not too many; `path` may be a pipe, or a device without end."""
    try:
        with path.open("rb") as stream:
            data = stream.read(raised(RECIPE_BYTES) + 1)
            size = max(len(data), path.stat().st_size)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such recipe") from error
    except OSError as error:
        raise UserError(f"{path}: expected a recipe that can be read ({error.strerror})") from error
    if len(data) > raised(RECIPE_BYTES):
        check_size(str(path), size, RECIPE_BYTES)
    return data


def runs_of(recipe: Recipe) -> dict[str, Recipe]:
    """The runs of a recipe, by name, each as a recipe of its own; `all` where there is only one.

    Raises:
        UserError: For a setting that there is not.
    """
    if not recipe.runs:
        return {"all": recipe}
    runs = {}
    for name, changes in recipe.runs.items():
        content = recipe.model_dump(mode="json", exclude={"runs", "small", "published", "axis"})
        content = without_defaults(content, recipe)
        for key, value in changes.items():
            inner, last = _parent_of(content, key, f"runs.{name}.{key}")
            inner[last] = value
        runs[name] = validated(Recipe, content, f"runs.{name}")
    return runs


def _parent_of(content: dict[str, Any], key: str, where: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted key, and the key's last part."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if isinstance(content, str) and parent in ("source", "target"):
            raise UserError(f"{where}: {parent} is a plain id here; write {parent}={{id: ..., ...}}")
        if not isinstance(content, dict):
            raise UserError(f"{where}: {parent} has no keys of its own")
    return content, last


def override(content: dict[str, Any], change: str) -> tuple[str, Any]:
    """Carry out a `--set`.

    Args:
        content: What is to be set, as plain data; it is changed in place.
        change: `key.subkey=value`, the value in YAML.

    Returns:
        Key and value.

    Raises:
        UserError: For anything else.
    """
    check_whole(change, "--set")
    key, mark, value = change.partition("=")
    change = change[:_MOST_LETTERS]  # from here on for messages
    if not mark or not key:
        raise UserError(f"--set {change}: expected key=value, such as map.protocol=paper")
    content, last = _parent_of(content, key, f"--set {change}")
    # YAML would take `{text}` for a mapping and drop a last space.
    plain = last.endswith("template") and value[:1] not in ('"', "'") and value not in ("null", "~", "")
    content[last] = value if plain else parse_yaml(value.encode(), f"--set {change}", "a YAML value")
    return key, content[last]


def _override_runs(content: dict[str, Any], key: str, value: Any) -> None:
    """Carry a `--set` into the runs that would change the same key, or one that holds it."""
    runs = content.get("runs")
    for changes in runs.values() if isinstance(runs, dict) and not key.startswith("runs.") else ():
        if isinstance(changes, dict) and any(
            key == changed or key.startswith(f"{changed}.") for changed in changes
        ):
            changes.pop(key, None)
            changes[key] = deepcopy(value)  # last, so that nothing of the run comes after it


def validated(settings: type[S], content: dict[str, Any], where: str) -> S:
    """Build settings from plain data. Raises UserError with one line on the first thing that is wrong."""
    try:
        return settings.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(settings, content, error)}") from error


def _explain(settings: type[Settings], content: dict[str, Any], error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    places = (_real_path(content, failure["loc"], failure["type"] == "missing") for failure in errors)
    placed = list(zip(places, errors, strict=True))
    top = placed[0][0]
    # A union fails once for each of its branches; the branch that got furthest is the one that was meant.
    related = [(path, failure) for path, failure in placed if path[: len(top)] == top]
    deepest = max(len(path) for path, _ in related)
    path, first = next((path, failure) for path, failure in related if len(path) == deepest)
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        names = sorted(_known_keys(settings, path[:-1], content))
        return f"unknown key {key!r}; {meant(path[-1], names)}"
    if first["type"] == "missing":
        return f"missing key {key!r}"
    if first["type"] == "recipe":
        return str(first["msg"])
    if first["type"] == "benchmark":
        return f"{key}.benchmark: {first['msg']}"
    wanted = dict.fromkeys(_expected(failure) for other, failure in related if other == path)
    shown = short(first["input"], _MOST_LETTERS)
    key = key if key.isprintable() else ascii(key)
    return f"{key}: expected {' or '.join(wanted)}, found {shown}".removeprefix(": ")


def _real_path(content: Any, location: tuple[int | str, ...], missing: bool) -> list[str]:
    """Where an error is, without the names that pydantic gives to the branches of a union."""
    path: list[str] = []
    for index, part in enumerate(location):
        inside = isinstance(content, dict | list | tuple)
        known = inside and (
            part in content if isinstance(content, dict) else isinstance(part, int) and part < len(content)
        )
        if known:
            content = content[part]
        elif not (missing and index == len(location) - 1):
            continue
        path.append(str(part))
    return path


def _expected(error: Any) -> str:
    """What pydantic says should have been there, as the object of "expected"."""
    if error["type"] in ("model_type", "dict_type"):
        return "a mapping"
    if error["type"] == "invalid_key":
        return "keys that are strings"
    if error["type"] == "too_short":
        return f"at least {error['ctx']['min_length']}"
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _known_keys(settings: type[Settings], path: list[str], content: Any) -> set[str]:
    """Field names of the settings class that a path of keys leads to."""
    current: Any = settings
    for part in path:
        content = content.get(part) if isinstance(content, dict) else None
        field = current.model_fields.get(part) if _is_settings(current) else None
        if field is not None:
            current = _settings_in(field.annotation)
        elif _is_settings(current) and issubclass(current, EvaluationSettings):  # an evaluation's name
            current = evaluation_class(content)
    return set(current.model_fields) if _is_settings(current) else set()


def _is_settings(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Settings)


def _settings_in(annotation: Any) -> Any:
    if _is_settings(annotation):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _settings_in(argument)
        if _is_settings(inner):
            return inner
    return None
