"""The benchmark from its command line, quick: that it measures what it says, and notices what is wrong."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HARVEST = {
    "harvest/contrans-float32",
    "harvest/contrans-bfloat16",
    "harvest/peak-float32",
    "harvest/peak-bfloat16",
    "harvest/usual-float32",
    "harvest/prefix",
    "harvest/no-prefix",
    "harvest/actors",
    "harvest/two-actors",
}
ANY_PROCESSOR = {f"{name}/any-processor" for name in ("harvest", "score", "generate", "stream", "widened")}
EVALUATE = {
    f"evaluate/{name}" for name in ("emotion-sweep", "own-directions", "mc1", "mc1-sweep", "generate")
}


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[..., int]]:
    """`jobs/benchmark.py` in this process, which has its libraries loaded; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "jobs")
        benchmark, machine = (importlib.import_module(name) for name in ("benchmark", "speed.machine"))
        # What the machine can do is measured with less: nothing here is timed.
        patch.setattr(machine, "_TIMES", 2)
        patch.setattr(machine, "_COPIED", 16 << 20)
        patch.setattr(machine, "_READ", 16 << 20)

        def run(*arguments: str) -> int:
            patch.setattr(sys, "argv", ["benchmark.py", *arguments])
            return int(benchmark.main())

        yield run


@pytest.fixture(scope="module")
def found(
    local: None, script: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("out") / "figures.json"
    parts = ("harvest", "evaluate", "store")
    assert script(*parts, "--quick", "--dtypes", "float32,bfloat16", "--json", str(path)) == 0
    return dict(json.loads(path.read_text()))


def test_every_row_has_its_name_and_both_sides(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == HARVEST | EVALUATE | ANY_PROCESSOR | {"store/overhead"}
    for name, row in rows.items():
        assert row["part"] == ("harvest" if name in ANY_PROCESSOR else name.partition("/")[0])
        assert row["ratio"] > 0
        assert row["ours"] > 0
        assert row["theirs"] > 0
        assert row["unit"] in ("tokens/s", "seconds", "GFLOP/s")
    for name in HARVEST | ANY_PROCESSOR | EVALUATE - {"harvest/peak-float32", "harvest/peak-bfloat16"}:
        if not name.startswith("harvest/peak"):
            assert rows[name]["max_error"] < (1e-2 if "bfloat16" in name else 1e-5), name
    assert 0 <= rows["store/overhead"]["ratio"] <= 1


def test_ratios_are_ours_over_theirs(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["rows"]}
    for name in ("harvest/usual-float32", "harvest/actors", "harvest/two-actors", "evaluate/generate"):
        assert rows[name]["ratio"] == pytest.approx(rows[name]["ours"] / rows[name]["theirs"])
    for name in ("evaluate/emotion-sweep", "evaluate/own-directions", "evaluate/mc1", "evaluate/mc1-sweep"):
        assert rows[name]["ratio"] == pytest.approx(rows[name]["theirs"] / rows[name]["ours"])


def test_the_machine_is_described(found: dict[str, Any]) -> None:
    machine = found["machine"]
    assert {"device", "cores", "torch", "transformers", "command", "date"} <= set(machine)
    for name in ("matmul float32, GFLOP/s", "matmul bfloat16, GFLOP/s", "copy, GB/s", "disk read, GB/s"):
        assert machine[name] > 0


def test_a_harvest_is_of_the_model_that_was_asked_for(
    script: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first precision that was named: in float32 a large one would not fit. Not of the small one that
    another part has saved."""
    common, store = (importlib.import_module(f"speed.{name}") for name in ("common", "store"))
    monkeypatch.setitem(common.SHAPES, "narrow", common.Shape(32, 1, 2, 64, 500))
    options = {"repeats": 1, "n_texts": 2, "quick": True, "scratch": tmp_path}
    benches = [
        common.Bench(device="cpu", shape=shape, dtypes=("bfloat16", "float32"), **options)
        for shape in ("tiny", "narrow")
    ]
    loaded: list[dict[str, Any]] = []

    def load(folder: str, **_options: Any) -> None:
        loaded.append(json.loads((Path(folder) / "config.json").read_text()))
        raise InterruptedError

    monkeypatch.setattr(store, "load_model", load)
    for bench in benches:
        with pytest.raises(InterruptedError):
            next(store.rows(bench))
    assert [(config["hidden_size"], config["dtype"]) for config in loaded] == [
        (64, "bfloat16"),
        (32, "bfloat16"),
    ]


def test_a_row_is_on_disk_once_it_is_measured_beside_those_of_other_parts(
    script: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common, store = (importlib.import_module(f"speed.{name}") for name in ("common", "store"))
    path = tmp_path / "figures.json"
    rows = [{"part": part, "name": f"{part}/before"} for part in ("harvest", "store")]
    path.write_text(json.dumps({"tests": "passed", "rows": rows}))
    there: list[list[str]] = []

    def measured(_bench: Any) -> Iterator[Any]:
        for name in ("store/first", "store/second"):
            yield common.Row("store", name, 1.0, 1.0, 1.0, "seconds", None)
            there.append([row["name"] for row in json.loads(path.read_text())["rows"]])

    monkeypatch.setattr(store, "rows", measured)
    assert script("store", "--quick", "--add", "--json", str(path)) == 0
    assert there == [["harvest/before", "store/first"], ["harvest/before", "store/first", "store/second"]]
    assert json.loads(path.read_text())["tests"] == "passed"


def test_a_part_that_wants_what_is_not_installed_is_missed_alone(
    script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reduce, store = (importlib.import_module(f"speed.{name}") for name in ("reduce", "store"))

    def without_scipy(_bench: Any) -> Iterator[Any]:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(reduce, "rows", without_scipy)
    monkeypatch.setattr(
        store, "rows", lambda _bench: iter([store.Row("store", "store/one", 1, 1, 1, "s", None)])
    )
    assert script("reduce", "store", "--quick") == 1
    said = capsys.readouterr()
    assert "store/one" in said.out
    assert "reduce: the rest could not be measured: ModuleNotFoundError: No module named 'scipy'" in said.err


def test_a_gpu_may_round_bfloat16(script: Callable[..., int], tmp_path: Path) -> None:
    common = importlib.import_module("speed.common")
    gpu = common.Bench("cuda", "7b", ("bfloat16",), 1, 8, False, tmp_path)

    def allowed(name: str) -> float:
        row = common.Row(name.partition("/")[0], name, 1.0, 1.0, 1.0, "tokens/s", 0.0)
        return float(gpu.allowed(row))

    one_ulp = float(torch.finfo(torch.bfloat16).eps)
    assert allowed("stream/70b-from-host") > one_ulp
    assert allowed("harvest/contrans-bfloat16") > one_ulp
    assert allowed("stream/disk-offload") < one_ulp


def test_two_tokens_as_likely_but_for_rounding_are_the_same(script: Callable[..., int]) -> None:
    same = importlib.import_module("speed.evaluate").same_argmax
    loop = torch.tensor([[[1.0, 2.0, 1.9], [3.0, 1.0, 0.0], [0.0, 1.0, 3.0]]])
    argmax = np.array([[2, 1, 2]])
    assert same(argmax, loop, 0.06).tolist() == [[True, False, True]]
    assert same(argmax, loop, 0.04).tolist() == [[False, False, True]]


def test_sides_that_differ_are_told_and_the_exit_code_is_1(
    script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ConTrans way shifted by a token: its rows are no longer those of ours."""
    harvest = importlib.import_module("speed.harvest")
    right = harvest.contrans_way
    monkeypatch.setattr(harvest, "contrans_way", lambda lm, ids: right(lm, [text[:-1] for text in ids]))
    monkeypatch.setattr(harvest, "_actors", lambda _bench: iter(()))  # it has no such side
    assert script("harvest", "--quick", "--dtypes", "float32") == 1
    said = capsys.readouterr().err
    assert "harvest/contrans-float32: the two sides differ by" in said
    assert said.count("the two sides differ") == 1


@pytest.mark.slow
def test_without_ray_the_rest_is_measured(tmp_path: Path) -> None:
    """In a process of its own, in which `import ray` fails."""
    path = tmp_path / "figures.json"
    code = "import sys; sys.modules['ray'] = None; sys.path.insert(0, 'jobs')\n"
    code += "import benchmark\nsys.exit(benchmark.main())"
    arguments = ["harvest", "store", "--quick", "--dtypes", "float32", "--json", str(path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {row["name"] for row in json.loads(path.read_text())["rows"]}
    in_float32 = {name for name in HARVEST if "bfloat16" not in name}
    assert names == in_float32 - {"harvest/actors", "harvest/two-actors"} | ANY_PROCESSOR
    assert "ray is not installed" in done.stdout
