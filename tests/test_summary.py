"""Summaries of rows against loops over the rows, with scipy's tests called on them directly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from contrans_dist.benchmarks.summary import (
    Metric,
    estimate,
    mean,
    summarise,
    summarise_hits,
    summarise_values,
)
from contrans_dist.statistics import mean_interval, wilson

CELLS = [("base", 0.0), ("vector", 1.0), ("vector", 2.0), ("random", 2.0), ("inst-align", 1.0)]
CONCEPTS = ["honesty", "fear"]


def make_rows(items: int = 14, seed: int = 0) -> list[dict[str, Any]]:
    """The same items under both concepts, with a group and a kind of their own; one cell lacks some items."""
    rng = np.random.default_rng(seed)
    return [
        {
            "item": f"q{i}",
            "concept": concept,
            "condition": condition,
            "strength": strength,
            "kind": "odd" if i % 2 else "even",
            "people": "abc"[i % 3],
            "hit": bool(rng.random() < 0.5),
            "value": float(rng.normal(strength, 1)),
            "size": i + 1,
        }
        for condition, strength in CELLS
        for concept in CONCEPTS
        for i in range(items)
        if condition != "random" or i > 2
    ]


def shuffled(rows: list[dict[str, Any]]) -> pa.Table:
    order = np.random.default_rng(1).permutation(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order])


def of(
    rows: list[dict[str, Any]], cell: tuple[str, float], **where: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of one condition and strength by (concept, item)."""
    return {
        (row["concept"], row["item"]): row
        for row in rows
        if (row["condition"], row["strength"]) == cell and all(row[k] == v for k, v in where.items())
    }


def check(
    rows: list[dict[str, Any]],
    entries: list[dict[str, Any]],
    name: str,
    column: str,
    group: str,
    test: Callable[[list, list], float],
    **where: str,
) -> None:
    assert (entries[0]["condition"], entries[0]["strength"]) == ("base", 0.0)
    assert {(entry["condition"], entry["strength"]) for entry in entries} == set(CELLS)
    for entry in entries:
        cell = (entry["condition"], entry["strength"])
        mine = of(rows, cell, **where)
        groups = {row[group] for row in mine.values()}
        assert set(entry["metrics"]) == {name, *(f"{g}/{name}" for g in groups)}
        for title, values in [
            (name, [row[column] for row in mine.values()]),
            *((f"{g}/{name}", [row[column] for row in mine.values() if row[group] == g]) for g in groups),
        ]:
            assert entry["metrics"][title]["value"] == pytest.approx(np.mean(values))
            assert entry["metrics"][title]["n"] == len(values)
        for key, other in (("p_vs_base", ("base", 0.0)), ("p_vs_vector", ("vector", cell[1]))):
            if other == cell or other not in CELLS:
                assert entry[key] == {}
                continue
            theirs = of(rows, other, **where)
            both = [k for k in mine if k in theirs]
            p = test([mine[k][column] for k in both], [theirs[k][column] for k in both])
            assert entry[key] == {name: pytest.approx(p)}


def mcnemar_by_sum(a: list[bool], b: list[bool]) -> float:
    one, two = (
        sum(x and not y for x, y in zip(a, b, strict=True)),
        sum(y and not x for x, y in zip(a, b, strict=True)),
    )
    return float(scipy.stats.binomtest(one, one + two).pvalue) if one + two else 1.0


def test_values_by_loops() -> None:
    rows = make_rows()
    entries = summarise_values(shuffled(rows), {"score": "value"})
    check(rows, entries, "score", "value", "concept", lambda a, b: scipy.stats.wilcoxon(a, b).pvalue)
    values = [row["value"] for row in of(rows, ("vector", 2.0)).values()]
    found = next(e for e in entries if (e["condition"], e["strength"]) == ("vector", 2.0))["metrics"]["score"]
    low, high = mean_interval(np.array(values))
    # Resampled in another order of the rows, the ends move a little.
    assert found["low"] == pytest.approx(low, abs=0.1)
    assert found["high"] == pytest.approx(high, abs=0.1)


def test_values_by_a_group_that_is_no_concept() -> None:
    rows = make_rows()
    entries = summarise_values(shuffled(rows), {"score": "value"}, group="people")
    check(rows, entries, "score", "value", "people", lambda a, b: scipy.stats.wilcoxon(a, b).pvalue)


def test_hits_of_one_kind_by_loops() -> None:
    rows = make_rows()
    entries = summarise_hits(shuffled(rows), {"acc": ("hit", "odd")})
    check(rows, entries, "acc", "hit", "concept", mcnemar_by_sum, kind="odd")
    hits = [row["hit"] for row in of(rows, ("vector", 1.0), kind="odd").values()]
    found = next(e for e in entries if (e["condition"], e["strength"]) == ("vector", 1.0))["metrics"]["acc"]
    assert (found["low"], found["high"]) == wilson(sum(hits), len(hits))


def test_the_same_item_under_two_concepts_is_two_items() -> None:
    rows = make_rows()
    alone = [row for row in rows if row["concept"] == "fear"]
    both = summarise_values(shuffled(rows), {"score": "value"})[1]
    one = summarise_values(shuffled(alone), {"score": "value"})[1]
    assert both["metrics"]["score"]["n"] == 2 * one["metrics"]["score"]["n"]
    assert both["metrics"]["fear/score"]["value"] == pytest.approx(one["metrics"]["score"]["value"])


def test_rows_without_a_concept_stand_in_no_group() -> None:
    rows = [{**row, "concept": ""} for row in make_rows() if row["concept"] == "fear"]
    entry = summarise_values(shuffled(rows), {"score": "value"})[1]
    assert set(entry["metrics"]) == {"score"}
    assert set(entry["p_vs_base"]) == {"score"}


def test_several_columns_at_once_and_no_test() -> None:
    rows = make_rows()

    def ratio(values: np.ndarray) -> dict[str, Any]:
        return estimate(values[:, 0].sum() / values[:, 1].sum(), (0.0, 1.0), len(values))

    entries = summarise(shuffled(rows), {"ratio": Metric(("value", "size"), ratio, None)})
    entry = next(e for e in entries if e["strength"] == 2)
    mine = of(rows, (entry["condition"], 2.0)).values()
    assert entry["metrics"]["ratio"]["value"] == pytest.approx(
        sum(r["value"] for r in mine) / sum(r["size"] for r in mine)
    )
    assert entry["p_vs_base"] == entry["p_vs_vector"] == {}


def test_a_single_value_has_no_interval() -> None:
    assert mean(np.array([2.0])) == {"value": 2.0, "low": None, "high": None, "n": 1}
