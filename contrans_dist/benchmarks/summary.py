"""From rows of hits to proportions with intervals, and to paired tests between conditions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from contrans_dist.statistics import mcnemar, wilson

Hits = dict[str, np.ndarray]  # metric -> bool [rows]


def summarise_hits(
    table: pa.Table, metrics: Mapping[str, tuple[str, str]], reference: str = "vector"
) -> list[dict[str, Any]]:
    """Proportions of each condition and strength, over all concepts and by concept, with paired tests.

    `metrics`: name -> (hit column, kind of item). `table` has `item`, `concept`, `kind`, `condition`,
    `strength` and the hit columns. Intervals are Wilson's at 95 %; p-values are McNemar's exact test over the
    same items, against `reference` at the same strength and against the base (strength 0).
    """
    columns = {name: _column(table, name) for name in ("item", "concept", "kind", "condition", "strength")}
    hits = {column: _column(table, column) for column, _ in metrics.values()}
    groups = _groups(columns["condition"], columns["strength"])
    base = next((rows for (_, strength), rows in groups.items() if strength == 0), None)
    result = []
    for (condition, strength), rows in groups.items():
        entry: dict[str, Any] = {"condition": condition, "strength": strength, "metrics": {}}
        entry["p_vs_vector"], entry["p_vs_base"] = {}, {}
        others = {"p_vs_vector": groups.get((reference, strength)), "p_vs_base": base}
        for name, (column, kind) in metrics.items():
            chosen = rows[columns["kind"][rows] == kind]
            entry["metrics"] |= _proportions(name, hits[column][chosen], columns["concept"][chosen])
            for key, other in others.items():
                if other is None or other is rows:
                    continue
                p = _paired(columns["item"], hits[column], chosen, other)
                if p is not None:
                    entry[key][name] = p
        result.append(entry)
    return result


def proportion(hits: np.ndarray) -> dict[str, Any]:
    """`{value, low, high, n}` of bool `[n]`, n > 0, with Wilson's 95 % interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high, "n": len(hits)}


def _proportions(name: str, hits: np.ndarray, concepts: np.ndarray) -> dict[str, Any]:
    if not len(hits):
        return {}
    parts = {f"{concept}/{name}": proportion(hits[concepts == concept]) for concept in sorted(set(concepts))}
    return {name: proportion(hits), **parts}


def _paired(items: np.ndarray, hits: np.ndarray, rows: np.ndarray, others: np.ndarray) -> float | None:
    """p-value over the items that both have; None when there are none."""
    _, mine, theirs = np.intersect1d(items[rows], items[others], assume_unique=True, return_indices=True)
    return mcnemar(hits[rows][mine], hits[others][theirs]) if len(mine) else None


def _groups(conditions: np.ndarray, strengths: np.ndarray) -> dict[tuple[str, float], np.ndarray]:
    """Row numbers by condition and strength; the base first, then as they come, strengths ascending."""
    order: Sequence[str] = list(dict.fromkeys(conditions.tolist()))
    keys = sorted(
        {(str(c), float(s)) for c, s in zip(conditions, strengths, strict=True)},
        key=lambda key: (key[0] != "base", order.index(key[0]), key[1]),
    )
    return {key: np.flatnonzero((conditions == key[0]) & (strengths == key[1])) for key in keys}


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist())
