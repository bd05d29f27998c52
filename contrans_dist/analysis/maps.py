"""What a map file says of itself: fit by block pair, the pair that was used, cosines to own vectors."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contrans_dist.artifacts import tensor_header
from contrans_dist.errors import UserError
from contrans_dist.storage import Location


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
    header = tensor_header(location)
    if header.get("kind") != "map":
        raise UserError(f"{location}: expected a map file, this is a {header.get('kind', 'foreign')} file")
    try:
        table, selection = header.get("r2_table"), header.get("selection") or {}
        pairs = [dict(pair) for pair in header.get("pairs") or []]
        chosen = selection.get("chosen") or (
            [pairs[0]["source"], pairs[0]["target"]] if len(pairs) == 1 else None
        )
        return MapSummary(
            name=location.name.removesuffix(".safetensors"),
            protocol=str(header.get("protocol", "")),
            source_model=str(header.get("source_model", "")),
            target_model=str(header.get("target_model", "")),
            pairs=pairs,
            r2=Grid(list(table["source"]), list(table["target"]), [list(line) for line in table["r2"]])
            if table
            else None,
            chosen=(int(chosen[0]), int(chosen[1])) if chosen else None,
            candidates=sorted(selection.get("candidates") or [], key=lambda entry: -float(entry["score"])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{location}: expected the header of a map ({error!r})") from error


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
