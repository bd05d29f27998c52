"""Packages of others, for the tests that ask what those make of our files."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def without_dependencies(folder: Path, packages: Sequence[str]) -> Path:
    """A folder with the packages alone, or a skip where the package index does not give them."""
    _install(sys.executable, ["--no-deps", "--ignore-requires-python", "--target", str(folder)], packages)
    return folder


def python(folder: Path, code: str) -> None:
    """Run code that finds the packages of a folder behind those that are installed."""
    code = f"import sys; sys.path.append({str(folder)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def environment_of(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of a new environment with the packages, or a skip as above."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    _install(str(folder / "bin/python"), [], packages)
    return folder / "bin/python"


def _install(python: str, options: list[str], packages: Sequence[str]) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package index does not give {packages}: {done.stderr.strip()[-200:]}")
