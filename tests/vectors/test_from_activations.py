"""Which rows a condition names, in columns of every type, as `--positive` and `--rows` write it."""

import decimal
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contrans_dist.errors import UserError
from contrans_dist.pipeline import analyses
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.from_activations import concept_rows, concepts_in, refine, select_rows, whole_pairs
from tests.sets import make_set

COLUMNS: dict[str, Any] = {
    "tags": [["a", "x"], ["b"], [], None, ["x", None], ["a,x"]],
    "numbers": [[1, 2], [3], [], None, [2], [22]],
    "whole": [0, 1, 1, None, 2**60, 2**60 + 1],
    "real": [0.0, 1.0, 1.5, None, 1e3, float("nan")],
    "truth": [True, False, None, True, False, False],
    "words": ["1", "1.0", "True", None, "a,b", "a=b"],
    "null": [None] * 6,
    "coded": pa.array(["p", "n", None, "p", "n", "n"]).dictionary_encode(),
    "price": [decimal.Decimal(text) for text in ("1.10", "1.00", "2.00", "1.10", "0.00", "3.00")],
    "day": [date(2020, 1, day) for day in range(1, 7)],
    "when": pa.array([1, 2, 3, 4, 5, 6], pa.timestamp("ns")),
    "raw": [b"a", b"b", None, b"", b"c", b"\xff"],
    "short": pa.array([0.1, 0.2, None, 1, 2, 3], pa.float32()),
    "half": pa.array([0.5, 1, 2, 3, 4, None], pa.float16()),
    "meta": [{"a": 1}] * 6,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ActivationSet:
    folder = tmp_path_factory.mktemp("sets") / "set"
    return make_set(folder, {0: np.ones((6, 2), np.float32)}, 1, shard=4, **COLUMNS)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("tags=x", [0, 4]),
        ("tags=a,x", [5]),
        ("tags=a,tags=x", [0]),
        ("numbers=2.0", [0, 4]),
        ("whole=1", [1, 2]),
        ("whole=1.0", [1, 2]),
        (f"whole={2**60 + 1}", [5]),
        ("real=1", [1]),
        ("real=1000", [4]),
        ("real=nan", []),
        ("short=0.1", [0]),
        ("half=0.5", [0]),
        ("truth=true", [0, 3]),
        ("truth=False", [1, 4, 5]),
        ("truth=1", [0, 3]),
        ("words=1", [0]),
        ("words=True", [2]),
        ("words=a,b", [4]),
        (r"words=a\,b", [4]),
        ("words=a=b", [5]),
        ("words=a,b,truth=false", [4]),
        ("coded=n,whole=1", [1]),
        ("price=1.1", [0, 3]),
        ("price=1", [1]),
        ("day=2020-01-03", [2]),
        ("words=", []),
        ("words=null", []),
        ("words=None", []),
        ("null=x", []),
        ("whole=one", []),
        ("whole=1,truth=true", []),
        ("coded=p,whole=1", []),
    ],
)
def test_conditions(rows: ActivationSet, condition: str, expected: list[int]) -> None:
    if expected:
        assert select_rows(rows, condition).tolist() == expected
    else:
        with pytest.raises(UserError, match="no row has"):
            select_rows(rows, condition)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("tags=y", "no row has tags=y; tags is x (2), a (1), b (1), null (1), a,x (1)"),
        ("coded=positive", "no row has coded=positive; coded is n (3), p (2), null (1)"),
        ("coded=p,whole=1", "no row has coded=p,whole=1, though some have each of them"),
        ("meta=1", "column 'meta' holds struct<a: int64>; expected texts"),
        ("tags", "expected column=value"),
        ("=x", "expected column=value"),
        ("a,tags=x", "expected column=value"),
        ("label=positive", "no column 'label'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(rows: ActivationSet, condition: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        select_rows(rows, condition)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_concept_may_have_any_name(tmp_path: Path) -> None:
    names = ["joy, mild=not wild", "1", "joy, mild=not wild", "1"]
    labels = ["positive", "positive", "negative", "negative"]
    values = {0: np.ones((4, 2), np.float32)}
    labelled = make_set(tmp_path / "a", values, 1, concept=names, label=labels)
    assert concepts_in(labelled) == names[:2]
    assert [rows.tolist() for rows in concept_rows(labelled, names[0])] == [[0], [2]]
    numbered = make_set(tmp_path / "b", values, 1, concept=[1, 2, 1, None])
    assert concepts_in(numbered) == ["1", "2"]
    assert concept_rows(numbered, "1")[0].tolist() == [0, 2]


def test_pairs_are_told_by_their_ids_whatever_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pairs 3, 1, 2 and halves 7 and 8; their differences vary along the second axis, others do not."""
    rng = np.random.default_rng(0)
    scene = {pair: 50 * rng.standard_normal(3) for pair in (1, 2, 3, 7, 8)}
    sides = [("positive", 3), ("positive", 7), ("positive", 1), ("positive", 2),
             ("negative", 1), ("negative", 2), ("negative", 3), ("negative", 8)]  # fmt: skip
    rows = [scene[pair] + (np.array([1, pair, 0]) if side == "positive" else 0) for side, pair in sides]
    columns: dict[str, Any] = {
        "concept": ["a"] * 8, "label": [side for side, _ in sides], "pair_id": [pair for _, pair in sides],
    }  # fmt: skip
    made = make_set(tmp_path / "a", {0: np.array(rows)}, 1, **columns)
    positive, negative = concept_rows(made, "a")
    assert (positive.tolist(), negative.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert [side.tolist() for side in concept_rows(made, "a", limit=2)] == [[0, 2], [4, 6]]
    # As `contrans refine` selects them, in the order of the rows.
    selected = select_rows(made, "label=positive"), select_rows(made, "label=negative")
    vector = refine(made, *selected, "a", "pca")
    assert (vector.n_positive, vector.n_negative) == (3, 3)
    np.testing.assert_allclose(vector.at(0), [0, 1, 0], atol=1e-5)
    np.testing.assert_allclose(
        refine(made, *selected, "a").at(0), np.mean(rows[:4], axis=0) - np.mean(rows[4:], axis=0), rtol=1e-5
    )
    apart = make_set(tmp_path / "b", {0: np.array(rows)}, 1, **{**columns, "pair_id": list(range(8))})
    assert [side.tolist() for side in whole_pairs(apart.read_columns(["pair_id"]), *selected)] == [
        [0, 1, 2, 3], [4, 5, 6, 7],
    ]  # fmt: skip
    monkeypatch.setattr(analyses, "project", lambda differences, _seed: differences[:, :2])
    points = analyses.difference_points(made, "source", 0)
    np.testing.assert_allclose([(point.x, point.y) for point in points], [(1, 3), (1, 1), (1, 2)], atol=1e-4)
