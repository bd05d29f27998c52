"""The order of the rooms: each imports only rooms to its left, and only the drivers import Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import contrans_dist

PACKAGE = Path(contrans_dist.__file__).parent
ROOMS = [
    "errors", "limits", "printing", "addresses", "characters", "yamlfiles", "jsontext", "fitting", "config",
    "recipe", "schema", "progress", "patience", "workfolders", "stores", "storage", "provenance", "claims",
    "tensorfiles", "resultfiles", "runrecipe", "setmanifest", "footers", "shardreader", "artifacts",
    "textfiles", "tablehash", "templates", "texts", "corpus", "leak", "models", "prefixes", "capturing",
    "shardfiles", "shards", "streamed", "quantized", "harvesters", "manifest", "leftout", "growing",
    "localray", "cluster", "actors", "crew", "pool", "placing", "underway", "harvest",
    "rowchecks", "moments", "concepts", "splits", "goodness", "leastsquares", "ridge", "spectral",
    "affinemap", "fitrows", "affine", "pairs", "transplanting", "vectors", "mapheaders", "maps", "refining",
    "joining", "library", "rowsums", "projections", "reduce",
    "steering", "scoring", "conditions", "statistics", "benchmarks", "harness", "systems", "scorers",
    "assignments", "catalogue", "evaluate", "trials", "search",
    "probing", "transfers", "likeness", "methods", "selection", "inspection", "verification",
    "analysis", "assess",
    "report", "demo", "preparation", "plan",
    "calibration", "running", "pipeline", "cli",
]  # fmt: skip
WITH_RAY = {"localray", "cluster", "actors", "crew", "pool", "reduce"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def files() -> list[Path]:
    found = [
        path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__")
    ]
    assert len(found) > 40
    return found


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in files()} == set(ROOMS)


def test_no_room_reaches_to_its_right() -> None:
    wrong = []
    for path in files():
        mine = ROOMS.index(room_of(path))
        for name in imports(path):
            head, _, rest = name.partition(".")
            if head == "contrans_dist" and rest and rest.split(".")[0] in ROOMS:
                theirs = rest.split(".")[0]
                if ROOMS.index(theirs) > mine:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {theirs}")
    assert not wrong


def test_only_the_drivers_import_ray() -> None:
    with_ray = {room_of(path) for path in files() if any(n.split(".")[0] == "ray" for n in imports(path))}
    assert with_ray == WITH_RAY


def test_tasks_and_actors_start_in_one_place() -> None:
    """What is started elsewhere might wait for the cores of kept actors for ever."""
    assert [path.name for path in files() if "ray.remote" in path.read_text()] == ["actors.py"]


def test_nothing_is_pickled() -> None:
    forbidden = ("pickle", "torch.load", "torch.save", "allow_pickle=True", "yaml.load(", "joblib")
    for path in files():
        text = path.read_text()
        assert not [word for word in forbidden if word in text], path


def test_engines_run_where_ray_is_not_installed() -> None:
    """A fresh interpreter in which `import ray` fails still captures, steers and scores."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import contrans_dist as ct, contrans_dist.scoring, contrans_dist.benchmarks.emotions\n"
        "assert callable(ct.capture) and callable(ct.transplant) and callable(ct.steer)\n"
        "import contrans_dist.capturing, contrans_dist.transplanting\n"
        "assert callable(ct.capture) and callable(ct.fit_map) and callable(ct.load_model)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_help_does_not_load_torch() -> None:
    code = "import contrans_dist.cli, sys; assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
