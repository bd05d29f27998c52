"""Recipes from YAML, settings from plain data: a mistake is one line with the nearest right key."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from contrans_dist.config import Recipe, Settings
from contrans_dist.errors import UserError

S = TypeVar("S", bound=Settings)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, with `key.subkey=value` overrides (values in YAML).

    Raises UserError that names the file, the key and the nearest right key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: expected YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with source, target, corpus, concepts and evaluations")
    for override in overrides or []:
        _override(content, override)
    return validated(Recipe, content, str(path))


def _override(content: dict[str, Any], override: str) -> None:
    key, mark, value = override.partition("=")
    if not mark or not key:
        raise UserError(f"--set {override}: expected key=value, such as map.protocol=paper")
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if isinstance(content, str) and parent in ("source", "target"):
            raise UserError(f"--set {override}: {parent} is a plain id here; write {parent}={{id: ..., ...}}")
        if not isinstance(content, dict):
            raise UserError(f"--set {override}: {parent} has no keys of its own")
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: expected a YAML value") from error


def validated(settings: type[S], content: dict[str, Any], where: str) -> S:
    """Build settings from plain data. Raises UserError with one line on the first thing that is wrong."""
    try:
        return settings.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(settings, error)}") from error


def _explain(settings: type[Settings], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        names = sorted(_known_keys(settings, path[:-1]))
        near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"missing key {key!r}"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"


def _known_keys(settings: type[Settings], path: list[str]) -> set[str]:
    """Field names of the settings class that a path of keys leads to."""
    current: Any = settings
    for part in path:
        field = current.model_fields.get(part) if _is_settings(current) else None
        if field is None:
            continue  # the name of an evaluation, or a branch of a union
        current = _settings_in(field.annotation)
    return set(current.model_fields) if _is_settings(current) else set()


def _is_settings(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Settings)


def _settings_in(annotation: Any) -> Any:
    if _is_settings(annotation):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _settings_in(argument)
        if _is_settings(found):
            return found
    return None
