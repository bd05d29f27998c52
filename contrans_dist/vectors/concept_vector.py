"""Concept vectors on disk: one row a block, what made them, and the model they are meant for."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.store.tensors import open_tensors, save_tensors
from contrans_dist.store.vector_file import KIND, VectorHeader


def _no_hashes() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class ConceptVector:
    """A concept as a direction at each block of one model, with what made it; a safetensors file on disk."""

    values: NDArray[np.float32]
    """float32 `[n_blocks, d]`: a row a block, zero where a block carries nothing."""
    concept: str
    """Its name."""
    model: str
    """The model it is meant for: where it was made, or where a map took it."""
    method: str = "mean"
    """How it was made: `mean` or `pca`."""
    n_positive: int = 0
    n_negative: int = 0
    norms: dict[int, float] = field(default_factory=dict)
    """Block to the median norm of that model's residual stream; a strength is read as a fraction of it."""
    text_hashes: NDArray[np.int64] = field(default_factory=_no_hashes)
    """Hashes of the contrast texts' sentences, for the contamination check, int64 `[n]`."""
    map_text_hashes: NDArray[np.int64] = field(default_factory=_no_hashes)
    """The same of the texts the map was fitted on."""
    map_texts_known: bool = True
    """Whether each map that it went through says which texts it was fitted on."""
    shuffled_map: NDArray[np.float32] | None = None
    """The same vector through the map fitted on shuffled rows, `[n_blocks, d]`: a control."""
    steps: tuple[str, ...] = ()
    """How it came to be, oldest first."""

    @property
    def n_blocks(self) -> int:
        """Blocks of the model."""
        return int(self.values.shape[0])

    @property
    def d(self) -> int:
        """Width of the model's residual stream."""
        return int(self.values.shape[1])

    @property
    def blocks(self) -> list[int]:
        """Blocks that carry something."""
        return np.flatnonzero(self.values.any(axis=1)).tolist()

    def at(self, block: int) -> NDArray[np.float32]:
        """The row of one block, float32 `[d]`. Raises UserError when it carries nothing."""
        if block not in self.blocks:
            raise UserError(
                f"vector {self.concept!r} carries nothing at block {block}; it holds {self.blocks}"
            )
        return self.values[block]

    def only(self, block: int) -> "ConceptVector":
        """This vector at one block alone, without its shuffled control."""
        values = np.zeros_like(self.values)
        values[block] = self.at(block)
        return replace(self, values=values, shuffled_map=None)

    def share(self, block: int, strength: float = 1.0) -> float | None:
        """Length of strength times the row of a block, as a part of the model's median residual norm there;
        None where that is not known."""
        norm = self.norms.get(block)
        return abs(strength) * float(np.linalg.norm(self.at(block))) / norm if norm else None

    def save(self, location: Location) -> None:
        """Write it as safetensors: tensor `vector` `[n_blocks, d]`, the hashes, and a `VectorHeader`."""
        tensors: dict[str, NDArray[Any]] = {"vector": self.values.astype(np.float32)}
        for name, hashes in (("text_hashes", self.text_hashes), ("map_text_hashes", self.map_text_hashes)):
            if hashes.size:
                tensors[name] = hashes
        if self.shuffled_map is not None:
            tensors["shuffled_map"] = self.shuffled_map.astype(np.float32)
        header = VectorHeader(
            concept=self.concept,
            model=self.model,
            method=self.method,
            blocks=tuple(self.blocks),
            absent=tuple(block for block in range(self.n_blocks) if block not in self.blocks),
            n_positive=self.n_positive,
            n_negative=self.n_negative,
            norms=self.norms,
            map_texts_known=self.map_texts_known,
            steps=self.steps,
        )
        save_tensors(location, tensors, header.model_dump(mode="json"))

    @classmethod
    def load(cls, location: "Location | str") -> "ConceptVector":
        """Read one from a path or URI.

        Raises:
            UserError: When the file is missing, is no vector of ours, or contradicts itself.
        """
        file = open_tensors(Location.parse(location), KIND)
        header = file.model(VectorHeader)
        shape = file.shape("vector", "F32", 2)
        beyond = [block for block in header.norms if block >= shape[0]]
        if beyond:
            raise UserError(f"{file.location}: header: norms: block {beyond[0]} of {shape[0]}")
        for name in ("text_hashes", "map_text_hashes"):
            if name in file.entries:
                file.shape(name, "I64", 1)
        if "shuffled_map" in file.entries:
            file.require("shuffled_map", shape)
        tensors = file.read(("vector", "text_hashes", "map_text_hashes", "shuffled_map"))
        vector = cls(
            values=tensors["vector"],
            concept=header.concept,
            model=header.model,
            method=header.method,
            n_positive=header.n_positive,
            n_negative=header.n_negative,
            norms=header.norms,
            text_hashes=tensors.get("text_hashes", _no_hashes()),
            map_text_hashes=tensors.get("map_text_hashes", _no_hashes()),
            map_texts_known=header.map_texts_known,
            shuffled_map=tensors.get("shuffled_map"),
            steps=header.steps,
        )
        if header.blocks is not None and list(header.blocks) != vector.blocks:
            raise UserError(
                f"{file.location}: blocks: the header names {list(header.blocks)}, the tensor carries "
                f"{vector.blocks}"
            )
        return vector
