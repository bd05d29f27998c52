"""From rows of hits or values to estimates with intervals, and to paired tests between conditions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from contrans_dist.benchmarks.statistics import mcnemar, mean_interval, wilcoxon, wilson

BASE = "base"
Cell = tuple[str, float]
"""A condition and a strength."""
K = TypeVar("K", bound=tuple[Any, ...])
Estimate = dict[str, float | None]
"""`{value, low, high, n}`; `low` and `high` are None where there are too few items for an interval."""


def estimate(value: float, interval: tuple[float, float], n: int) -> Estimate:
    """An estimate of `n` items with its 95 % interval; ends that are NaN become None, as JSON has no NaN."""
    low, high = (None if np.isnan(end) else float(end) for end in interval)
    return {"value": float(value), "low": low, "high": high, "n": n}


def proportion(hits: np.ndarray) -> Estimate:
    """The share of bool `[n]`, n > 0, with Wilson's interval; of shares of hits, float `[n]`, their mean."""
    if hits.dtype != bool:
        return mean(hits)
    return estimate(hits.mean(), wilson(int(hits.sum()), len(hits)), len(hits))


def mean(values: np.ndarray) -> Estimate:
    """The mean of float `[n]`, n > 0, with its bootstrap interval."""
    return estimate(values.mean(), mean_interval(values), len(values))


def hits_differ(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of the same items' hits under two conditions: McNemar's, of shares of hits Wilcoxon's."""
    return mcnemar(a, b) if a.dtype == b.dtype == bool else wilcoxon(a, b)


@dataclass(frozen=True)
class Metric:
    """A number that a benchmark gives: how it is made from the rows of one condition and strength, and how a
    report calls it and reads it."""

    name: str
    """As in `metrics.json`."""
    title: str = ""
    """For people; empty takes the name."""
    columns: str | tuple[str, ...] = ""
    """What `estimate` gets: one column `[n]`, or several side by side `[n, columns]`, as float64; empty takes
    the column of the metric's name."""
    estimate: Callable[[np.ndarray], Estimate] = proportion
    test: Callable[[np.ndarray, np.ndarray], float] | None = hits_differ
    """p-value of the same items under two conditions, rows in the same order; None for no test."""
    kind: str | None = None
    """Only items of this kind (the column `kind`); None takes all."""
    percent: bool = True
    """Whether it is a share of 1, shown in percent."""
    higher: bool = True
    """Whether more of it is wanted."""
    items: str = "items"
    """What its `n` counts, in the plural."""
    cost: bool = False
    """What steering does to the model's other abilities: no effect is looked for in it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "columns", self.columns or self.name)

    @property
    def of(self) -> tuple[str, ...]:
        """The columns that it is made from, `kind` among them."""
        columns = (self.columns,) if isinstance(self.columns, str) else self.columns
        return columns if self.kind is None else (*columns, "kind")


def condition_entries(
    cells: Sequence[Cell],
    metrics: Callable[[Cell], dict[str, Estimate]],
    p_values: Callable[[Cell, Cell], dict[str, float]],
    reference: str,
) -> dict[str, Any]:
    """`reference` and `conditions` of metrics.json: estimates of each cell, and who is tested against whom.

    `reference`: the condition under test. Every entry has `p_vs_base`. The entries of the reference also have
    `p_vs`, by the other condition: against its row at the same strength, else against the only row it has, as
    a condition with a strength of its own does; and `p_vs_elsewhere`, by the other condition and the strength
    of its further rows. `p_values` gets two cells and returns a p-value by metric; what it returns empty is
    left out.
    """
    steered = [cell for cell in cells if cell[1] != 0]
    tested = reference if any(name == reference for name, _ in steered) else None
    base = next((cell for cell in cells if cell[1] == 0), None)
    entries = []
    for cell in cells:
        entry = {"condition": cell[0], "strength": cell[1], "metrics": metrics(cell)}
        entry["p_vs_base"] = p_values(cell, base) if base is not None and cell != base else {}
        if cell[0] == tested and cell in steered:
            opponents = _opponents(cell, steered)
            tests = {name: p_values(cell, other) for name, other in opponents.items()}
            entry["p_vs"] = {name: by_metric for name, by_metric in tests.items() if by_metric}
            elsewhere: dict[str, dict[float, dict[str, float]]] = {}
            for other in steered:
                if other[0] != tested and other not in opponents.values() and (p := p_values(cell, other)):
                    elsewhere.setdefault(other[0], {})[other[1]] = p
            entry["p_vs_elsewhere"] = elsewhere
        entries.append(entry)
    return {"reference": tested, "conditions": entries}


def _opponents(cell: Cell, steered: Sequence[Cell]) -> dict[str, Cell]:
    """The cell of each other condition that can be compared with this one."""
    opponents = {}
    for name in dict.fromkeys(name for name, _ in steered if name != cell[0]):
        rows = [other for other in steered if other[0] == name]
        same = [other for other in rows if other[1] == cell[1]]
        if same or len(rows) == 1:
            opponents[name] = (same or rows)[0]
    return opponents


def summarise(table: pa.Table, metrics: Sequence[Metric], reference: str = "vector") -> dict[str, Any]:
    """`condition_entries` the estimates of each condition and strength, over all items and by concept.

    `table` has `item`, `concept`, `condition`, `strength`, the metrics' columns, and `kind` where a metric
    names one. What is counted are items: one that was scored under several concepts' vectors counts once,
    with the mean over them.
    """
    concepts = _column(table, "concept")
    kinds = _column(table, "kind") if any(metric.kind for metric in metrics) else None
    values = {metric.name: _values(table, metric.columns) for metric in metrics}
    number = _item_numbers(table)
    cells = _cells(_column(table, "condition"), _column(table, "strength"))
    rows_of = {
        (cell, metric.name): _of_kind(rows, kinds, metric.kind)
        for cell, rows in cells.items()
        for metric in metrics
    }
    items = {key: _by_item(values[key[1]][rows], number[rows]) for key, rows in rows_of.items()}

    def estimates(cell: Cell) -> dict[str, Estimate]:
        made: dict[str, Estimate] = {}
        for metric in metrics:
            rows = rows_of[cell, metric.name]
            if not len(rows):
                continue
            made[metric.name] = metric.estimate(items[cell, metric.name][1])
            for group, of_group in _groups(rows, concepts).items():
                made[f"{group}/{metric.name}"] = metric.estimate(
                    _by_item(values[metric.name][of_group], number[of_group])[1]
                )
        return made

    def p_values(cell: Cell, other: Cell) -> dict[str, float]:
        made = {}
        for metric in metrics:
            mine, theirs = _paired(items[cell, metric.name], items[other, metric.name])
            if metric.test is not None and len(mine):
                made[metric.name] = metric.test(mine, theirs)
        return made

    return condition_entries(list(cells), estimates, p_values, reference)


def _of_kind(rows: np.ndarray, kinds: np.ndarray | None, kind: str | None) -> np.ndarray:
    return rows if kinds is None or kind is None else rows[kinds[rows] == kind]


def _groups(rows: np.ndarray, concepts: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers by concept; rows of none stand in no group."""
    return {name: rows[concepts[rows] == name] for name in sorted(set(concepts[rows].tolist())) if name}


def _item_numbers(table: pa.Table) -> np.ndarray:
    """The same number for the same item: int64 `[rows]`."""
    known: dict[str, int] = {}
    items = table.column("item").to_pylist()
    return np.array([known.setdefault(item, len(known)) for item in items], dtype=np.int64)


def _by_item(values: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the items, and each one's mean over its rows; hits stay hits where an item's rows agree."""
    items, place, rows = np.unique(number, return_inverse=True, return_counts=True)
    if len(items) == len(number):
        return number, values
    sums = np.zeros((len(items), *values.shape[1:]))
    np.add.at(sums, place, values)
    means = sums / rows.reshape(-1, *[1] * (values.ndim - 1))
    agree = values.dtype == bool and bool(np.isin(means, (0.0, 1.0)).all())
    return items, means.astype(bool) if agree else means


def _paired(
    mine: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The values, on both sides, of the items that both have, in the same order."""
    _, a, b = np.intersect1d(mine[0], theirs[0], assume_unique=True, return_indices=True)
    return mine[1][a], theirs[1][b]


def _cells(conditions: np.ndarray, strengths: np.ndarray) -> dict[Cell, np.ndarray]:
    """Row numbers by condition and strength."""
    keys = in_order((str(c), float(s)) for c, s in zip(conditions, strengths, strict=True))
    return {key: np.flatnonzero((conditions == key[0]) & (strengths == key[1])) for key in keys}


def in_order(keys: Iterable[K]) -> list[K]:
    """Distinct keys (condition, strength, ...): the base's first, conditions as they come, then ascending."""
    distinct = list(dict.fromkeys(keys))
    conditions = list(dict.fromkeys(key[0] for key in distinct))
    return sorted(distinct, key=lambda key: (key[0] != BASE, conditions.index(key[0]), *key[1:]))


def _values(table: pa.Table, columns: str | tuple[str, ...]) -> np.ndarray:
    if isinstance(columns, str):
        return _column(table, columns)
    return np.stack([_column(table, name).astype(np.float64) for name in columns], axis=1)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist())
