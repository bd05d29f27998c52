"""What is scored, as one hash: over every value of it, in a form that no version of Python changes."""

import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

_AS_TEXT = (PurePath, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, enum.Enum, complex)


def content_hash(value: Any) -> str:
    """The hash of a value, the same in every process and version.

    Args:
        value: Dataclasses, mappings, sequences, arrays and plain values, however deeply nested. The order of
            a mapping's keys does not count, that of a sequence does. A function counts by its name, any other
            object by its type's: what such a one does must be hashed beside.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(_plain(value), separators=(",", ":"))


def _plain(value: Any) -> Any:
    """The value as JSON takes it, no two different ones alike."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    name = type(value).__name__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: [[field.name, _plain(getattr(value, field.name))] for field in dataclasses.fields(value)]
        }
    if isinstance(value, Mapping):
        return {"map": sorted(([_plain(k), _plain(v)] for k, v in value.items()), key=_canonical)}
    if isinstance(value, set | frozenset):
        return {"set": sorted(map(_plain, value), key=_canonical)}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]}
    if isinstance(value, _AS_TEXT):
        return {name: str(value)}
    return {"object": getattr(value, "__qualname__", name)}
