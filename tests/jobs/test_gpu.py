"""What runs on a machine with a GPU, as far as one without can tell."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("ray", "gguf", "bitsandbytes", "scipy", "matplotlib", "sklearn", "pandas", "hypothesis", "moto")
"""Needed by neither torch nor transformers."""


@pytest.fixture
def gpu(jobs_importable: None) -> Any:
    """`jobs/gpu.py` as a module."""
    return importlib.import_module("gpu")


def _marked() -> set[str]:
    """The tests of the repository that want a GPU, as `file::name`."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator) == "pytest.mark.gpu" for decorator in node.decorator_list
            ):
                found.add(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def test_every_gpu_test_is_found_where_only_torch_and_transformers_are(gpu: Any) -> None:
    """In a process of its own, in which nothing else of what the package wants can be imported."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"
    code = f"{absent}\nimport pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    python, _, _, *arguments = gpu.pytest()
    done = subprocess.run(
        [python, "-c", code, *arguments, "--collect-only"],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert collected == _marked()
    assert len(collected) > 5


@pytest.mark.slow
def test_figures_come_in_several_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is of all parts, whichever command measured them."""
    figures, out = tmp_path / "figures.json", tmp_path / "page.md"
    kept = {
        "part": "harvest",
        "name": "harvest/peak-float32",
        "unit": "GFLOP/s",
        "note": "",
        "max_error": None,
    }
    rows = [{**kept, "ratio": 0.9, "ours": 9.0, "theirs": 10.0}]
    figures.write_text(json.dumps({"tests": "passed", "rows": [*rows, {**rows[0], "part": "store"}]}))
    # The package is not installed where it is only copied to.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, str(ROOT / "jobs" / "gpu.py"), "--quick", "--parts", "store"]
    done = subprocess.run(
        [*command, "--figures", str(figures), "--out", str(out)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["tests"] == "passed"
    assert [row["name"] for row in found["rows"]] == ["harvest/peak-float32", "store/overhead"]
    page = out.read_text()
    assert "The gpu tests passed." in page
    assert "`harvest/peak-float32`" in page
    assert "`store/overhead`" in page


def test_a_benchmark_that_dies_is_no_traceback(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be started from there, and so leaves no figures."""
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--quick", "--parts", "store", "--out", str(tmp_path / "page")]
    )
    monkeypatch.setattr(gpu, "REPOSITORY", tmp_path)
    assert gpu.main() == 1
    assert not (tmp_path / "page").exists()


def test_a_part_that_there_is_not_is_refused(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--parts", "tests,harvests"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()


@pytest.mark.network
def test_wheels_are_for_the_python_that_is_asked_for(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LACKING", ("pydantic_core",))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--wheels", str(tmp_path), "--python-version", "3.13"])
    assert gpu.main() == 0
    (wheel,) = tmp_path.iterdir()
    assert "-cp313-" in wheel.name
