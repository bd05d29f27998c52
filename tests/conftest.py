"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest

# Two test files run side by side: each keeps to one core, and so do the processes it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the repository; without it a test that wants it skips."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of real models and data at {folder}")
    return folder
