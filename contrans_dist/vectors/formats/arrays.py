"""Rows as plain arrays: numpy's `.npy`, as ConTrans keeps its vectors, and safetensors."""

import io

import numpy as np
from safetensors.numpy import save_file

from contrans_dist.config.limits import BLOCKS, JSON_BYTES, VECTOR_FILE_BYTES, WIDTH, check_size
from contrans_dist.errors import UserError, one_line
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats.addition import KEY, Addition, beside, read_said, write_beside
from contrans_dist.vectors.formats.foreign import Asked, Foreign

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def write_npy(addition: Addition, location: Location, _asked: Asked) -> list[Location]:
    """Publish `[n_blocks, d]`, the rows times the strength and zeros elsewhere; what it is, beside it."""
    table = np.zeros_like(addition.vector.values, np.float32)
    for block, row in addition.scaled().items():
        table[block] = row
    with location.staged() as path, path.open("wb") as file:
        np.save(file, table)
    return [location, write_beside(addition, location, "values")]


def write_safetensors(addition: Addition, location: Location, _asked: Asked) -> list[Location]:
    """Publish the rows times the strength as tensors `block.K`, float32 `[d]`."""
    tensors = {f"block.{block}": row for block, row in addition.scaled().items()}
    with location.staged() as path:
        save_file(tensors, path, metadata={KEY: addition.said("values")})
    return [location]


def read_npy(location: Location, asked: Asked) -> Foreign:
    """The rows of a file by block: `[n_blocks, d]`, or `[d]` for `--block`.

    Raises UserError for anything but floating-point numbers of one of these shapes.
    """
    table = _load_npy(location)
    place = beside(location)
    said = read_said(place.read_json(JSON_BYTES), str(place)) if place.exists() else None
    if table.ndim == 1:
        if asked.block is None:
            raise UserError(f"--block is missing: {location} holds one row and does not say of which block")
        return Foreign({asked.block: table}, said)
    rows = {int(block): table[block] for block in np.flatnonzero(table.any(axis=1))}
    return Foreign(rows, said, n_blocks=len(table))


def _load_npy(location: Location) -> np.ndarray:
    data = location.read_bytes(VECTOR_FILE_BYTES)
    stream = io.BytesIO(data)
    expected = f"{location}: expected an array of floating-point numbers, [n_blocks, d] or [d]"
    try:
        header = _HEADERS.get(np.lib.format.read_magic(stream))
        if header is None:
            raise UserError(f"{expected}; its format is too new")
        shape, fortran, kind = header(stream)
    except UserError:
        raise
    except Exception as error:  # numpy lets out whatever a damaged header leads to
        raise UserError(f"{expected} ({one_line(error)})") from error
    if kind.kind != "f" or len(shape) not in (1, 2) or 0 in shape:
        raise UserError(f"{expected}; found {list(shape)} of {kind}")
    check_size(f"{location}: its rows", shape[0] if len(shape) == 2 else 1, BLOCKS, "")
    check_size(f"{location}: its width", shape[-1], WIDTH, "")
    if len(data) - stream.tell() != int(np.prod(shape)) * kind.itemsize:
        raise UserError(f"{location}: the file is damaged: {list(shape)} of {kind} need other bytes; copy it")
    table = np.frombuffer(data, kind, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return table.astype(np.float32)
