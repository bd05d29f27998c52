"""From rows of hits or values to estimates with intervals, and to paired tests between conditions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from contrans_dist.conditions import CONTROLS, SYSTEMS
from contrans_dist.statistics import mcnemar, mean_interval, wilson

BASE = "base"
Cell = tuple[str, float]
"""A condition and a strength."""
Estimate = dict[str, Any]
"""`{value, low, high, n}`; `low` and `high` are None where there are too few items for an interval."""


def estimate(value: float, interval: tuple[float, float], n: int) -> Estimate:
    """An estimate of `n` items with its 95 % interval; ends that are NaN become None, as JSON has no NaN."""
    low, high = (None if np.isnan(end) else float(end) for end in interval)
    return {"value": float(value), "low": low, "high": high, "n": n}


def proportion(hits: np.ndarray) -> Estimate:
    """The share of bool `[n]`, n > 0, with Wilson's interval."""
    return estimate(hits.mean(), wilson(int(hits.sum()), len(hits)), len(hits))


def mean(values: np.ndarray) -> Estimate:
    """The mean of float `[n]`, n > 0, with its bootstrap interval."""
    return estimate(values.mean(), mean_interval(values), len(values))


@dataclass(frozen=True)
class Metric:
    """How a number is made from the rows of one condition and strength."""

    columns: str | tuple[str, ...]
    """What `estimate` gets: one column `[n]`, or several side by side `[n, columns]`, as float64."""
    estimate: Callable[[np.ndarray], Estimate] = proportion
    test: Callable[[np.ndarray, np.ndarray], float] | None = mcnemar
    """p-value of the same items under two conditions, rows in the same order; None for no test."""
    kind: str | None = None
    """Only items of this kind; None takes all."""


def reference_of(conditions: Iterable[str]) -> str | None:
    """The condition under test, against which the others are tested; None where there is none.

    `vector`, else the first that is neither base nor a control; one that is no vector only for want of
    another.
    """
    tried = [name for name in conditions if name != BASE and name not in CONTROLS]
    return min(tried, key=lambda name: (name != "vector", name in SYSTEMS), default=None)


def table_of(
    cells: Sequence[Cell],
    metrics: Callable[[Cell], dict[str, Estimate]],
    p_values: Callable[[Cell, Cell], dict[str, float]],
) -> dict[str, Any]:
    """`reference` and `conditions` of metrics.json: estimates of each cell, and who is tested against whom.

    Every entry has `p_vs_base`; those of the reference also `p_vs`, by the other condition: against its row
    at the same strength, else against the only row it has, as a condition with a strength of its own does.
    `p_values` gets two cells and returns a p-value by metric; what it returns empty is left out.
    """
    steered = [cell for cell in cells if cell[1] != 0]
    reference = reference_of(name for name, _ in steered)
    base = next((cell for cell in cells if cell[1] == 0), None)
    entries = []
    for cell in cells:
        entry = {"condition": cell[0], "strength": cell[1], "metrics": metrics(cell)}
        entry["p_vs_base"] = p_values(cell, base) if base is not None and cell != base else {}
        if cell[0] == reference and cell in steered:
            found = {name: p_values(cell, other) for name, other in _opponents(cell, steered).items()}
            entry["p_vs"] = {name: by_metric for name, by_metric in found.items() if by_metric}
        entries.append(entry)
    return {"reference": reference, "conditions": entries}


def _opponents(cell: Cell, steered: Sequence[Cell]) -> dict[str, Cell]:
    """The cell of each other condition that can be compared with this one."""
    found = {}
    for name in dict.fromkeys(name for name, _ in steered if name != cell[0]):
        own = [other for other in steered if other[0] == name]
        same = [other for other in own if other[1] == cell[1]]
        if same or len(own) == 1:
            found[name] = (same or own)[0]
    return found


def summarise(table: pa.Table, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """`table_of` the estimates of each condition and strength, over all rows and by concept.

    `table` has `item`, `concept`, `condition`, `strength`, the metrics' columns, and `kind` where a metric
    names one. An item is the same under two conditions when id and concept agree.
    """
    concepts = _column(table, "concept")
    kinds = _column(table, "kind") if any(metric.kind for metric in metrics.values()) else None
    values = {name: _values(table, metric.columns) for name, metric in metrics.items()}
    number = _item_numbers(table)
    cells = _cells(_column(table, "condition"), _column(table, "strength"))

    def estimates(cell: Cell) -> dict[str, Estimate]:
        found: dict[str, Estimate] = {}
        for title, metric in metrics.items():
            rows = _of_kind(cells[cell], kinds, metric.kind)
            found |= _estimates(title, metric, values[title][rows], concepts[rows])
        return found

    def p_values(cell: Cell, other: Cell) -> dict[str, float]:
        found = {}
        for title, metric in metrics.items():
            rows = _of_kind(cells[cell], kinds, metric.kind)
            mine, theirs = _paired(number, rows, cells[other])
            if metric.test is not None and len(mine):
                found[title] = metric.test(values[title][mine], values[title][theirs])
        return found

    return table_of(list(cells), estimates, p_values)


def summarise_hits(table: pa.Table, metrics: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """`summarise` for proportions: `metrics` maps a name to (bool column, kind of item).

    Intervals are Wilson's at 95 %, p-values McNemar's exact test.
    """
    return summarise(table, {name: Metric(column, kind=kind) for name, (column, kind) in metrics.items()})


def _of_kind(rows: np.ndarray, kinds: np.ndarray | None, kind: str | None) -> np.ndarray:
    return rows if kinds is None or kind is None else rows[kinds[rows] == kind]


def _estimates(title: str, metric: Metric, values: np.ndarray, groups: np.ndarray) -> dict[str, Estimate]:
    """Over all rows, then under `<group>/<title>`; rows of no group stand in the first alone."""
    if not len(values):
        return {}
    names = sorted({name for name in groups.tolist() if name})
    return {
        title: metric.estimate(values),
        **{f"{name}/{title}": metric.estimate(values[groups == name]) for name in names},
    }


def _item_numbers(table: pa.Table) -> np.ndarray:
    """The same number for the same item of the same concept: int64 `[rows]`."""
    pairs = zip(table.column("item").to_pylist(), table.column("concept").to_pylist(), strict=True)
    known: dict[tuple[str, str], int] = {}
    return np.array([known.setdefault(pair, len(known)) for pair in pairs], dtype=np.int64)


def _paired(number: np.ndarray, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, on both sides, of the items that both have, in the same order."""
    _, mine, theirs = np.intersect1d(number[rows], number[others], assume_unique=True, return_indices=True)
    return rows[mine], others[theirs]


def _cells(conditions: np.ndarray, strengths: np.ndarray) -> dict[Cell, np.ndarray]:
    """Row numbers by condition and strength; the base first, then as they come, strengths ascending."""
    order: Sequence[str] = list(dict.fromkeys(conditions.tolist()))
    keys = sorted(
        {(str(c), float(s)) for c, s in zip(conditions, strengths, strict=True)},
        key=lambda key: (key[0] != BASE, order.index(key[0]), key[1]),
    )
    return {key: np.flatnonzero((conditions == key[0]) & (strengths == key[1])) for key in keys}


def _values(table: pa.Table, columns: str | tuple[str, ...]) -> np.ndarray:
    if isinstance(columns, str):
        return _column(table, columns)
    return np.stack([_column(table, name).astype(np.float64) for name in columns], axis=1)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist())
