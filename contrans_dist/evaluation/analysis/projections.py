"""Analyses that a run keeps beside its artefacts: t-SNE of states and differences, similarity of maps."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis.run import Run
from contrans_dist.store.location import Location
from contrans_dist.store.tables import Kind, read_columns

ANALYSES_FOLDER = "analyses"
SIMILARITY_FILE = "map-similarity.parquet"
_KINDS = ("states", "differences")
_POINTS: dict[str, Kind] = {
    "model": "text", "block": "whole", "concept": "text", "x": "number", "y": "number",
}  # fmt: skip
_PAIRS: dict[str, Kind] = {"a": "text", "b": "text", "similarity": "number"}


@dataclass(frozen=True)
class Panel:
    """Points of one model at one block."""

    model: str
    block: int
    concepts: list[str]
    points: NDArray[np.float64]
    """`[n, 2]`"""


@dataclass(frozen=True)
class Projection:
    """One file `states-<side>.parquet` or `differences-<side>.parquet`, by model and block."""

    kind: str
    side: str
    panels: list[Panel]
    table: pa.Table

    @property
    def concepts(self) -> list[str]:
        return sorted({concept for panel in self.panels for concept in panel.concepts})


@dataclass(frozen=True)
class Similarity:
    """How alike maps are: `values[i][j]` between `names[i]` and `names[j]`."""

    names: list[str]
    values: list[list[float | None]]
    table: pa.Table


def read_projections(run: Run) -> list[Projection]:
    """Every projection of a run: states first, source before target."""
    folder = run.location / ANALYSES_FOLDER
    projections = []
    for name in folder.names():
        kind, _, side = name.removesuffix(".parquet").partition("-")
        if kind in _KINDS and name.endswith(".parquet"):
            table = _read(folder / name, _POINTS)
            if table.num_rows:
                projections.append(Projection(kind, side, _panels(table), table))
    return sorted(projections, key=lambda projection: (_KINDS.index(projection.kind), projection.side))


def _panels(table: pa.Table) -> list[Panel]:
    rows = table.to_pydict()
    places = list(zip(rows["model"], rows["block"], strict=True))
    points = np.column_stack([rows["x"], rows["y"]]).astype(np.float64)
    panels = []
    for model, block in dict.fromkeys(places):
        indices = [index for index, place in enumerate(places) if place == (model, block)]
        panels.append(
            Panel(
                str(model),
                int(block or 0),
                [str(rows["concept"][index]) for index in indices],
                points[indices],
            )
        )
    return panels


def read_similarity(run: Run) -> Similarity | None:
    """The similarity of the run's maps; None where it was not made."""
    location = run.location / ANALYSES_FOLDER / SIMILARITY_FILE
    if not location.exists():
        return None
    table = _read(location, _PAIRS)
    rows = table.to_pylist()
    names = list(dict.fromkeys(str(row[end]) for end in ("a", "b") for row in rows))
    known = {(str(row["a"]), str(row["b"])): row["similarity"] for row in rows}
    known |= {(b, a): value for (a, b), value in known.items() if (b, a) not in known}
    values = [[None if known.get((a, b)) is None else float(known[a, b]) for b in names] for a in names]
    return Similarity(names, values, table) if names else None


def _read(location: Location, columns: dict[str, Kind]) -> pa.Table:
    """The columns of a Parquet file. Raises UserError when one is missing."""
    table = read_columns(location, columns)
    if table is None:
        raise UserError(f"{location}: expected columns {', '.join(columns)}")
    return table
