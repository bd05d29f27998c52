"""The rooms of the house: each imports only rooms above it, nothing lies flat, and only some import Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import contrans_dist

PACKAGE = Path(contrans_dist.__file__).parent
FLAT = ["__init__", "__main__", "console", "errors"]
ROOMS = [
    "demo", "config", "store", "data", "models", "engine", "distributed", "harvest", "vectors", "mapping",
    "benchmarks", "evaluation", "report", "pipeline", "cli",
]  # fmt: skip
"""From the top: a room imports what stands before it, `errors` and `console`."""
WITH_RAY = {"distributed", "mapping"}


def imports(path: Path) -> set[str]:
    """Every module a file imports at run time, inside functions too, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(room: str = "") -> list[Path]:
    found = sorted((PACKAGE / room).rglob("*.py"))
    assert found
    return found


def test_nothing_lies_flat() -> None:
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == FLAT
    assert sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*/*.py")}) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_imports_the_rooms_it_names_all_above_it(room: str) -> None:
    first, *_, last = (
        ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    ).split("\n\n")
    assert first.endswith(".")
    named = last.removeprefix("Imports: ").removesuffix(".").replace("\n", " ").split(", ")
    imported = {
        name.split(".")[1]
        for path in files(room)
        for name in imports(path)
        if name.startswith("contrans_dist.")
    } - {room, "errors", "console"}
    assert imported == {*named} - {"nothing of ours"}
    assert imported <= {*ROOMS[: ROOMS.index(room)]}


def test_only_some_rooms_import_ray() -> None:
    found = {
        path.relative_to(PACKAGE).parts[0]
        for path in files()
        if any(name.split(".")[0] == "ray" for name in imports(path))
    }
    assert found == WITH_RAY


def test_tests_mirror_the_rooms() -> None:
    tests = Path(__file__).parent
    folders = {path.parent.name for path in tests.glob("*/test_*.py")}
    assert folders == {*ROOMS, "jobs", "docs", "faults"}


def test_tasks_and_actors_each_start_in_one_place() -> None:
    """What is started elsewhere might wait for the cores of kept actors for ever."""
    assert [path.name for path in files() if "ray.remote" in path.read_text()] == ["actors.py", "tasks.py"]


def test_engines_run_where_ray_is_not_installed() -> None:
    """A fresh interpreter in which `import ray` fails still captures, steers and scores."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import contrans_dist as ct, contrans_dist.engine.scoring, contrans_dist.benchmarks.emotions\n"
        "assert callable(ct.capture) and callable(ct.transplant) and callable(ct.steer)\n"
        "import contrans_dist.engine.capture, contrans_dist.mapping.transplant\n"
        "assert callable(ct.capture) and callable(ct.fit_map) and callable(ct.load_model)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_loads_nothing_that_takes_long() -> None:
    slow = {"torch", "ray", "transformers", "numpy", "pyarrow", "pydantic", "fsspec", "yaml"}
    code = f"import contrans_dist.cli, sys; assert not {slow} & set(sys.modules), {slow} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_map_is_fitted_without_what_runs_models() -> None:
    """It takes longer to load than most maps to fit, in the command as in each worker of Ray."""
    code = (
        "import sys, contrans_dist.mapping.driver, contrans_dist.mapping.distributed_sums\n"
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
