"""What a map file says of itself: one model of its header, for writer and readers alike."""

from collections.abc import Collection, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from contrans_dist.config import FileModel
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.store.tensors import TensorFile, open_tensors
from contrans_dist.store.trials import Outcome, Trials
from contrans_dist.store.vector_file import Norms

KIND = "map"
Pair = tuple[int, int]
"""(block of the source, block of the target)"""


class PairHeader(FileModel):
    """What a map's header says of one pair: the pair, and `AffineMap`'s facts."""

    source: NonNegativeInt
    target: NonNegativeInt
    protocol: str = "default"
    side: str
    n_fit: NonNegativeInt
    rank: NonNegativeInt
    condition_number: FiniteFloat | None = None
    ridge: FiniteFloat | None = None
    r2_validation: FiniteFloat | None = None
    r2_test: FiniteFloat | None = None
    r2_test_column: FiniteFloat | None = None
    mse_test: FiniteFloat | None = None
    held_out: bool = True
    warnings: list[str] = Field(default_factory=list)
    centre: bool | Literal["token"] | None = None
    regularise: str | None = None
    source_blocks: list[NonNegativeInt] | None = Field(None, min_length=1)
    n_effective: NonNegativeInt | None = None
    cosines: dict[str, FiniteFloat] = Field(default_factory=dict)


class BlockTable(FileModel):
    """A value for every pair of blocks: `values[i][j]` is that of the blocks `source[i]` and `target[j]`.

    None where there is no value. In a map's header it is the validation R2, under that name.
    """

    source: list[NonNegativeInt]
    target: list[NonNegativeInt]
    values: list[list[FiniteFloat | None]] = Field(alias="r2")

    @classmethod
    def of(cls, source: Sequence[int], target: Sequence[int], values: NDArray[np.float64]) -> Self:
        """The table of values `[source, target]`, NaN where there is none."""
        cells = [[None if np.isnan(value) else float(value) for value in line] for line in values]
        return cls(source=list(source), target=list(target), r2=cells)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.values) != len(self.source) or any(len(line) != len(self.target) for line in self.values):
            raise PydanticCustomError("shape", "a row a source block, in each a number a target block")
        return self

    @property
    def array(self) -> NDArray[np.float64]:
        """float64 `[source, target]`, NaN where there is no value."""
        return np.array(self.values, np.float64)

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for line in self.values for value in line if value is not None]

    def only(self, source: Collection[int], target: Collection[int]) -> Self:
        """The part for those of these blocks that it has; a side of which it has none stays whole."""
        rows = [i for i, block in enumerate(self.source) if block in source] or range(len(self.source))
        columns = [i for i, block in enumerate(self.target) if block in target] or range(len(self.target))
        kept = [self.source[i] for i in rows], [self.target[i] for i in columns]
        return self.of(*kept, self.array[np.ix_(list(rows), list(columns))])

    def best(self) -> Pair:
        """The pair of the highest value."""
        row, column = np.unravel_index(np.nanargmax(self.array), self.array.shape)
        return self.source[int(row)], self.target[int(column)]

    def best_source(self, target: int) -> int:
        """The source block of the highest value for this target block."""
        return self.source[int(np.nanargmax(self.array[:, self.target.index(target)]))]

    def at(self, pair: Pair) -> float:
        """The value of one pair, NaN where there is none."""
        return float(self.array[self.source.index(pair[0]), self.target.index(pair[1])])


class TriedPair(Outcome):
    """A pair of blocks and a strength that were tried."""

    source: NonNegativeInt
    target: NonNegativeInt


class BlockSelection(Trials):
    """How a pair of blocks was chosen: by trial, or by what is near."""

    criterion: str = ""
    tried_on: str = "validation items"
    """What the candidates were tried on, in words: that, `contrast prompts`, or empty where nothing was."""
    candidates: list[TriedPair] = Field(default_factory=list)
    chosen: tuple[NonNegativeInt, NonNegativeInt]
    best: TriedPair | None = None
    """The pair that was chosen, with the strength that chose it."""


class MapHeader(FileModel):
    """The header of a map file."""

    format: Literal[1] = 1
    kind: Literal["map"] = "map"
    protocol: str
    source_model: str
    target_model: str
    n_target_blocks: PositiveInt = Field(le=100_000)
    pairs: list[PairHeader] = Field(min_length=1)
    source_norms: Norms = Field(default_factory=dict)
    target_norms: Norms = Field(default_factory=dict)
    r2_table: BlockTable | None = None
    selection: BlockSelection | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        pairs = [(pair.source, pair.target) for pair in self.pairs]
        if len(set(pairs)) < len(pairs):
            raise PydanticCustomError("pairs", "pairs of blocks, each once")
        beyond = [
            block for block in (*(t for _, t in pairs), *self.target_norms) if block >= self.n_target_blocks
        ]
        if beyond:
            wanted = f"target blocks below n_target_blocks, {self.n_target_blocks}, and not {beyond[0]}"
            raise PydanticCustomError("blocks", "{wanted}", {"wanted": wanted})
        return self


def open_map(location: Location) -> tuple[TensorFile, MapHeader]:
    """A map's header, held against the shapes of its tensors, none of which is read. Raises UserError."""
    file = open_tensors(location, KIND)
    header, widths = file.model(MapHeader), set()
    for pair in header.pairs:
        name, blocks = f"{pair.source}.{pair.target}", pair.source_blocks or [pair.source]
        rows, width = file.shape(f"weight.{name}", "F32", 2)
        file.require(f"bias.{name}", (width,))
        if f"shuffled.{name}" in file.entries:
            file.require(f"shuffled.{name}", (rows, width))
        if rows % len(blocks) or max(blocks) != pair.source:
            raise UserError(
                f"{location}: header: pairs: source_blocks {blocks} of {rows} rows, block {pair.source}"
            )
        widths.add((rows // len(blocks), width))
    if len(widths) > 1:
        raise UserError(f"{location}: expected maps between the same two widths, found {sorted(widths)}")
    if "text_hashes" in file.entries:
        file.shape("text_hashes", "I64", 1)
    return file, header
