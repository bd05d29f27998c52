"""What is told of an artefact, as plain data and as lines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contrans_dist.console import printable
from contrans_dist.store.provenance import Made

_MADE = tuple(Made.model_fields)


@dataclass(frozen=True)
class Artefact:
    """An artefact in four parts; what has no value is left out when they are shown."""

    kind: str
    source: Mapping[str, Any] = field(default_factory=dict)
    """What it was made from."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """How, by what, and when."""
    holds: Mapping[str, Any] = field(default_factory=dict)
    """What is in it."""
    whole: Mapping[str, Any] = field(default_factory=dict)
    """All that it says of itself, as its own file has it."""

    @property
    def content(self) -> dict[str, Any]:
        """For `--json`: its kind, and all that it says of itself."""
        return {**self.whole, "kind": self.kind}

    def text(self) -> str:
        """For people: a line a fact, in the parts `from`, `made` and `holds`."""
        parts = {"from": self.source, "made": self.made, "holds": self.holds}
        facts = [(part, key, text_of(value)) for part, said in parts.items() for key, value in said.items()]
        facts = [fact for fact in facts if fact[2]]
        width = max((len(key) for _, key, _ in facts), default=0)
        lines, last = [f"kind   {self.kind}"], ""
        for part, key, text in facts:
            lines.append(f"{'' if part == last else part:5}  {printable(key):{width}}  {printable(text)}")
            last = part
        return "\n".join(lines)


def made_of(content: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What a file says of its making: the command, the version, the commit, the time; and `more`."""
    return {**more, **{name: content.get(name) for name in _MADE}, "versions": content.get("versions")}


def text_of(value: Any) -> str:
    """A value as one line; empty where there is none."""
    if isinstance(value, Mapping):
        told = {key: text_of(entry) for key, entry in value.items()}
        between = "; " if any(", " in text for text in told.values()) else ", "
        return between.join(f"{key}: {text}" for key, text in told.items() if text)
    if isinstance(value, list | tuple):
        return _numbers(value) or ", ".join(text_of(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(values: "list[Any] | tuple[Any, ...]") -> str:
    """Whole numbers in a row as `0 to 5`; empty for anything else."""
    if len(values) < 3 or not all(type(value) is int for value in values):
        return ""
    return f"{values[0]} to {values[-1]}" if list(values) == [*range(values[0], values[-1] + 1)] else ""
