"""The benchmark from its command line, quick: that it measures what it says, and notices what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HARVEST = {
    "harvest/contrans-float32",
    "harvest/contrans-bfloat16",
    "harvest/peak-float32",
    "harvest/peak-bfloat16",
    "harvest/usual-float32",
    "harvest/prefix",
    "harvest/no-prefix",
    "harvest/actors",
}
EVALUATE = {"evaluate/emotion-sweep", "evaluate/mc1", "evaluate/mc1-sweep", "evaluate/generate"}


def _run(*arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """`jobs/benchmark.py` in a process of its own, after `prelude`."""
    script = f"import sys; sys.path.insert(0, 'jobs'); sys.argv = ['benchmark.py', *sys.argv[1:]]; {prelude}"
    script += "\nimport benchmark\nsys.exit(benchmark.main())"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("out") / "figures.json"
    done = _run("harvest", "evaluate", "store", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(path.read_text()))


def test_every_row_has_its_name_and_both_sides(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == HARVEST | EVALUATE | {"store/overhead"}
    for name, row in rows.items():
        assert row["part"] == name.partition("/")[0]
        assert row["ratio"] > 0
        assert row["ours"] > 0
        assert row["theirs"] > 0
        assert row["unit"] in ("tokens/s", "seconds", "GFLOP/s")
    for name in HARVEST | EVALUATE - {"harvest/peak-float32", "harvest/peak-bfloat16"}:
        if not name.startswith("harvest/peak"):
            assert rows[name]["max_error"] < (1e-2 if "bfloat16" in name else 1e-5), name
    assert 0 <= rows["store/overhead"]["ratio"] <= 1


def test_ratios_are_ours_over_theirs(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["rows"]}
    for name in ("harvest/usual-float32", "harvest/actors", "evaluate/generate"):
        assert rows[name]["ratio"] == pytest.approx(rows[name]["ours"] / rows[name]["theirs"])
    for name in ("evaluate/emotion-sweep", "evaluate/mc1", "evaluate/mc1-sweep"):
        assert rows[name]["ratio"] == pytest.approx(rows[name]["theirs"] / rows[name]["ours"])


def test_the_machine_is_described(found: dict[str, Any]) -> None:
    machine = found["machine"]
    assert {"device", "cores", "torch", "transformers", "command", "date"} <= set(machine)
    for name in ("matmul float32, GFLOP/s", "matmul bfloat16, GFLOP/s", "copy, GB/s", "disk read, GB/s"):
        assert machine[name] > 0


def test_sides_that_differ_are_told_and_the_exit_code_is_1() -> None:
    """The ConTrans way shifted by a token: its rows are no longer those of ours."""
    wrong = "import speed.harvest as h; right = h.contrans_way; "
    wrong += "h.contrans_way = lambda lm, ids: right(lm, [text[:-1] for text in ids])"
    done = _run("harvest", "--quick", "--dtypes", "float32", prelude=wrong)
    assert done.returncode == 1
    assert "harvest/contrans-float32: the two sides differ by" in done.stderr


def test_without_ray_the_rest_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = _run(
        "harvest", "store", "--quick", "--dtypes", "float32", "--json", str(path),
        prelude="import sys; sys.modules['ray'] = None",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {row["name"] for row in json.loads(path.read_text())["rows"]}
    assert names == {name for name in HARVEST if "bfloat16" not in name} - {"harvest/actors"}
    assert "ray is not installed" in done.stdout
