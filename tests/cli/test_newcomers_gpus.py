"""GPUs that are asked for and not there, or that Ray counts and torch cannot use: one line, at once."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from contrans_dist.distributed.cluster import Replicas, connected
from contrans_dist.distributed.pool import Task, run_tasks
from contrans_dist.errors import NoGpuError, UserError
from contrans_dist.models.devices import check_gpus
from tests.commands import run
from tests.sets import write_lines

Capture = pytest.CaptureFixture[str]
HARVEST = ["harvest", "--model", "demo:source", "--texts", "{texts}", "--out", "{out}"]
EVALUATE = ["evaluate", "--model", "demo:source", "--benchmark", "perplexity", "--data", "{texts}",
            "--out", "{out}"]  # fmt: skip
RUN = ["run", "demo", "--out", "{out}"]
NO_NODE = "no node has 1 GPUs for one actor, the largest has 0: fewer --gpus-per-actor, or 0 to run on the"
UNUSABLE = (
    f"Ray lends 1 GPU here, and torch {torch.__version__} (torch.version.cuda: {torch.version.cuda}) can"
)


@pytest.fixture
def filled(tmp_path: Path) -> dict[str, str]:
    texts = tmp_path / "texts.jsonl"
    write_lines(texts, [{"text": "Anna was happy."}])
    return {"texts": str(texts), "out": str(tmp_path / "out")}


@pytest.fixture(scope="module")
def counted() -> Iterator[None]:
    """A cluster that has no GPU and says that it has two: its workers have the torch of this machine."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}
    )
    with ExitStack() as stack:
        stack.callback(cluster.shutdown)
        cluster.wait_for_nodes()
        stack.enter_context(connected(cluster.address))
        yield


def in_place(words: list[str], filled: dict[str, str]) -> list[str]:
    return [filled.get(word.strip("{}"), word) for word in words]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    "words",
    [
        [*HARVEST, "--gpus-per-actor", "1"],
        [*HARVEST, "--gpus-per-actor", "1", "--actors", "1"],  # was waited for: none can join
        [*EVALUATE, "--gpus-per-actor", "1"],
        [*RUN, "--set", "cluster.gpus_per_actor=1"],
        [*RUN, "--set", "cluster={gpus_per_actor: 1, actors: 2}"],
    ],
)
def test_where_there_is_none(words: list[str], filled: dict[str, str], local: None, capsys: Capture) -> None:
    ended = run(capsys, *in_place(words, filled))
    assert ended.code == 2, ended
    assert NO_NODE in ended.err.splitlines()[-1]


class Idle:
    """An actor that needs nothing."""

    def run(self, _payload: None) -> None: ...


@pytest.mark.parametrize(
    "words", [HARVEST, pytest.param([*EVALUATE, "--gpus-per-actor", "1"], marks=pytest.mark.slow)]
)
def test_one_that_torch_cannot_use(
    words: list[str], filled: dict[str, str], counted: None, capsys: Capture
) -> None:
    """Whether it was asked for or not. Before, the model ran on the processors without a word."""
    ended = run(capsys, *in_place(words, filled))
    assert ended.code == 2, ended
    assert UNUSABLE in ended.err.splitlines()[-1]
    assert "--gpus-per-actor 0 runs on the processors" in ended.err.splitlines()[-1]
    assert not list(Path(filled["out"]).glob("*"))


@pytest.mark.slow
def test_without_it_as_the_line_says(filled: dict[str, str], counted: None, capsys: Capture) -> None:
    ended = run(capsys, *in_place(HARVEST, filled), "--gpus-per-actor", "0")
    assert ended.code == 0, ended


def test_actors_alone_are_told_too(counted: None) -> None:
    """As on a node that joins later, or a judge's. They are not tried again for half a minute."""
    tasks = [Task(f"t{i}", None) for i in range(2)]
    with pytest.raises(UserError, match="Ray lends 1 GPU here"):
        run_tasks(Idle, (), tasks, Replicas(2, 0.5, 1), lambda *_: None)


@pytest.mark.parametrize(
    ("usable", "lent", "told"),
    [
        (0, 0, None), (1, 0.5, None), (1, 1, None), (2, 2, None),
        (0, 0.5, r"lends 1 GPU here, .*: 13.0\) can use 0 \(.* too old \(found version 11040\)\);"),
        (1, 2, r"lends 2 GPUs here, .* can use 1;"),
    ],
)  # fmt: skip
def test_what_torch_says(usable: int, lent: float, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that is too old torch counts GPUs by the driver's own tools, and can use none."""

    def init() -> None:
        if not usable:
            raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: max(usable, 1))
    monkeypatch.setattr(torch.cuda, "init", init)
    if told is None:
        check_gpus(lent)
        return
    with pytest.raises(NoGpuError, match=told):
        check_gpus(lent)
