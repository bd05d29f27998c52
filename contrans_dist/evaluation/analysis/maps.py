"""What a map file says of itself: fit by block pair, the pair that was used, cosines to own vectors."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockTable, MapHeader, Pair, PairHeader, TriedPair, open_map


@dataclass(frozen=True)
class MapSummary:
    """One map file's header, read without its weights."""

    name: str
    header: MapHeader

    @property
    def r2(self) -> BlockTable | None:
        """Validation R2 by block pair."""
        return self.header.r2_table

    @property
    def chosen(self) -> Pair | None:
        """The pair that is used."""
        if self.header.selection:
            return self.header.selection.chosen
        pairs = self.header.pairs
        return (pairs[0].source, pairs[0].target) if len(pairs) == 1 else None

    @property
    def criterion(self) -> str:
        """The metric that the pair was chosen by; empty where none says."""
        return self.header.selection.criterion if self.header.selection else ""

    @property
    def tried_on(self) -> str:
        """What pairs were tried on, in words."""
        return self.header.selection.tried_on if self.header.selection else ""

    @property
    def candidates(self) -> list[TriedPair]:
        """Block pairs and strengths that were tried, best first; those over the budget last."""
        selection = self.header.selection
        if selection is None:
            return []
        return sorted(selection.candidates, key=lambda tried: (selection.over(tried), -selection.gain(tried)))

    @property
    def choice(self) -> BlockTable | None:
        """Best score of each block pair that was tried."""
        selection = self.header.selection
        if selection is None or not selection.candidates:
            return None
        source = sorted({tried.source for tried in selection.candidates})
        target = sorted({tried.target for tried in selection.candidates})
        best = np.full((len(source), len(target)), np.nan)
        for tried in sorted(selection.candidates, key=selection.gain):
            best[source.index(tried.source), target.index(tried.target)] = tried.score
        return BlockTable.of(source, target, best)

    @property
    def pair(self) -> PairHeader | None:
        """What is known of the chosen pair, else of the only one."""
        for pair in self.header.pairs:
            if (pair.source, pair.target) == self.chosen:
                return pair
        return self.header.pairs[0] if len(self.header.pairs) == 1 else None

    @property
    def warnings(self) -> list[str]:
        """Warnings of all pairs, each with its blocks."""
        return [
            f"map {self.name}, block {pair.source} → {pair.target}: {warning}"
            for pair in self.header.pairs
            for warning in pair.warnings
        ]


def read_map(location: Location) -> MapSummary:
    """Summary of a map file; only its header is read. Raises UserError for any other file."""
    _, header = open_map(location)
    return MapSummary(location.name.removesuffix(".safetensors"), header)


def block_rows(table: BlockTable, value: str) -> pa.Table:
    """A table of blocks as one row a pair: source_block, target_block, and the value under the given name."""
    cells = [(s, t, v) for s, line in zip(table.source, table.values, strict=True)
             for t, v in zip(table.target, line, strict=True)]  # fmt: skip
    return pa.table(
        {
            "source_block": pa.array([cell[0] for cell in cells], pa.int64()),
            "target_block": pa.array([cell[1] for cell in cells], pa.int64()),
            value: pa.array([cell[2] for cell in cells], pa.float64()),
        }
    )
