"""The engines under the oldest and the newest transformers that pyproject.toml allows."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARDS = [
    "tests/engine/test_prefixes.py", "tests/engine/test_proxy_tuning.py", "tests/engine/test_scoring.py",
    "tests/engine/test_capture.py", "tests/models/test_streaming.py",
]  # fmt: skip
"""Tests of all that reaches into transformers: hooks, caches, masks, blocks that are handed on."""
YOUNGER = "tests/models/test_streaming.py::test_models_whose_blocks_share_more_are_refused"
"""Of architectures that 5.0 does not have yet, or cannot build that small."""


def allowed() -> str:
    """The versions of transformers, such as `>=5.0,<6`."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (versions,) = (re.sub("^transformers", "", line) for line in needed if line.startswith("transformers"))
    return versions


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_the_engines_at_both_ends_of_what_is_allowed(end: str, tmp_path: Path) -> None:
    versions = allowed()
    wanted = "==" + versions.split(",")[0].removeprefix(">=") if end == "oldest" else versions
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path)]
    installed = subprocess.run([*pip, f"transformers{wanted}"], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"the package index does not answer: {installed.stderr.strip()[-200:]}")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "--deselect", YOUNGER, *GUARDS],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]
