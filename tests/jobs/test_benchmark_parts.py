"""The parts of the benchmark on tiny models: both sides compute the same numbers. Nothing here is timed."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

import contrans_dist.mapping.distributed_sums
from contrans_dist.distributed import answers, tasks
from tests.inprocess import ray_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("jobs_importable")]


def part(name: str) -> Any:
    return importlib.import_module(f"speed.{name}")


def quick(scratch: Path) -> Any:
    return part("common").Bench(
        device="cpu",
        shape="tiny",
        dtypes=("float32",),
        repeats=1,
        n_texts=12,
        quick=True,
        scratch=scratch,
    )


def test_evaluate(tmp_path: Path) -> None:
    found = {row.name: row for row in part("evaluate").rows(quick(tmp_path))}
    names = ["emotion-sweep", "own-directions", "mc1", "mc1-sweep", "generate"]
    assert list(found) == [f"evaluate/{name}" for name in names]
    assert all(row.max_error < 1e-4 and row.ratio > 0 for row in found.values())
    assert found["evaluate/generate"].max_error == 0


@pytest.fixture(scope="module")
def reduced(
    local: None, jobs_importable: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Any], list[int]]:
    """Rows of the part `reduce`, and the numbers of workers that it asked Ray for.

    Two workers are those of the Ray that is there already; one is this process.
    """
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as started:

        def init(num_cpus: int, **_options: Any) -> None:
            asked.append(num_cpus)
            if num_cpus == 1:
                started.enter_context(ray_here(answers, tasks, contrans_dist.mapping.distributed_sums))

        patch.setattr(ray, "init", init)
        patch.setattr(ray, "shutdown", started.close)
        return list(part("reduce").rows(quick(tmp_path_factory.mktemp("reduce")))), asked


def test_reduce_in_one_process(reduced: tuple[list[Any], list[int]]) -> None:
    vector, pairs, peak = reduced[0][:3]
    assert (vector.name, vector.max_error < 1e-8) == ("reduce/vector", True)
    assert "we warn" in vector.note
    assert (pairs.name, pairs.max_error < 1e-9) == ("reduce/pairs", True)
    assert (peak.name, peak.max_error < 1e-12) == ("reduce/peak-float64", True)
    assert all(row.ratio > 0 for row in (vector, pairs, peak))


def test_reduce_with_two_workers_gives_the_map_of_one(reduced: tuple[list[Any], list[int]]) -> None:
    rows, asked = reduced
    if len(rows) == 3:
        pytest.skip("there is one core")
    assert (rows[3].name, asked) == ("reduce/two-workers", [1, 2])
    assert rows[3].max_error < 1e-6
    assert rows[3].ratio > 0


def test_rows_have_the_condition_and_the_outliers_that_were_asked_for() -> None:
    x = part("reduce").rows_of_condition(400, 1024, 1e6, np.random.default_rng(0))
    sigma = np.linalg.svd(x, compute_uv=False)
    assert sigma[0] / sigma[-1] == pytest.approx(1e6, rel=0.05)
    sizes = np.sort(np.sqrt(np.mean(x**2, axis=0)))
    assert sizes[-4] / np.median(sizes) == pytest.approx(100, rel=0.3)
    assert sizes[-5] / np.median(sizes) < 2


def test_memory_of_the_sums_does_not_grow_with_the_rows() -> None:
    reduce = part("reduce")
    assert reduce._peak_bytes(160_000) == pytest.approx(reduce._peak_bytes(20_000), rel=0.02)


def test_stream(tmp_path: Path) -> None:
    stream = part("stream")
    try:
        with stream.control_group(1 << 30):
            pass
    except OSError as error:
        pytest.skip(f"no memory control group: {error}")
    offload, read = stream.rows(quick(tmp_path))
    assert (offload.name, read.name) == ("stream/disk-offload", "stream/bytes-read")
    assert offload.max_error <= 1e-5
    assert offload.ratio > 0
    files = list((tmp_path / "streamed").glob("*.safetensors"))
    assert read.theirs == sum(path.stat().st_size for path in files)


def test_rows_of_a_large_model_say_what_they_took_of_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {
        "memory_allocated": 1e9, "max_memory_allocated": 3.5e9,
        "memory_reserved": 2e9, "max_memory_reserved": 6.25e9, "reset_peak_memory_stats": 0.0,
    }  # fmt: skip
    for name, size in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size)
    streamed, quantised = part("stream")._large(quick(tmp_path))
    assert (streamed.name, quantised.name) == ("stream/70b-from-host", "stream/70b-nf4")
    assert streamed.max_error < 5e-2
    for row in (streamed, quantised):
        assert "; ours took 2.50 GB of GPU memory, 4.25 GB reserved" in row.note


def test_stream_is_left_out_where_no_control_group_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def refused(_limit: int) -> Iterator[Path]:
        raise PermissionError("not allowed here")
        yield

    stream, bench = part("stream"), quick(tmp_path)
    monkeypatch.setattr(stream, "control_group", refused)
    assert list(stream.rows(bench)) == []
    assert bench.missed == []
    assert "left out, no memory control group (not allowed here)" in capsys.readouterr().out
