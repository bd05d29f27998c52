"""How far a recipe of several runs is."""

import json
from pathlib import Path
from typing import Any

import pytest

from contrans_dist.errors import UserError
from contrans_dist.pipeline.status import status_of
from contrans_dist.store.location import Location
from contrans_dist.store.running import running_in
from tests.runfolder import UNDER_WAY


def test_every_run_is_told_and_one_that_has_not_begun_is_left_out(tmp_path: Path) -> None:
    for run, file in (("a", "metrics.json"), ("b", "parts/part-00000.parquet")):
        path = tmp_path / "runs" / run / "evaluations" / "emotions" / file
        path.parent.mkdir(parents=True)
        path.write_text('{"benchmark": "emotions", "model": "m", "conditions": []}')
    (tmp_path / "runs" / "c").mkdir()
    assert status_of(Location.parse(tmp_path)) == {
        "runs/a/evaluations/emotions": "complete",
        "runs/a/report": "not yet",
        "runs/b/evaluations/emotions": "1 part finished, not complete: run the same evaluation again",
        "runs/b/report": "not yet",
        "report": "not yet",
    }
    with pytest.raises(UserError, match="expected a harvest, an evaluation or a run"):
        status_of(Location.parse(tmp_path / "runs" / "c"))


@pytest.mark.parametrize("odd", [{"told": "2026-01-01T00:00:00"}, {"wanted": 10**400}, {"done": -1}])
def test_what_a_stranger_says_of_a_run_under_way_is_left_out(tmp_path: Path, odd: dict[str, Any]) -> None:
    folder = Location.parse(tmp_path)
    for name, content in (("a", UNDER_WAY), ("b", {**UNDER_WAY, **odd})):
        (tmp_path / f".running-{name}.json").write_text(json.dumps(content))
    (one,) = running_in(folder)
    assert "1 of 9 texts" in str(one)
