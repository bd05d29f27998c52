"""From rows of hits or values to estimates with intervals, and to paired tests between conditions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from contrans_dist.statistics import mcnemar, mean_interval, wilcoxon, wilson

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


def summarise(
    table: pa.Table, metrics: Mapping[str, Metric], *, reference: str = "vector", group: str = "concept"
) -> list[dict[str, Any]]:
    """Estimates of each condition and strength, over all rows and by group, with paired tests.

    `table` has `item`, `concept`, `condition`, `strength`, `group`'s column, the metrics' columns, and `kind`
    where a metric names one. An item is the same under two conditions when id and concept agree. Tests are
    against `reference` at the same strength and against the base (strength 0).
    """
    condition, strength = _column(table, "condition"), _column(table, "strength")
    group_of = _column(table, group)
    kinds = _column(table, "kind") if any(metric.kind for metric in metrics.values()) else None
    values = {name: _values(table, metric.columns) for name, metric in metrics.items()}
    number = _item_numbers(table)
    cells = _cells(condition, strength)
    base = next((rows for (_, at), rows in cells.items() if at == 0), None)
    result = []
    for (name, at), rows in cells.items():
        entry: dict[str, Any] = {"condition": name, "strength": at, "metrics": {}}
        entry["p_vs_vector"], entry["p_vs_base"] = {}, {}
        others = {"p_vs_vector": cells.get((reference, at)), "p_vs_base": base}
        for title, metric in metrics.items():
            chosen = rows if kinds is None or metric.kind is None else rows[kinds[rows] == metric.kind]
            entry["metrics"] |= _estimates(title, metric, values[title][chosen], group_of[chosen])
            for key, other in others.items():
                if other is None or other is rows or metric.test is None:
                    continue
                mine, theirs = _paired(number, chosen, other)
                if len(mine):
                    entry[key][title] = metric.test(values[title][mine], values[title][theirs])
        result.append(entry)
    return result


def summarise_hits(
    table: pa.Table, metrics: Mapping[str, tuple[str, str]], reference: str = "vector"
) -> list[dict[str, Any]]:
    """`summarise` for proportions: `metrics` maps a name to (bool column, kind of item).

    Intervals are Wilson's at 95 %, p-values McNemar's exact test.
    """
    hits = {name: Metric(column, kind=kind) for name, (column, kind) in metrics.items()}
    return summarise(table, hits, reference=reference)


def summarise_values(
    table: pa.Table, metrics: Mapping[str, str], reference: str = "vector", group: str = "concept"
) -> list[dict[str, Any]]:
    """`summarise` for means: `metrics` maps a name to a column of numbers.

    Intervals are bootstrapped at 95 %, p-values Wilcoxon's signed-rank test.
    """
    means = {name: Metric(column, mean, wilcoxon) for name, column in metrics.items()}
    return summarise(table, means, reference=reference, group=group)


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


def _cells(conditions: np.ndarray, strengths: np.ndarray) -> dict[tuple[str, float], np.ndarray]:
    """Row numbers by condition and strength; the base first, then as they come, strengths ascending."""
    order: Sequence[str] = list(dict.fromkeys(conditions.tolist()))
    keys = sorted(
        {(str(c), float(s)) for c, s in zip(conditions, strengths, strict=True)},
        key=lambda key: (key[0] != "base", order.index(key[0]), key[1]),
    )
    return {key: np.flatnonzero((conditions == key[0]) & (strengths == key[1])) for key in keys}


def _values(table: pa.Table, columns: str | tuple[str, ...]) -> np.ndarray:
    if isinstance(columns, str):
        return _column(table, columns)
    return np.stack([_column(table, name).astype(np.float64) for name in columns], axis=1)


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist())
