"""What a report says of activation sets."""

from pathlib import Path

import numpy as np
import pytest

from contrans_dist.harvest.manifest import warn
from contrans_dist.report.harvests import harvest_table, harvest_warnings
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Manifest
from tests.sets import make_set


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("float16", 1e-2), ("bfloat16", 5e-2)])
def test_rows_that_depend_on_their_batch_are_told_by_harvest_and_report_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, most: float
) -> None:
    """By the bounds of docs/concepts.md; weights in another precision than that which is computed in."""
    made = make_set(tmp_path / "set", {0: np.ones((3, 4), np.float32)}, 1)
    for worst, told in ((0.9 * most, False), (1.1 * most, True)):
        content = made.manifest.model_dump(mode="json")
        content["identity"] |= {"dtype": "bfloat16", "compute_dtype": dtype}
        content["canary"] = {"worst_deviation": worst}
        manifest = Manifest.model_validate(content)
        found = ActivationSet(made.location, manifest)
        capsys.readouterr()
        warn(manifest, Location.parse(tmp_path / "set"))
        assert ("a text in a batch and alone differ by" in capsys.readouterr().err) is told
        assert ("batched rows differ" in "".join(harvest_warnings("corpus", found))) is told
        assert harvest_table({"corpus": found}).rows[0][-1].kind == ("warn" if told else "")


def test_a_precision_that_is_not_known_has_no_bound(tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", {0: np.ones((3, 4), np.float32)}, 1)
    content = made.manifest.model_dump(mode="json")
    content["identity"]["dtype"], content["canary"] = "float64", {"worst_deviation": 9.0}
    assert not Manifest.model_validate(content).depends_on_batch
