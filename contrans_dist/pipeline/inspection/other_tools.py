"""Files that other tools read: by what they say of themselves, where this program wrote them."""

from math import isfinite
from typing import Any

from contrans_dist.config.limits import JSON_BYTES, TENSORS, raised
from contrans_dist.errors import UserError
from contrans_dist.pipeline.inspection.artefact import Artefact, made_of
from contrans_dist.pipeline.inspection.tensors import steering
from contrans_dist.store.gguf_head import read_head
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats import FORMATS, gguf_file, lm_eval_file
from contrans_dist.vectors.formats.addition import KEY, STEERING, beside, read_said
from contrans_dist.vectors.formats.foreign import Asked, Foreign

_HEAD_BYTES = 64 << 20
"""Of a model in GGUF: its keys hold its vocabulary."""
_REQUESTS = {
    "vllm-lens": ("activations", "layer_indices"),
    "easysteer": ("steering",),
    "neuronpedia": ("modelId", "layerNumber"),
}
"""By format, the keys that a request of it has."""


def of_gguf(location: Location) -> Artefact:
    """A control vector, or a model of llama.cpp, of which the head alone is read."""
    fields, tensors = _gguf_head(location)
    if fields.get("general.architecture") == gguf_file.ARCHITECTURE:
        return _told(location, "gguf", gguf_file.read(location, Asked()))
    name = str(fields.get("general.architecture"))
    held = {
        "architecture": name,
        "name": fields.get("general.name"),
        "blocks": fields.get(f"{name}.block_count"),
        "width": fields.get(f"{name}.embedding_length"),
        "context": fields.get(f"{name}.context_length"),
        "tensors": tensors,
    }
    return Artefact("model", {"file": location.name}, holds=held, whole=fields)


def _gguf_head(location: Location) -> tuple[dict[str, Any], int]:
    """Keys, numbers that JSON has not as text, and how many tensors there are."""
    with location.open() as source:
        data = source.read(raised(_HEAD_BYTES))
    fields, tensors, _ = read_head(data, str(location), TENSORS)
    said = {name: value for name, value in fields.items() if value is not None}
    odd = {
        name: str(value) for name, value in said.items() if isinstance(value, float) and not isfinite(value)
    }
    return said | odd, len(tensors)


def of_array(location: Location) -> Artefact:
    """An array of rows; one that has a single row does not say of which block."""
    read = FORMATS["npy"].read
    assert read is not None
    return _told(location, "npy", read(location, Asked(block=0)))


def _told(location: Location, name: str, foreign: Foreign) -> Artefact:
    """A file with rows by block."""
    widths = sorted({int(row.size) for row in foreign.rows.values()})
    held = {"format": name, "rows": sorted(foreign.rows), "width": widths}
    if foreign.said is not None:
        return steering(foreign.said, foreign.said.model_dump(mode="json", exclude_unset=True), held)
    source = {"model type": foreign.model_type, "concept": foreign.concept}
    return Artefact(STEERING, source, holds=held, whole=source | held)


def of_steered(location: Location) -> Artefact:
    """What lm-evaluation-harness steers with: tensors and plain values alone are read."""
    content = lm_eval_file.load(location)
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(f"{location}: expected hook points with a steering_vector each")
    held = {"format": "lm-eval", "hook points": [str(name) for name in content]}
    told = [entry[KEY] for entry in content.values() if KEY in entry]
    if not told:
        return Artefact(STEERING, holds=held, whole=held)
    said = read_said(told[0], f"{location}: {KEY}")
    whole = said.model_copy(update={"blocks": _blocks(location, told)})
    return steering(whole, whole.model_dump(mode="json", exclude_unset=True), held)


def _blocks(location: Location, told: list[Any]) -> tuple[int, ...]:
    return tuple(sorted(block for each in told for block in read_said(each, f"{location}: {KEY}").blocks))


def of_request(location: Location, content: Any) -> Artefact | None:
    """What a server is sent, or the description beside a file; None for any other JSON."""
    if not isinstance(content, dict):
        return None
    if "operation" in content and "strength_in" in content:
        return steering(read_said(content, str(location)), content, {"format": "description"})
    name = next((name for name, keys in _REQUESTS.items() if all(key in content for key in keys)), None)
    if name is None:
        return None
    place, held = beside(location), {"format": name, "keys": list(content)}
    said = content.get(KEY) or (place.read_json(JSON_BYTES) if place.exists() else None)
    if said is None:
        return Artefact(STEERING, made=made_of({}), holds=held, whole=content)
    return steering(read_said(said, str(location)), said, held)
