"""The scripts of jobs/ as modules."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="module")
def jobs_importable() -> Iterator[None]:
    """What lies beside a script of jobs/ can be imported as the script does."""
    sys.path.insert(0, str(JOBS))
    try:
        yield
    finally:
        sys.path.remove(str(JOBS))
