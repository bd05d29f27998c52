"""Rows of the conditions that follow from the vectors under test alone, so that no run is needed."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from contrans_dist.errors import UserError
from contrans_dist.vectors.concept_vector import ConceptVector

Row = NDArray[np.float32]
"""What is added at a block, `[d]`; or `[items, d]`, a row for each item."""
RowMaker = Callable[[Mapping[str, ConceptVector], str, int | None], tuple[int, Row]]
"""From the vectors by concept, a concept, and a block that may be asked for: (block, row)."""


def row_of(vector: ConceptVector, block: int | None) -> tuple[int, Row]:
    """(block, row): at the block asked for, else the only one the vector carries.

    Raises UserError when it carries nothing there, or several blocks and none is asked for.
    """
    if block is not None:
        return block, vector.at(block)
    if not vector.blocks:
        raise UserError(f"vector {vector.concept!r} carries nothing at any block")
    if len(vector.blocks) != 1:
        raise UserError(f"vector {vector.concept!r} carries blocks {vector.blocks}; say which with --block")
    return vector.blocks[0], vector.at(vector.blocks[0])


def main_row(main: Mapping[str, ConceptVector], concept: str, block: int | None) -> tuple[int, Row]:
    """The concept's own."""
    return row_of(main[concept], block)


def other_row(main: Mapping[str, ConceptVector], concept: str, block: int | None) -> tuple[int, Row]:
    """The next concept's. Raises UserError when there is one alone."""
    names = list(main)
    if len(names) < 2:
        raise UserError("control other-concept: give the vectors of at least two concepts")
    return row_of(main[names[(names.index(concept) + 1) % len(names)]], block)


def shuffled_row(main: Mapping[str, ConceptVector], concept: str, block: int | None) -> tuple[int, Row]:
    """The same vector through the map fitted on shuffled rows. Raises UserError for one without a map."""
    shuffled = main[concept].shuffled_map
    if shuffled is None:
        raise UserError(f"control shuffled-map: vector {concept!r} did not come through a map")
    at, _ = row_of(main[concept], block)
    return at, shuffled[at]
