"""The files of an evaluation and of a run: what is written is what is read, and says what made it."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.errors import UserError
from contrans_dist.store.block_choice import BlockChoice
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection
from contrans_dist.store.provenance import made_by
from contrans_dist.store.results import (
    METRICS,
    SEARCH,
    MetricsFile,
    SearchFile,
    plain,
    read_metrics,
    read_search,
    write_file,
)
from contrans_dist.store.tables import (
    ContinuationRow,
    TokenRow,
    columns_of,
    facts_of,
    read_columns,
    read_table,
    rows_of,
    table_of,
    write_table,
)
from contrans_dist.store.tensors import open_tensors, save_tensors

VERSION = importlib.metadata.version("contrans-dist")
SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}


def metrics(**more: Any) -> dict[str, Any]:
    entry = {
        "condition": "vector", "strength": 2.0, "metrics": {"mc1": SCORE, "fear/mc1": {**SCORE, "low": None}},
        "p_vs_base": {"mc1": 0.01}, "p_vs": {"random": {"mc1": 0.02}},
        "p_vs_elsewhere": {"random": {"0.1234567": {"mc1": 0.03}}},
    }  # fmt: skip
    return {
        "benchmark": "truthfulqa", "model": "m", "block": None, "conditions": [entry],
        "costs": {"target": {"rows": 3, "seconds": 0.25}}, "tasks": {"t": {"version": 2}},
        "of_a_benchmark": [1], **more,
    }  # fmt: skip


def test_metrics_are_written_as_they_were_given(tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    write_file(folder / METRICS, MetricsFile.model_validate(metrics()))
    assert json.loads((tmp_path / METRICS).read_text()) == metrics()
    read = read_metrics(folder)
    assert read == MetricsFile.model_validate(metrics())
    (row,) = read.conditions
    assert (row.p("base", "mc1"), row.p("random", "mc1"), row.p("random", "mc1", 2.0)) == (0.01, 0.02, 0.02)
    assert row.p("random", "mc1", 0.1234567) == 0.03
    assert row.p("random", "mc1", 0.123457) is None
    assert row.metrics["mc1"].interval == (0.4, 0.6)
    assert row.metrics["fear/mc1"].interval is None


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    assert read_search(folder) is None
    trials = [
        {"condition": "vector", "strength": at, "score": at / 10, "perplexity": 10 + at} for at in (1.0, 2.0)
    ]
    search = SearchFile.model_validate(
        {"criterion": "mc1", "higher": False, "budget": 1.1, "base_perplexity": 10.0, "candidates": trials,
         "chosen": {"vector": 1.0}, **made_by()}
    )  # fmt: skip
    write_file(folder / SEARCH, search)
    assert read_search(folder) == search
    assert search.limit == pytest.approx(11.0)
    assert [trial.strength for trial in search.within(search.candidates)] == [1.0]
    assert search.gain(search.candidates[0]) == -0.1
    assert plain(search)["contrans_dist"] == VERSION


def test_trials_are_over_a_budget_by_one_rule() -> None:
    """One without a perplexity, whose logits overflowed, say, is over any; without a budget none is."""
    trials = [{"strength": 1.0, "score": 0.5, "perplexity": cost} for cost in (12.0, 12.1, None)]
    judged = {"criterion": "mc1", "higher": True, "budget": 1.2, "base_perplexity": 10.0}
    files: list[tuple[type[SearchFile | BlockChoice | BlockSelection], dict[str, Any], dict[str, Any]]] = [
        (SearchFile, {"chosen": {}}, {"condition": "vector"}),
        (BlockChoice, {"chosen": 2, "strength": 1.0}, {"block": 2}),
        (BlockSelection, {"chosen": (1, 2)}, {"source": 1, "target": 2}),
    ]
    for model, further, place in files:
        content = {**judged, **further, "candidates": [trial | place for trial in trials]}
        read = model.model_validate(content)
        assert [read.over(trial) for trial in read.candidates] == [False, True, True]
        assert plain(read) == json.loads(json.dumps(content))
        free = model.model_validate({**content, "budget": None})
        assert not any(map(free.over, free.candidates))


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    continued = [ContinuationRow("fear", "a", "p", "base", 0.0, "x", kind="negative")]
    moved = [TokenRow("fear", "vector", 2.0, "up", " dark", 3, 5, token_id=17)]
    for rows, row in ((continued, ContinuationRow), (moved, TokenRow)):
        location = Location.parse(tmp_path / f"{row.__name__}.parquet")
        write_table(location, table_of(rows, row), {"evaluation": "f"})
        table = read_columns(location, *columns_of(row))
        assert table is not None
        assert rows_of(table, row) == rows
        assert facts_of(read_table(location)) == {"evaluation": "f"}


def test_a_row_without_its_number_is_left_out(tmp_path: Path) -> None:
    location = Location.parse(tmp_path / "tokens.parquet")
    table = table_of([TokenRow("a", "vector", 2.0, "up", "x", 3, 5)] * 2, TokenRow)
    place = table.schema.get_field_index("count")
    pq.write_table(table.set_column(place, "count", pa.array([None, 3], pa.int64())), location.path)
    columns = read_columns(location, *columns_of(TokenRow))
    assert columns is not None
    assert len(rows_of(columns, TokenRow)) == 1
    assert read_columns(location, columns_of(ContinuationRow)[0]) is None


def test_every_artefact_tells_the_version_that_made_it(tmp_path: Path) -> None:
    assert made_by()["contrans_dist"] == VERSION
    file = Location.parse(tmp_path / "v.safetensors")
    save_tensors(file, {"vector": np.ones((1, 2), np.float32)}, {"format": 1, "kind": "vector"})
    assert open_tensors(file, "vector").header["contrans_dist"] == VERSION
    table = Location.parse(tmp_path / "t.parquet")
    write_table(table, pa.table({"a": [1]}))
    assert json.loads(pq.read_schema(table.path).metadata[b"contrans"])["contrans_dist"] == VERSION
    assert plain(MetricsFile.model_validate(metrics(**made_by())))["contrans_dist"] == VERSION


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"t\.parquet: the file is damaged"):
        read_table(Location.parse(tmp_path / "t.parquet"))
