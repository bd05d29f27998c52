"""llama.cpp's control vectors (GGUF), which repeng and EasySteer read and write as well.

`direction.L`, float32 `[d]`, is added to what block L (from 0) returns. Nothing in the file scales it.
"""

import re
import struct
from typing import Any, NamedTuple

import numpy as np

from contrans_dist.config.limits import BLOCKS, HEADER_BYTES, VECTOR_FILE_BYTES, WIDTH, check_size
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats.addition import KEY, Addition, Row, read_said
from contrans_dist.vectors.formats.foreign import Asked, Foreign

ARCHITECTURE = "controlvector"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` calls the types of a key's value."""
_STRING, _ARRAY = 8, 9
_NUMBERS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
"""The types of a tensor that are read."""
_FIELDS = 1_000


def write(addition: Addition, location: Location, asked: Asked) -> list[Location]:
    """Publish the rows times the strength as one file. Raises UserError for block 0."""
    write_rows(addition, addition.scaled(), location, asked, "values")
    return [location]


def write_rows(
    addition: Addition, rows: dict[int, Row], location: Location, asked: Asked, strength_in: str
) -> None:
    """Publish these rows as one file."""
    from gguf import GGUFWriter

    if 0 in rows:
        raise UserError(
            "--block: block 0 cannot be said in a GGUF control vector (llama.cpp refuses direction.0); "
            "expected blocks from 1, such as 1:"
        )
    vector = addition.vector
    with location.staged() as path:
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string("general.name", vector.concept)
        writer.add_string(f"{ARCHITECTURE}.model_hint", asked.names_for(vector).model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
        writer.add_string(f"{ARCHITECTURE}.method", vector.method)
        writer.add_string(KEY, addition.said(strength_in))
        for block, row in rows.items():
            writer.add_tensor(f"direction.{block}", row)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read(location: Location, _asked: Asked) -> Foreign:
    """The rows of a file by block. Raises UserError for one that is no control vector, or damaged."""
    fields, tensors = _parse(location.read_bytes(VECTOR_FILE_BYTES), str(location))
    architecture = fields.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"{location}: expected a control vector, its architecture is {architecture!r}")
    rows = {}
    for name, row in tensors.items():
        if not re.fullmatch(r"direction\.[0-9]{1,6}", name):
            raise UserError(f"{location}: tensor {name!r}: expected direction.BLOCK")
        rows[int(name.removeprefix("direction."))] = row
    if len(rows) != len(tensors):
        raise UserError(f"{location}: a block is there twice")
    said = fields.get(KEY)
    hint, title = fields.get(f"{ARCHITECTURE}.model_hint"), fields.get("general.name")
    return Foreign(
        rows=rows,
        said=None if said is None else read_said(said, f"{location}: {KEY}"),
        model_type=hint if isinstance(hint, str) else None,
        concept=title if isinstance(title, str) else None,
    )


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    offset: int


def _parse(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Row]]:
    """Keys and tensors of a GGUF file; lists among the keys are passed over."""
    # The reader of the package gguf trusts the lengths that a file names, and fills memory with them.
    cursor = _Cursor(data, where)
    magic, version = cursor.take(4), cursor.number("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise UserError(f"{where}: expected a GGUF file of version 2 or 3")
    n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
    check_size(f"{where}: its tensors", n_tensors, BLOCKS, "")
    check_size(f"{where}: its keys", n_fields, _FIELDS, "")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        name = cursor.text()
        fields[name] = cursor.value(cursor.number("I"))
    infos: dict[str, _Tensor] = {}
    for _ in range(n_tensors):
        name, n_axes = cursor.text(), cursor.number("I")
        check_size(f"{where}: axes of tensor {name!r}", n_axes, 4, "")
        shape = tuple(cursor.number("Q") for _ in range(n_axes))
        if name in infos:
            raise UserError(f"{where}: tensor {name!r} is there twice")
        infos[name] = _Tensor(shape, cursor.number("I"), cursor.number("Q"))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= HEADER_BYTES:
        raise UserError(f"{where}: general.alignment: expected a number of bytes, found {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    return fields, {name: _row(data, start, info, f"{where}: {name}") for name, info in infos.items()}


def _row(data: bytes, start: int, info: _Tensor, where: str) -> Row:
    number = _NUMBERS.get(info.kind)
    if number is None or len(info.shape) != 1 or not 0 < info.shape[0] <= WIDTH:
        raise UserError(
            f"{where}: expected one axis of float32 or float16, found {list(info.shape)} of type {info.kind}"
        )
    begin = start + info.offset
    if begin + info.shape[0] * number.itemsize > len(data):
        raise UserError(f"{where}: lies behind the end of the file")
    return np.frombuffer(data, number, info.shape[0], begin).astype(np.float32)


class _Cursor:
    """A place in a file; whoever reads behind its end gets a UserError."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.at = 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise UserError(f"{self.where}: the file ends within its head; copy it again")
        part = self.data[self.at : self.at + length]
        self.at += length
        return part

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]  # type: ignore[no-any-return]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.where}: expected names in UTF-8") from error

    def value(self, kind: int) -> Any:
        """The value of a key; None for a list."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        inner, count = (self.number("I"), self.number("Q")) if kind == _ARRAY else (None, 0)
        if inner == _STRING:
            for _ in range(count):
                self.take(self.number("Q"))
        elif inner in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            raise UserError(f"{self.where}: a key of a kind that is not known ({kind}, {inner})")
        return None
