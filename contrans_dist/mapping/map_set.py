"""Maps on disk: one for each pair of blocks, and what is known of it; a concept vector through one."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrans_dist.errors import UserError
from contrans_dist.mapping.linear_map import AffineMap
from contrans_dist.mapping.transplant import transplant
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import (
    BlockSelection,
    BlockTable,
    MapHeader,
    Pair,
    PairHeader,
    open_map,
)
from contrans_dist.store.tensors import save_tensors
from contrans_dist.vectors.concept_vector import ConceptVector


@dataclass(frozen=True)
class MapSet:
    """The maps between two models that one corpus gave, by pair of blocks."""

    source_model: str
    target_model: str
    n_target_blocks: int
    protocol: str
    maps: dict[Pair, AffineMap]
    source_norms: dict[int, float]
    """Median norm of the source's residual stream by block; what `norm: match` needs."""
    target_norms: dict[int, float]
    shuffled: dict[Pair, NDArray[np.float32]] = field(default_factory=dict)
    """Weights fitted with the source's rows permuted: the control."""
    text_hashes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Units of the corpus (`contamination.unit_hashes`); empty where they are not known."""
    r2_table: BlockTable | None = None
    cosines: dict[Pair, dict[str, float]] = field(default_factory=dict)
    """For each pair and concept, the cosine of the mapped vector to the target's own."""
    selection: BlockSelection | None = None
    """How the pair was chosen on validation data, when it was."""

    def only_pair(self, pair: Pair | None = None) -> Pair:
        """The pair asked for, or the only one. Raises UserError when there is a choice, or no such pair."""
        pairs = ", ".join(f"{source}:{target}" for source, target in sorted(self.maps))
        if pair is None and len(self.maps) == 1:
            return next(iter(self.maps))
        if pair is None:
            raise UserError(f"the map holds several pairs of blocks ({pairs}); say which with --blocks")
        if pair not in self.maps:
            raise UserError(f"the map has no pair {pair[0]}:{pair[1]}; it holds {pairs}")
        return pair

    def carry(self, vector: ConceptVector, norm: str = "keep", pair: Pair | None = None) -> ConceptVector:
        """A source vector in the target's space, at the pair's target block (equation 2: v F, no bias).

        A map over several source blocks takes the vector's rows at all of them; `match` still measures the
        row at the pair's own source block, so that a strength means the same with any number of them.

        Args:
            vector: Of the source model.
            norm: See `transplant.transplant`.
            pair: Through which of the maps; None is the only one.

        Returns:
            The vector for the target, at the pair's target block alone; beside it the same vector through the
            shuffled map, as a control, where there is one.

        Raises:
            UserError: When the vector is of another width or carries nothing at a source block, when `match`
                lacks a norm, and when nothing, or no finite number, comes out.
        """
        source, target = self.only_pair(pair)
        mapping, shuffled = self.maps[source, target], self.shuffled.get((source, target))
        blocks = mapping.source_blocks or [source]
        if mapping.weight.shape[0] != vector.d * len(blocks):
            raise UserError(
                f"vector {vector.concept!r} is {vector.d} wide, the map takes "
                f"{mapping.weight.shape[0] // len(blocks)}"
            )
        rows = np.stack([vector.at(block) for block in blocks])
        norms = self.source_norms.get(source), self.target_norms.get(target)

        def through(weight: NDArray[np.float32]) -> NDArray[np.float32]:
            try:
                with np.errstate(over="ignore"):
                    mapped = transplant(rows, weight, norm, *norms)
            except ValueError as error:
                raise UserError(f"vector {vector.concept!r}: {error}") from error
            if not (np.isfinite(mapped).all() and mapped.any()):
                raise UserError(f"vector {vector.concept!r}: the map takes it to nothing, or beyond float32")
            values = np.zeros((self.n_target_blocks, mapped.size), np.float32)
            values[target] = mapped
            return values

        step = f"mapped block {'+'.join(map(str, blocks))} -> {target}, protocol {self.protocol}, norm {norm}"
        return replace(
            vector,
            values=through(mapping.weight),
            shuffled_map=None if shuffled is None else through(shuffled),
            model=self.target_model,
            norms=self.target_norms,
            map_text_hashes=np.union1d(vector.map_text_hashes, self.text_hashes),
            map_texts_known=vector.map_texts_known and self.text_hashes.size > 0,
            steps=(*vector.steps, step),
        )

    def save(self, location: Location) -> None:
        """Publish as safetensors: `weight.{s}.{t}`, `bias.{s}.{t}`, `shuffled.{s}.{t}`, and the header.

        A map over several source blocks is filed under its highest, {s}; `source_blocks` in the header lists
        them in the order of the weight's rows, d_source of them each.
        """
        tensors: dict[str, NDArray[Any]] = {}
        pairs = []
        for (source, target), mapping in self.maps.items():
            tensors[f"weight.{source}.{target}"] = mapping.weight
            tensors[f"bias.{source}.{target}"] = mapping.bias
            cosines = self.cosines.get((source, target), {})
            pairs.append(PairHeader(source=source, target=target, **mapping.header(), cosines=cosines))
        for (source, target), weight in self.shuffled.items():
            tensors[f"shuffled.{source}.{target}"] = weight
        if self.text_hashes.size:
            tensors["text_hashes"] = self.text_hashes
        header = MapHeader(
            protocol=self.protocol,
            source_model=self.source_model,
            target_model=self.target_model,
            n_target_blocks=self.n_target_blocks,
            pairs=pairs,
            source_norms=self.source_norms,
            target_norms=self.target_norms,
            r2_table=self.r2_table,
            selection=self.selection,
        ).model_dump(mode="json", by_alias=True)
        save_tensors(location, tensors, header)

    @classmethod
    def load(cls, location: "Location | str") -> "MapSet":
        """Raises UserError when the file is missing, holds no maps of ours, or contradicts itself."""
        file, header = open_map(Location.parse(location))
        facts = {(pair.source, pair.target): pair for pair in header.pairs}
        tensors = file.read(
            ["text_hashes", *(f"{name}.{s}.{t}" for s, t in facts for name in ("weight", "bias", "shuffled"))]
        )
        names = {pair: f"shuffled.{pair[0]}.{pair[1]}" for pair in facts}
        return cls(
            source_model=header.source_model,
            target_model=header.target_model,
            n_target_blocks=header.n_target_blocks,
            protocol=header.protocol,
            maps={
                (s, t): AffineMap.from_header(
                    tensors[f"weight.{s}.{t}"], tensors[f"bias.{s}.{t}"], pair.model_dump()
                )
                for (s, t), pair in facts.items()
            },
            source_norms=header.source_norms,
            target_norms=header.target_norms,
            shuffled={pair: tensors[name] for pair, name in names.items() if name in tensors},
            text_hashes=tensors.get("text_hashes", np.empty(0, np.int64)),
            r2_table=header.r2_table,
            cosines={pair: entry.cosines for pair, entry in facts.items() if entry.cosines},
            selection=header.selection,
        )
