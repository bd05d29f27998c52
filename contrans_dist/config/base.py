"""What all settings share, and the identity of what was run."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings class: frozen; unknown keys are errors, and so are numbers that JSON has not."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class FileModel(Settings):
    """Base of what a file of ours holds: keys of later versions are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def fingerprint(identity: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of an identity.

    Raises TypeError for a value without a stable JSON form.
    """
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differing(stored: dict[str, Any], wanted: dict[str, Any], above: str = "") -> list[str]:
    """One line for each field in which two identities differ: `dtype: found float32, asked for bfloat16`; of
    fields in others, which lie `above`, with a dotted name."""
    lines = []
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        found, asked = stored.get(name), wanted.get(name)
        if found and asked and isinstance(found, dict) and isinstance(asked, dict):
            lines += differing(found, asked, f"{above}{name}.")
        elif found != asked:
            lines.append(f"{above}{name}: found {found!r}, asked for {asked!r}")
    return lines
