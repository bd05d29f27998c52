"""Summaries of rows against loops over the rows, with scipy's tests called on them directly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from contrans_dist.benchmarks.statistics import mean_interval, wilcoxon, wilson
from contrans_dist.benchmarks.summary import (
    Cell,
    Metric,
    estimate,
    mean,
    summarise,
)

CELLS = [
    ("base", 0.0), ("vector", 1.0), ("vector", 2.0), ("random", 2.0), ("self-align", 0.5),
    ("shuffled-map", 1.0), ("shuffled-map", 3.1234567), ("inst-align", 1.0),
]  # fmt: skip
TESTED: dict[Cell, dict[str, Cell]] = {
    # At its own strength, else at the only one that there is: shuffled-map has two, none of them 2.
    ("vector", 1.0): {
        "random": ("random", 2.0), "self-align": ("self-align", 0.5), "inst-align": ("inst-align", 1.0),
        "shuffled-map": ("shuffled-map", 1.0),
    },
    ("vector", 2.0): {
        "random": ("random", 2.0), "self-align": ("self-align", 0.5), "inst-align": ("inst-align", 1.0),
    },
}  # fmt: skip
MEANS = [Metric("score", "", "value", mean, wilcoxon)]
ODD = [Metric("acc", "", "hit", kind="odd")]
CONCEPTS = ["honesty", "fear"]


def make_rows(items: int = 14, seed: int = 0) -> list[dict[str, Any]]:
    """Items of two concepts and two kinds; one cell lacks some items."""
    rng = np.random.default_rng(seed)
    return [
        {
            "item": f"{concept}/q{i}",
            "concept": concept,
            "condition": condition,
            "strength": strength,
            "kind": "odd" if i % 2 else "even",
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
    found: dict[str, Any],
    name: str,
    column: str,
    test: Callable[[list, list], float],
    **where: str,
) -> None:
    def p_value(cell: Cell, other: Cell) -> dict[str, Any]:
        mine, theirs = of(rows, cell, **where), of(rows, other, **where)
        both = [key for key in mine if key in theirs]
        return {name: pytest.approx(test([mine[k][column] for k in both], [theirs[k][column] for k in both]))}

    entries = found["conditions"]
    assert found["reference"] == "vector"
    assert (entries[0]["condition"], entries[0]["strength"]) == ("base", 0.0)
    assert {(entry["condition"], entry["strength"]) for entry in entries} == set(CELLS)
    for entry in entries:
        cell = (entry["condition"], entry["strength"])
        mine = of(rows, cell, **where)
        assert set(entry["metrics"]) == {name, *(f"{concept}/{name}" for concept in CONCEPTS)}
        for title, values in [
            (name, [row[column] for row in mine.values()]),
            *(
                (f"{c}/{name}", [row[column] for row in mine.values() if row["concept"] == c])
                for c in CONCEPTS
            ),
        ]:
            assert entry["metrics"][title]["value"] == pytest.approx(np.mean(values))
            assert entry["metrics"][title]["n"] == len(values)
        assert entry["p_vs_base"] == ({} if cell == CELLS[0] else p_value(cell, CELLS[0]))
        assert ("p_vs" in entry) == (cell in TESTED)
        if cell in TESTED:
            assert entry["p_vs"] == {other: p_value(cell, row) for other, row in TESTED[cell].items()}
            rest = [row for row in CELLS if row[0] == "shuffled-map" and row not in TESTED[cell].values()]
            assert entry["p_vs_elsewhere"] == {"shuffled-map": {row[1]: p_value(cell, row) for row in rest}}


def mcnemar_by_sum(a: list[bool], b: list[bool]) -> float:
    one, two = (
        sum(x and not y for x, y in zip(a, b, strict=True)),
        sum(y and not x for x, y in zip(a, b, strict=True)),
    )
    return float(scipy.stats.binomtest(one, one + two).pvalue) if one + two else 1.0


def test_values_by_loops() -> None:
    rows = make_rows()
    summary = summarise(shuffled(rows), MEANS)
    check(rows, summary, "score", "value", lambda a, b: scipy.stats.wilcoxon(a, b).pvalue)
    values = [row["value"] for row in of(rows, ("vector", 2.0)).values()]
    score = entry_of(summary, "vector", 2.0)["metrics"]["score"]
    low, high = mean_interval(np.array(values))
    # Resampled in another order of the rows, the ends move a little.
    assert score["low"] == pytest.approx(low, abs=0.1)
    assert score["high"] == pytest.approx(high, abs=0.1)


def entry_of(summary: dict[str, Any], condition: str, strength: float) -> dict[str, Any]:
    return next(
        entry
        for entry in summary["conditions"]
        if (entry["condition"], entry["strength"]) == (condition, strength)
    )


def test_hits_of_one_kind_by_loops() -> None:
    rows = make_rows()
    summary = summarise(shuffled(rows), ODD)
    check(rows, summary, "acc", "hit", mcnemar_by_sum, kind="odd")
    hits = [row["hit"] for row in of(rows, ("vector", 1.0), kind="odd").values()]
    score = entry_of(summary, "vector", 1.0)["metrics"]["acc"]
    assert (score["low"], score["high"]) == wilson(sum(hits), len(hits))


def test_without_a_vector_the_condition_under_test_is_another() -> None:
    names = {"vector": "lcross-own", "inst-align": "no-map"}
    rows = [{**row, "condition": names.get(row["condition"], row["condition"])} for row in make_rows()]
    summary = summarise(pa.Table.from_pylist(rows), ODD, "lcross-own")
    assert summary["reference"] == "lcross-own"
    tested = entry_of(summary, "lcross-own", 2.0)["p_vs"]
    assert set(tested) == {"random", "self-align", "no-map"}
    mine, theirs = (of(rows, cell, kind="odd") for cell in (("lcross-own", 2.0), ("no-map", 1.0)))
    p = mcnemar_by_sum([mine[key]["hit"] for key in mine], [theirs[key]["hit"] for key in mine])
    assert tested["no-map"] == {"acc": pytest.approx(p)}


def test_an_item_under_two_concepts_counts_once() -> None:
    """Its mean stands for it: a copy of every row changes neither interval nor p."""
    alone = [row for row in make_rows() if row["concept"] == "fear"]
    rows = [{**row, "concept": concept} for row in alone for concept in CONCEPTS]
    for metrics in (MEANS, [Metric("score", "", "hit")]):
        twice, once = (entry_of(summarise(shuffled(some), metrics), "vector", 2.0) for some in (rows, alone))
        # Resampled in another order of the items, the ends move a little.
        assert twice["metrics"]["score"] == pytest.approx(once["metrics"]["score"], abs=0.1)
        assert twice["metrics"]["score"]["value"] == pytest.approx(once["metrics"]["score"]["value"])
        assert twice["metrics"]["score"]["n"] == once["metrics"]["score"]["n"] == 14
        assert twice["p_vs_base"] == pytest.approx(once["p_vs_base"])
        assert twice["p_vs"].keys() == once["p_vs"].keys()
        for name, by_metric in once["p_vs"].items():
            assert twice["p_vs"][name] == pytest.approx(by_metric)


def test_hits_that_differ_between_concepts_are_shares_of_an_item() -> None:
    rows = [{**row, "item": row["item"].rpartition("/")[2]} for row in make_rows()]
    entry = entry_of(summarise(shuffled(rows), [Metric("acc", "", "hit")]), "vector", 2.0)
    mine, base = (
        [np.mean([row["hit"] for key, row in of(rows, cell).items() if key[1] == f"q{i}"]) for i in range(14)]
        for cell in (("vector", 2.0), ("base", 0.0))
    )
    assert entry["metrics"]["acc"]["value"] == pytest.approx(np.mean(mine))
    assert entry["metrics"]["acc"]["n"] == 14
    assert entry["metrics"]["acc"]["low"] == pytest.approx(mean_interval(np.array(mine))[0], abs=0.1)
    assert entry["p_vs_base"] == {"acc": pytest.approx(wilcoxon(mine, base))}


def test_rows_without_a_concept_stand_in_no_group() -> None:
    rows = [{**row, "concept": ""} for row in make_rows() if row["concept"] == "fear"]
    entry = entry_of(summarise(shuffled(rows), MEANS), "vector", 2.0)
    assert set(entry["metrics"]) == {"score"}
    assert set(entry["p_vs_base"]) == {"score"}


def test_conditions_without_a_common_item_are_not_tested() -> None:
    rows = [row for row in make_rows() if (row["condition"] == "random") == row["item"].endswith("q5")]
    summary = summarise(shuffled(rows), MEANS)
    assert entry_of(summary, "random", 2.0)["p_vs_base"] == {}
    assert "random" not in entry_of(summary, "vector", 2.0)["p_vs"]
    assert "self-align" in entry_of(summary, "vector", 2.0)["p_vs"]


def test_several_columns_at_once_and_no_test() -> None:
    rows = make_rows()

    def ratio(values: np.ndarray) -> dict[str, Any]:
        return estimate(values[:, 0].sum() / values[:, 1].sum(), (0.0, 1.0), len(values))

    entry = entry_of(
        summarise(shuffled(rows), [Metric("ratio", "", ("value", "size"), ratio, None)]), "vector", 2.0
    )
    mine = of(rows, ("vector", 2.0)).values()
    assert entry["metrics"]["ratio"]["value"] == pytest.approx(
        sum(r["value"] for r in mine) / sum(r["size"] for r in mine)
    )
    assert entry["p_vs_base"] == entry["p_vs"] == {}


def test_a_single_value_has_no_interval() -> None:
    assert mean(np.array([2.0])) == {"value": 2.0, "low": None, "high": None, "n": 1}
