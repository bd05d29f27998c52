"""What runs on a machine with a GPU, as far as one without can tell."""

import ast
import importlib
import os
import subprocess
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
