"""Safetensors files of ours: vectors, maps, and what `contrans export` writes as safetensors."""

from typing import Any

from contrans_dist.pipeline.inspection.artefact import Artefact, made_of
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import KIND as MAP
from contrans_dist.store.map_file import PairHeader, open_map
from contrans_dist.store.tensors import TensorFile, open_tensors
from contrans_dist.store.vector_file import KIND as VECTOR
from contrans_dist.store.vector_file import VectorHeader
from contrans_dist.vectors.formats.addition import STEERING, Said, read_said


def of_tensors(location: Location) -> Artefact:
    """What a safetensors file is. Raises UserError for one that is not ours, or damaged."""
    file = open_tensors(location)
    if file.kind == MAP:
        return of_map(location, MAP)
    if file.kind == STEERING:
        said = read_said(file.header, f"{location}: header")
        return steering(said, file.header, {"format": "safetensors", "tensors": sorted(file.entries)})
    if file.kind == VECTOR:
        return _vector(file)
    return Artefact(file.kind, made=made_of(file.header), holds=_shapes(file), whole=file.header)


def _vector(file: TensorFile) -> Artefact:
    header = file.model(VectorHeader)
    n_blocks, d = file.shape("vector", "F32", 2)
    return Artefact(
        VECTOR,
        {"model": header.model, "positive texts": header.n_positive, "negative texts": header.n_negative},
        made_of(file.header, method=header.method, steps=" -> ".join(header.steps)),
        {
            "concept": header.concept,
            "blocks": header.blocks,
            "of": f"{n_blocks} blocks of {d}",
            "median norms": header.norms,
            "tensors": _shapes(file),
        },
        file.header,
    )


def of_map(location: Location, kind: str) -> Artefact:
    """What a map file is, as part of an artefact of this kind."""
    file, header = open_map(location)
    selection = header.selection
    chosen = selection and f"{selection.criterion} on {selection.tried_on}" if selection else None
    return Artefact(
        kind,
        {"source model": header.source_model, "target model": header.target_model},
        made_of(file.header, protocol=header.protocol, **{"pair chosen by": chosen}),
        {
            **{f"block {pair.source} -> {pair.target}": _pair(pair) for pair in header.pairs},
            "of": f"{header.n_target_blocks} blocks of the target",
            "warnings": [warning for pair in header.pairs for warning in pair.warnings],
            "tensors": _shapes(file),
        },
        file.header,
    )


def _pair(pair: PairHeader) -> dict[str, Any]:
    return {
        "reads": pair.source_blocks,
        "fitted on": pair.n_fit,
        "rank": pair.rank,
        "condition number": pair.condition_number,
        "ridge": pair.ridge,
        "held-out R2" if pair.held_out else "in-sample R2": pair.r2_test,
        "cosines": pair.cosines,
    }


def _shapes(file: TensorFile) -> dict[str, str]:
    return {
        name: f"{entry.dtype} [{', '.join(map(str, entry.shape))}]"
        for name, entry in sorted(file.entries.items())
    }


def steering(said: Said, content: dict[str, Any], more: dict[str, Any]) -> Artefact:
    """A file for another tool, by what it says of itself; `more`: what is in it."""
    return Artefact(
        STEERING,
        {"model": said.model, "concept": said.concept},
        made_of(content),
        {
            "operation": f"{said.operation} to {said.site}, {said.positions} positions",
            "blocks": said.blocks,
            "strength": f"{said.strength:g} {said.strength_unit}, in {said.strength_in}",
            "share of the residual norm": said.share_of_residual_norm,
            **more,
        },
        content,
    )
