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


def differing(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One line for each field in which two identities differ: `dtype: found float32, asked for bfloat16`."""
    names = [*wanted, *(name for name in stored if name not in wanted)]
    return [
        f"{name}: found {stored.get(name)!r}, asked for {wanted.get(name)!r}"
        for name in names
        if stored.get(name) != wanted.get(name)
    ]
