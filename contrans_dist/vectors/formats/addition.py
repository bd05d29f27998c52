"""What other tools are given: rows to be added to what blocks return, and what their file says of itself."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt

from contrans_dist.config.limits import BLOCKS, JSON_BYTES, check_size
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import Made, made_by
from contrans_dist.store.vector_file import Norms
from contrans_dist.vectors.concept_vector import ConceptVector

KEY = "contrans"
"""Where a file has a place for it, what it says stands under this key, as JSON."""
STEERING = "steering"
"""The kind of a file for another tool."""
Row = NDArray[np.float32]
"""`[d]`: of one block, in the units of the residual stream."""


class Said(Made):
    """What a file for another tool says of itself, for who writes and who reads it."""

    kind: Literal["steering"] = "steering"
    operation: Literal["add"] = "add"
    site: Literal["the residual stream as the block returns it"] = (
        "the residual stream as the block returns it"
    )
    blocks: tuple[NonNegativeInt, ...]
    """From 0."""
    strength: FiniteFloat
    strength_unit: Literal["times the concept vector"] = "times the concept vector"
    strength_in: str
    """The field of the file that holds it, or `values` where they were multiplied by it."""
    positions: Literal["all"] = "all"
    concept: str
    model: str
    n_blocks: NonNegativeInt
    """Of the model."""
    residual_norms: Norms = Field(default_factory=dict)
    """Block to median norm of the model's residual stream."""
    share_of_residual_norm: Norms = Field(default_factory=dict)
    """Block to length of what is added, as a part of that norm."""


@dataclass(frozen=True)
class Addition:
    """A concept vector at some blocks: strength times its row is added to what each block returns."""

    vector: ConceptVector
    blocks: tuple[int, ...]
    strength: float = 1.0

    def rows(self) -> dict[int, Row]:
        """Block to the vector's own row."""
        return {block: self.vector.at(block) for block in self.blocks}

    def scaled(self) -> dict[int, Row]:
        """Block to the row times the strength, for formats without a field for it. Raises UserError where
        float32 does not hold that."""
        with np.errstate(over="ignore"):
            rows = {block: np.float32(self.strength) * row for block, row in self.rows().items()}
        for block, row in rows.items():
            if not (np.isfinite(row).all() and row.any()):
                raise UserError(
                    f"--strength {self.strength:g}: times block {block} it is nothing that float32 holds"
                )
        return rows

    def only(self, what: str) -> int:
        """The block of a format that takes one. Raises UserError where there are several."""
        if len(self.blocks) != 1:
            raise UserError(f"--block: {what} takes one block, found {', '.join(map(str, self.blocks))}")
        return self.blocks[0]

    def said(self, strength_in: str) -> str:
        """What the file says of itself, as JSON; `strength_in` as in `Said`."""
        shares = {block: self.vector.share(block, self.strength) for block in self.blocks}
        said = Said(
            blocks=self.blocks,
            strength=self.strength,
            strength_in=strength_in,
            concept=self.vector.concept,
            model=self.vector.model,
            n_blocks=self.vector.n_blocks,
            residual_norms={b: self.vector.norms[b] for b in self.blocks if b in self.vector.norms},
            share_of_residual_norm={block: share for block, share in shares.items() if share is not None},
        )
        content = said.model_dump(mode="json", exclude=set(Made.model_fields))
        return json.dumps({**content, **made_by()}, allow_nan=False, ensure_ascii=False)


def beside(location: Location) -> Location:
    """Where the description of a file lies that has no place for it."""
    return location.parent / f"{location.name}.about.json"


def write_beside(addition: Addition, location: Location, strength_in: str) -> Location:
    """Write it there."""
    place = beside(location)
    place.write_json(json.loads(addition.said(strength_in)))
    return place


def read_said(content: Any, where: str) -> Said:
    """What a file says of itself, from the JSON text or its content. Raises UserError for anything else."""
    if isinstance(content, str):
        check_size(where, len(content), JSON_BYTES)
        content = parse_json(content, where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a JSON object")
    said = validated(Said, content, where)
    check_size(f"{where}: n_blocks", said.n_blocks, BLOCKS, "")
    return said
