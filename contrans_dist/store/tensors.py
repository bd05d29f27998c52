"""Tensors and a JSON header in one safetensors file, as vectors and maps are kept.

Files come from strangers: what a file says of itself is held against its size before anything is allocated.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, TypeGuard, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from contrans_dist.config import Settings
from contrans_dist.config.limits import JSON_BYTES, check_size
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError, one_line, short
from contrans_dist.store import schema
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location
from contrans_dist.store.patience import patiently
from contrans_dist.store.provenance import made_by

S = TypeVar("S", bound=Settings)
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of a number by its type's name in the file."""
_START_BYTES = 64 << 10
"""Read at once: the head of most files."""
_TYPES: dict[str, type[np.generic]] = {"F32": np.float32, "I64": np.int64}
"""The types that our tensors have."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: type by its name in the file, shape, bytes `begin` to `end` behind the head."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file of ours, opened: its tensors' entries and its header, no tensor read."""

    location: Location
    kind: str
    header: dict[str, Any]
    entries: dict[str, TensorEntry]
    offset: int
    """Bytes in front of the tensors."""

    def model(self, settings: type[S]) -> S:
        """The header as `settings`. Raises UserError that names file and field."""
        return validated(settings, self.header, f"{self.location}: header")

    def shape(self, name: str, dtype: str, n_dims: int) -> tuple[int, ...]:
        """A tensor's shape. Raises UserError where it is missing, of another type or number of axes."""
        entry = self.entries.get(name)
        if entry is None:
            raise UserError(f"{self.location}: tensor {name!r} is missing")
        if entry.dtype != dtype or len(entry.shape) != n_dims:
            raise UserError(
                f"{self.location}: tensor {name!r}: expected {n_dims} dimensions of {dtype}, found "
                f"{list(entry.shape)} of {entry.dtype}"
            )
        return entry.shape

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise UserError unless a tensor is float32 of this shape."""
        stored = self.shape(name, "F32", len(shape))
        if stored != shape:
            raise UserError(
                f"{self.location}: tensor {name!r}: expected shape {list(shape)}, found {list(stored)}"
            )

    def read(self, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Tensors by name; those that are not there are left out.

        Raises:
            UserError: For one with a number that is not finite.
        """
        wanted = {name: self.entries[name] for name in names if name in self.entries}
        tensors: dict[str, NDArray[Any]] = {}
        for (name, entry), data in zip(wanted.items(), self._data(wanted.values()), strict=True):
            array = np.frombuffer(data, _TYPES[entry.dtype]).reshape(entry.shape)
            if not np.isfinite(array).all():
                raise UserError(f"{self.location}: tensor {name!r}: expected finite numbers")
            tensors[name] = array.copy()
        return tensors

    @patiently
    def _data(self, entries: Iterable[TensorEntry]) -> list[bytes]:
        """The bytes of these tensors."""
        with self.location.open() as source:
            return [source.read_at(entry.end - entry.begin, self.offset + entry.begin) for entry in entries]


def save_tensors(location: Location, tensors: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> None:
    """Publish arrays as one safetensors file whose metadata holds `header`, and what made it, as JSON."""
    text = json.dumps({**header, **made_by()}, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with location.staged() as path:
        save_file(arrays, path, metadata={schema.METADATA_KEY.decode(): text})


@patiently
def open_tensors(location: Location, kind: str | None = None) -> TensorFile:
    """Read the head of a file written by `save_tensors`; tensors lie one behind the other and fill the rest.

    Args:
        location: The file.
        kind: What it must say that it holds, such as `map`; None takes any.

    Raises:
        UserError: When the file is missing, is no safetensors, lacks our header, is not of `kind`, or when
            types, shapes, places and the file's size do not agree.
    """
    foreign = f"{location}: expected a vector or map file written by contrans"
    try:
        with location.open() as source:
            size = source.size()
            start = source.read_at(min(size, _START_BYTES), 0)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > size - 8:
                raise UserError(f"{foreign}; found {size} bytes, no whole head")
            check_size(f"{location}: header", length, JSON_BYTES)
            whole = 8 + length <= len(start)
            data = start[8 : 8 + length] if whole else source.read_at(length, 8)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{location}: cannot be read ({one_line(error)})") from error
    head = parse_json(data, f"{location}: head")
    metadata = head.pop("__metadata__", None) if isinstance(head, dict) else None
    text = metadata.get(schema.METADATA_KEY.decode()) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise UserError(foreign)
    header = parse_json(text, f"{location}: header")
    if not isinstance(header, dict):
        raise UserError(f"{location}: header: expected a JSON object")
    stored = header.get("kind")
    if not isinstance(stored, str) or (kind is not None and stored != kind):
        other = stored if isinstance(stored, str) else "foreign"
        raise UserError(f"{location}: expected a {kind or 'vector or map'} file, this is a {other} file")
    entries = {name: _entry(entry, f"{location}: tensor {name!r}") for name, entry in head.items()}
    _check_places(location, entries, size - 8 - length)
    return TensorFile(location, stored, header, entries, 8 + length)


def _entry(content: Any, where: str) -> TensorEntry:
    fields = content if isinstance(content, dict) else {}
    dtype, shape, places = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise UserError(f"{where}: dtype: expected one of {', '.join(_SIZES)}, found {short(dtype)}")
    if not _are_counts(shape) or 0 in shape or len(shape) > 8:
        raise UserError(f"{where}: shape: expected dimensions of at least 1, found {short(shape)}")
    if not _are_counts(places) or len(places) != 2:
        raise UserError(f"{where}: data_offsets: expected two numbers, found {short(places)}")
    begin, end = places
    if prod(shape) * _SIZES[dtype] != end - begin:
        raise UserError(
            f"{where}: shape {short(shape)} of {dtype} needs {prod(shape) * _SIZES[dtype]:,} bytes, it has "
            f"{end - begin:,}"
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of numbers of bytes or rows."""
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**63 for count in value)


def _check_places(location: Location, entries: Mapping[str, TensorEntry], size: int) -> None:
    """Raise UserError where tensors overlap, leave a gap, or do not end with the file."""
    ordered = sorted(entries.values(), key=lambda entry: entry.begin)
    edges = [0, *(edge for entry in ordered for edge in (entry.begin, entry.end)), size]
    if any(end != begin for end, begin in list(pairwise(edges))[::2]):
        raise UserError(
            f"{location}: the file is damaged ({size:,} bytes of tensors, the head describes others); "
            "make it again"
        )
