"""What a vector file says of itself: one model of its header, for writer and readers alike."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt

from contrans_dist.store.provenance import Made

KIND = "vector"
Norms = dict[NonNegativeInt, Annotated[FiniteFloat, Field(ge=0)]]
"""Median norm of a model's residual stream by block, as a header holds it."""


class VectorHeader(Made):
    """The header of a vector file, for who writes and who reads it."""

    format: Literal[1] = 1
    kind: Literal["vector"] = "vector"
    concept: str
    model: str
    method: str = "mean"
    blocks: tuple[NonNegativeInt, ...] | None = None
    absent: tuple[NonNegativeInt, ...] | None = None
    n_positive: NonNegativeInt = 0
    n_negative: NonNegativeInt = 0
    norms: Norms = Field(default_factory=dict)
    map_texts_known: bool = True
    """Whether each map that it went through says which texts it was fitted on."""
    steps: tuple[str, ...] = ()
