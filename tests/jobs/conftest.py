"""What the tests of jobs share: its scripts as modules, and a Ray head to submit them to."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.heads import Head, ray_head

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="module")
def jobs_importable() -> Iterator[None]:
    """What lies beside a script of jobs/ can be imported as the script does."""
    sys.path.insert(0, str(JOBS))
    try:
        yield
    finally:
        sys.path.remove(str(JOBS))


@pytest.fixture(scope="package")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A real head, with token authentication, for all files that submit to it in this process."""
    with ray_head(tmp_path_factory.mktemp("head")) as head:
        yield head
