"""How far a recipe of several runs is."""

from pathlib import Path

import pytest

from contrans_dist.errors import UserError
from contrans_dist.pipeline.status import status_of
from contrans_dist.store.location import Location


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
