"""What a map file says of itself: fit by block pair, the pair that was used, cosines to own vectors."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contrans_dist.mapping.map_header import open_map
from contrans_dist.store.location import Location


@dataclass(frozen=True)
class Grid:
    """Values by block pair: `values[i][j]` belongs to source block `source[i]`, target block `target[j]`."""

    source: list[int]
    target: list[int]
    values: list[list[float | None]]

    @property
    def known(self) -> list[float]:
        return [value for line in self.values for value in line if value is not None]


@dataclass(frozen=True)
class MapSummary:
    """One map file's header, read without its weights."""

    name: str
    protocol: str
    source_model: str
    target_model: str
    pairs: list[dict[str, Any]]
    r2: Grid | None
    """Validation R2 by block pair."""
    chosen: tuple[int, int] | None
    candidates: list[dict[str, Any]]
    """Block pairs and strengths tried on the validation scenarios, best score first."""

    @property
    def choice(self) -> Grid | None:
        """Best validation score of each block pair that was tried."""
        best: dict[tuple[int, int], float] = {}
        for entry in self.candidates:
            pair = (int(entry["source"]), int(entry["target"]))
            best[pair] = max(best.get(pair, float("-inf")), float(entry["score"]))
        if not best:
            return None
        source, target = sorted({s for s, _ in best}), sorted({t for _, t in best})
        return Grid(source, target, [[best.get((s, t)) for t in target] for s in source])

    @property
    def pair(self) -> dict[str, Any] | None:
        """What is known of the chosen pair, else of the only one."""
        for pair in self.pairs:
            if (pair["source"], pair["target"]) == self.chosen:
                return pair
        return self.pairs[0] if len(self.pairs) == 1 else None

    @property
    def warnings(self) -> list[str]:
        """Warnings of all pairs, each with its blocks."""
        return [
            f"map {self.name}, block {pair['source']} → {pair['target']}: {warning}"
            for pair in self.pairs
            for warning in pair.get("warnings") or []
        ]


def read_map(location: Location) -> MapSummary:
    """Summary of a map file; only its header is read. Raises UserError for any other file."""
    _, header = open_map(location)
    pairs, chosen = [pair.model_dump() for pair in header.pairs], None
    if header.selection and header.selection.chosen:
        chosen = header.selection.chosen
    elif len(pairs) == 1:
        chosen = (header.pairs[0].source, header.pairs[0].target)
    tried = header.selection.candidates if header.selection else []
    table = header.r2_table
    return MapSummary(
        name=location.name.removesuffix(".safetensors"),
        protocol=header.protocol,
        source_model=header.source_model,
        target_model=header.target_model,
        pairs=pairs,
        r2=Grid(table.source, table.target, table.r2) if table else None,
        chosen=chosen,
        candidates=sorted((each.model_dump() for each in tried), key=lambda entry: -float(entry["score"])),
    )


def grid_table(grid: Grid, value: str) -> pa.Table:
    """A grid as one row a pair: source_block, target_block, and the value under the given name."""
    cells = [(s, t, v) for s, line in zip(grid.source, grid.values, strict=True)
             for t, v in zip(grid.target, line, strict=True)]  # fmt: skip
    return pa.table(
        {
            "source_block": pa.array([cell[0] for cell in cells], pa.int64()),
            "target_block": pa.array([cell[1] for cell in cells], pa.int64()),
            value: pa.array([cell[2] for cell in cells], pa.float64()),
        }
    )
