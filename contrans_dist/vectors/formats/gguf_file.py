"""llama.cpp's control vectors (GGUF), which repeng and EasySteer read and write as well.

`direction.L`, float32 `[d]`, is added to what block L (from 0) returns. Nothing in the file scales it.
"""

import re
from typing import Any

import numpy as np

from contrans_dist.config.limits import BLOCKS, VECTOR_FILE_BYTES, WIDTH
from contrans_dist.errors import UserError
from contrans_dist.store.gguf_head import HeldTensor, read_head
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats.addition import KEY, Addition, Row, read_said
from contrans_dist.vectors.formats.foreign import Asked, Foreign

ARCHITECTURE = "controlvector"
_NUMBERS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
"""The types of a tensor that are read."""


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
    data = location.read_bytes(VECTOR_FILE_BYTES)
    fields, infos, start = read_head(data, str(location), BLOCKS)
    architecture = fields.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"{location}: expected a control vector, its architecture is {architecture!r}")
    rows = {}
    for name, info in infos.items():
        if not re.fullmatch(r"direction\.[0-9]{1,6}", name):
            raise UserError(f"{location}: tensor {name!r}: expected direction.BLOCK")
        rows[int(name.removeprefix("direction."))] = _row(data, start, info, f"{location}: {name}")
    if len(rows) != len(infos):
        raise UserError(f"{location}: a block is there twice")
    said = fields.get(KEY)
    hint, title = fields.get(f"{ARCHITECTURE}.model_hint"), fields.get("general.name")
    return Foreign(
        rows=rows,
        said=None if said is None else read_said(said, f"{location}: {KEY}"),
        model_type=hint if isinstance(hint, str) else None,
        concept=title if isinstance(title, str) else None,
    )


def _row(data: bytes, start: int, info: HeldTensor, where: str) -> Row:
    number = _NUMBERS.get(info.kind)
    if number is None or len(info.shape) != 1 or not 0 < info.shape[0] <= WIDTH:
        raise UserError(
            f"{where}: expected one axis of float32 or float16, found {list(info.shape)} of type {info.kind}"
        )
    begin = start + info.offset
    if begin + info.shape[0] * number.itemsize > len(data):
        raise UserError(f"{where}: lies behind the end of the file")
    return np.frombuffer(data, number, info.shape[0], begin).astype(np.float32)
