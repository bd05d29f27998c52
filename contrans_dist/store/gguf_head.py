"""The head of a GGUF file (llama.cpp): its keys, and what tensors it holds, read within limits.

The reader of the package gguf trusts the lengths that a file names, and fills memory with them.
"""

import struct
from mmap import mmap
from typing import Any, NamedTuple

from contrans_dist.config.limits import HEADER_BYTES, check_size
from contrans_dist.errors import UserError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` calls the types of a key's value."""
_STRING, _ARRAY = 8, 9
_FIELDS = 1_000


class HeldTensor(NamedTuple):
    """A tensor of the file."""

    shape: tuple[int, ...]
    kind: int
    """ggml's number for its type."""
    offset: int
    """Bytes behind the head."""


def read_head(
    data: bytes | mmap, where: str, most_tensors: int
) -> tuple[dict[str, Any], dict[str, HeldTensor], int]:
    """Keys and tensors of a GGUF file, and where the tensors' bytes begin; lists among the keys are passed
    over.

    Args:
        data: The file.
        where: What messages call it.
        most_tensors: That are honest.

    Raises:
        UserError: For a file that is none, ends within its head, or has absurdly many of anything.
    """
    cursor = _Cursor(data, where)
    if cursor.take(4) != b"GGUF":
        raise UserError(f"{where}: expected a GGUF file (it does not begin with GGUF)")
    version = cursor.number("I")
    if version not in (2, 3):
        raise UserError(f"{where}: expected a GGUF file of version 2 or 3, found {version}")
    n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
    check_size(f"{where}: its tensors", n_tensors, most_tensors, "")
    check_size(f"{where}: its keys", n_fields, _FIELDS, "")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        name = cursor.text()
        fields[name] = cursor.value(cursor.number("I"))
    infos: dict[str, HeldTensor] = {}
    for _ in range(n_tensors):
        name, n_axes = cursor.text(), cursor.number("I")
        check_size(f"{where}: axes of tensor {name!r}", n_axes, 4, "")
        shape = tuple(cursor.number("Q") for _ in range(n_axes))
        if name in infos:
            raise UserError(f"{where}: tensor {name!r} is there twice")
        infos[name] = HeldTensor(shape, cursor.number("I"), cursor.number("Q"))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= HEADER_BYTES:
        raise UserError(f"{where}: general.alignment: expected a number of bytes, found {alignment!r}")
    return fields, infos, -(-cursor.at // alignment) * alignment


class _Cursor:
    """A place in a file; whoever reads behind its end gets a UserError."""

    def __init__(self, data: bytes | mmap, where: str) -> None:
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
