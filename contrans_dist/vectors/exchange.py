"""Concept vectors to the files of other tools, and from them."""

import math
import re
from dataclasses import replace

import numpy as np

from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.formats import Format, format_named, readable
from contrans_dist.vectors.formats.addition import Addition
from contrans_dist.vectors.formats.foreign import Asked, Foreign


def export_vector(
    vector: ConceptVector,
    location: Location,
    format_name: str,
    blocks: str | None = None,
    strength: float = 1.0,
    asked: Asked = Asked(),  # noqa: B008 - it is frozen
) -> tuple[Addition, list[Location]]:
    """Write a concept vector as a file of another tool.

    Args:
        vector: In the space of the model it is to steer.
        location: The file; its name ends as the format's do.
        format_name: One of `formats.FORMATS`.
        blocks: Blocks, from 0: `20`, `3,5`, `8:16`, `all`. None takes the only one that the vector carries,
            or all of them where the format is a table of rows.
        strength: The vector's coefficient; multiplied into the values where the format has no field for it.
        asked: What else the format needs, such as the model. Default: the vector's own.

    Returns:
        What was written, and the files, the one asked for first.

    Raises:
        UserError: For what the format cannot say, and what is missing for it.
    """
    entry = format_named(format_name)
    if not location.name.endswith(entry.suffixes):
        raise UserError(f"--out {location}: expected a name that ends in {' or '.join(entry.suffixes)}")
    if not math.isfinite(strength) or strength == 0:
        raise UserError(f"--strength {strength:g}: expected a finite number other than 0")
    addition = Addition(vector, _chosen(vector, blocks, entry), strength)
    if asked.model is None:
        asked = replace(asked, model=vector.model)
    return addition, entry.write(addition, location, asked)


def _chosen(vector: ConceptVector, blocks: str | None, entry: Format) -> tuple[int, ...]:
    """The blocks that are meant, all of which the vector carries."""
    carried = vector.blocks
    if not carried:
        raise UserError(f"vector {vector.concept!r} carries nothing at any block")
    if blocks is None:
        if len(carried) > 1 and not entry.is_table:
            raise UserError(f"vector {vector.concept!r} carries blocks {carried}; say which with --block")
        return tuple(carried)
    if blocks.strip() == "all":
        return tuple(carried)
    if re.fullmatch(r"[0-9]{1,6}", blocks):
        chosen = [int(blocks)]
    else:
        from contrans_dist.models import resolve_blocks  # torch comes with it

        chosen = resolve_blocks(blocks, vector.n_blocks, "--block")
    for block in chosen:
        vector.at(block)
    return tuple(chosen)


def import_vector(
    location: Location,
    asked: Asked = Asked(),  # noqa: B008 - it is frozen
    format_name: str | None = None,
    concept: str | None = None,
    norms: str | None = None,
) -> ConceptVector:
    """A concept vector from a file of another tool: at strength 1 it does what the file does.

    Args:
        location: A GGUF control vector, an array, or what lm-evaluation-harness steers with.
        asked: The model, and the block of an array of one row: needed where the file does not say them.
        format_name: One of `formats.FORMATS`; None goes by the file's name.
        concept: Its name. None takes the one in the file, or the file's own.
        norms: An activation set or a vector of the same model, whose residual norms are taken; `none` for
            going without. Needed where the file does not say them.

    Raises:
        UserError: For a file that cannot be read, is for another model, or does not say what is needed.
    """
    entry = readable(location, format_name)
    assert entry.read is not None
    foreign = entry.read(location, asked)
    said = foreign.said
    if asked.block is not None and set(foreign.rows) != {asked.block}:
        raise UserError(f"--block {asked.block}: {location} says itself: {sorted(foreign.rows)}")
    if asked.model is not None or said is None:
        n_blocks, model = _checked(location, foreign, asked), str(asked.model)
    else:
        n_blocks, model = said.n_blocks, said.model
    if norms is None and not (said and said.residual_norms):
        raise UserError(
            f"--norms is missing: {location} does not say how long rows of the model's residual stream are; "
            "expected an activation set or a vector of that model, or none"
        )
    if foreign.n_blocks not in (None, n_blocks):
        raise UserError(f"{location}: rows for {foreign.n_blocks} blocks, {model} has {n_blocks}")
    values = _table(location, foreign, n_blocks)
    steps = [f"exported at strength {said.strength:g} from {said.concept}"] if said is not None else []
    vector = ConceptVector(
        values=values,
        concept=concept or foreign.concept or (said and said.concept) or location.name.rpartition(".")[0],
        model=model,
        method="imported",
        steps=(*steps, f"imported from {location.name} ({entry.name})"),
    )
    known = _norms(norms, vector) if norms is not None else said.residual_norms if said else {}
    return replace(vector, norms={b: norm for b, norm in known.items() if b < n_blocks})


def _checked(location: Location, foreign: Foreign, asked: Asked) -> int:
    """Blocks of the model asked for. Raises UserError where the file is for another."""
    names = asked.names
    if foreign.model_type not in (None, names.model_type):
        raise UserError(
            f"--model {asked.model}: it is of type {names.model_type}, {location} is for {foreign.model_type}"
        )
    widths = {row.size for row in foreign.rows.values()}
    if widths - {names.d}:
        raise UserError(f"--model {asked.model}: it is {names.d} wide, {location} is {max(widths)}")
    return len(names.blocks)


def _table(location: Location, foreign: Foreign, n_blocks: int) -> np.ndarray:
    """The rows as `[n_blocks, d]`. Raises UserError for none, for one that is not finite, and for a block
    that the model has not."""
    for block, row in foreign.rows.items():
        if not np.isfinite(row).all():
            raise UserError(f"{location}: block {block}: expected finite numbers")
    rows = {block: row for block, row in foreign.rows.items() if row.any()}
    if not rows:
        raise UserError(f"{location}: expected rows, found none but zeros")
    if len({row.size for row in rows.values()}) != 1:
        raise UserError(f"{location}: rows of several widths")
    if max(rows) >= n_blocks:
        raise UserError(f"{location}: block {max(rows)}: the model has blocks 0 to {n_blocks - 1}")
    values = np.zeros((n_blocks, next(iter(rows.values())).size), np.float32)
    for block, row in rows.items():
        values[block] = row
    return values


def _norms(name: str, vector: ConceptVector) -> dict[int, float]:
    """The residual norms in an activation set or a vector. Raises UserError for one of another model."""
    if name == "none":
        return {}
    place = Location.parse(name)
    like: ConceptVector | ActivationSet = (
        ConceptVector.load(place) if place.name.endswith(".safetensors") else ActivationSet.open(place)
    )
    if (like.n_blocks, like.d) != (vector.n_blocks, vector.d):
        raise UserError(
            f"--norms {name}: of a model of {like.n_blocks} blocks of {like.d}, this vector is for "
            f"{vector.n_blocks} of {vector.d}"
        )
    return dict(like.norms) if isinstance(like, ConceptVector) else like.norms
