"""lm-evaluation-harness's `--model steered`: a `.pt` of one vector a hook point.

This is the only place where torch's own serialisation is used: the harness reads nothing else. It writes
tensors and plain values; it reads tensors and plain values alone, whatever a file holds.
"""

import io
import pickletools
import zipfile
from dataclasses import replace
from typing import Any

from contrans_dist.config.limits import BLOCKS, HEADER_BYTES, VECTOR_FILE_BYTES, WIDTH, check_size
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats.addition import KEY, Addition, Row, Said, read_said
from contrans_dist.vectors.formats.foreign import Asked, Foreign

_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16")),
}
"""What a file of tensors names."""


def write(addition: Addition, location: Location, asked: Asked) -> list[Location]:
    """Publish the rows, the strength as their coefficient."""
    import torch

    names = asked.names_for(addition.vector).blocks
    content = {
        names[block]: {
            "steering_vector": torch.from_numpy(row.copy()),
            "steering_coefficient": float(addition.strength),
            "action": "add",
            "bias": None,
            "head_index": None,
            KEY: replace(addition, blocks=(block,)).said("steering_coefficient"),
        }
        for block, row in addition.rows().items()
    }
    with location.staged() as path, path.open("wb") as file:
        torch.save(content, file)
    return [location]


def read(location: Location, asked: Asked) -> Foreign:
    """The rows of a file times their coefficients. Raises UserError for anything but additions to what
    decoder blocks return."""
    content = load(location)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{location}: expected hook points with a steering_vector each")
    check_size(f"{location}: its hook points", len(content), BLOCKS, "")
    rows: dict[int, Row] = {}
    said: list[Said] = []
    for hook_point, entry in content.items():
        where = f"{location}: {str(hook_point)[:80]!r}"
        row = _row(entry, where)
        told = entry.get(KEY)
        if told is not None:
            said.append(read_said(told, f"{where}: {KEY}"))
        known = said[-1].blocks if told is not None and asked.model is None else ()
        rows[known[0] if known else _block(hook_point, where, asked)] = row
    if len(rows) != len(content) or (said and len(said) != len(content)):
        raise UserError(f"{location}: a block is there twice, or described in part")
    whole = said[0].model_copy(update={"blocks": tuple(sorted(rows))}) if said else None
    return Foreign(rows, whole)


def _block(hook_point: Any, where: str, asked: Asked) -> int:
    """The block that a hook point is."""
    names = asked.names.blocks
    if hook_point not in names:
        raise UserError(
            f"{where}: no decoder block of {asked.model}; those are {names[0]} to {names[-1]}, and only what "
            "they return is read"
        )
    return names.index(hook_point)


def _row(entry: Any, where: str) -> Row:
    """A hook point's vector times its coefficient."""
    import torch

    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a dictionary with a steering_vector")
    vector, coefficient = entry.get("steering_vector"), entry.get("steering_coefficient", 1.0)
    if entry.get("action") != "add":
        raise UserError(f"{where}: action: expected add, found {str(entry.get('action'))[:40]!r}")
    for name in ("bias", "head_index"):
        if entry.get(name) is not None:
            raise UserError(f"{where}: {name}: expected none, a whole row is added")
    if type(coefficient) not in (int, float):
        raise UserError(f"{where}: steering_coefficient: expected a number")
    if (
        not isinstance(vector, torch.Tensor)
        or vector.layout is not torch.strided
        or vector.ndim != 1
        or not 0 < len(vector) <= WIDTH
        or not vector.is_floating_point()
    ):
        raise UserError(f"{where}: steering_vector: expected one axis of floating-point numbers")
    row: Row = (float(coefficient) * vector.detach().to(torch.float32)).numpy()
    return row


def load(location: Location) -> Any:
    """What the file holds. Raises UserError where it names more than tensors and plain values."""
    import torch

    data = location.read_bytes(VECTOR_FILE_BYTES)
    damaged = f"{location}: expected a file that torch.save wrote"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            check_size(f"{location}: unpacked", size, VECTOR_FILE_BYTES)
            heads = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(heads) != 1 or any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise UserError(damaged)
            check_size(f"{location}: its head", heads[0].file_size, HEADER_BYTES)
            head = archive.read(heads[0])
        for code, argument, _ in pickletools.genops(head):
            if code.name == "STACK_GLOBAL" or (code.name == "GLOBAL" and argument not in _ALLOWED):
                named = str(argument or "something else")[:60]
                raise UserError(f"{location}: holds more than tensors and plain values ({named})")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise UserError(f"{damaged} ({type(error).__name__})") from error
