"""Nodes that join, that are about to go, and that differ: on real nodes of one machine."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.distributed import actors, crew, pool, tasks
from contrans_dist.distributed.cluster import Replicas, connected, replicas
from contrans_dist.distributed.nodes import alive_nodes
from contrans_dist.distributed.placement import _judged
from contrans_dist.distributed.pool import Task, run_tasks
from contrans_dist.distributed.tasks import on_a_node, on_nodes
from contrans_dist.errors import NoGpuError, RunError, UserError
from contrans_dist.harvest import planned_set
from contrans_dist.harvest.driver import harvest
from contrans_dist.harvest.planned_set import PlannedSet
from contrans_dist.harvest.shards import ShardReport
from contrans_dist.models.placement import Placement
from tests.inprocess import ray_here
from tests.tiny import save_tiny
from tests.waiting import until

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

NO_GPU = Replicas(1, 0, 1)
SMALL = "ray.io/accelerator-type"


class Where:
    """Says where each task was done, and leaves a trace of it; from the fourth on, none is done before so
    many nodes have left one: how long an actor takes to start is not for the test to say."""

    def __init__(self, folder: str, nodes: int = 1) -> None:
        self.folder, self.nodes = Path(folder), nodes

    def _seen(self) -> int:
        return len({path.name.partition("-")[0] for path in self.folder.iterdir()})

    def run(self, seconds: float) -> str:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{node}-{time.monotonic_ns()}").touch()
        while len(list(self.folder.iterdir())) > 3 and self._seen() < self.nodes:
            time.sleep(0.05)
        time.sleep(seconds)
        return str(node)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.wait_for_nodes()
        with connected(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


def drain(node_id: str) -> None:
    """As `ray drain-node` does, and whoever hears of a spot node's end."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int(1000 * (time.time() + 600))
    accepted, why = global_worker.gcs_client.drain_node(node_id, reason, "a test", deadline)
    assert accepted, why


def _process_and_gpus() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


class Sees:
    """Says which GPUs are there for it."""

    def run(self, _payload: None) -> str | None:
        return _process_and_gpus()[1]


def test_who_gets_gpus_sees_them_and_nobody_else(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placements are tried with 1, 2, 4 GPUs, and CUDA sees for ever those of a process's first task. Who
    gets none is to see none; where there are none, nobody waits for a process without them."""
    assert on_a_node(_process_and_gpus, NO_GPU) == _process_and_gpus()
    node = cluster.add_node(num_cpus=1, num_gpus=2)
    try:
        until(lambda: len(alive_nodes()) == 2, "the node", pause=0.1)
        (one, first), (two, both) = (on_a_node(_process_and_gpus, replace(NO_GPU, gpus=n)) for n in (1, 2))
        assert one != two
        assert (first, both) == ("0", "0,1")
        assert on_a_node(_process_and_gpus, NO_GPU)[1] == ""
        seen: list[str] = []
        run_tasks(Sees, (), [Task("t", None)], NO_GPU, lambda _task, gpus: seen.append(gpus))
        assert seen == [""]
        monkeypatch.setattr(tasks, "alone", lambda: True)
        assert on_a_node(_process_and_gpus, NO_GPU)[1] == ""
    finally:
        cluster.remove_node(node)
        until(lambda: len(alive_nodes()) == 1, "the node to go", pause=0.1)


def test_a_node_that_joins_gets_an_actor_and_one_that_is_to_go_gets_no_more(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.2)
    home, found, drained = alive_nodes()[0].id, dict[str, str](), dict[str, int]()

    def keep(task: Task, node: str) -> None:
        found[task.name] = node
        if len(found) == 2:
            cluster.add_node(num_cpus=1)
        if node != home and not drained:
            drain(node)
            drained[node] = len(found)

    size = replicas(ClusterSettings())
    assert (size.actors, size.follows) == (1, True)
    tasks = [Task(f"t{i}", 0.3) for i in range(20)]
    outcome = run_tasks(Where, (str(tmp_path), 2), tasks, size, keep)
    assert len(found) == len(tasks) == len(list(tmp_path.iterdir()))  # nothing was done twice
    assert (outcome.lost_actors, outcome.failures) == (0, {})
    on_other = [name for name, node in found.items() if node != home]
    # One was under way when it was told to go, and another may have been given before that was seen.
    assert 1 <= len(on_other) <= 4
    said = capsys.readouterr().err
    assert "the cluster has room for more: 2 actors now" in said
    assert "a node of the cluster is about to go: its actor gets nothing more to do" in said


def test_a_folder_that_nodes_do_not_share_is_told(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another node has written to a disk of its own is not here: by the next shard, or at the end."""
    model = ModelSettings(id=str(save_tiny(tmp_path / "model", "llama", n_blocks=1, d=16)))
    texts, take = text_table({"text": ["one small text", "another one", "the dog"]}), PlannedSet.take

    def elsewhere(planned: PlannedSet, address: str, report: ShardReport) -> None:
        Path(address).unlink()
        take(planned, address, report)

    monkeypatch.setattr(PlannedSet, "take", elsewhere)
    shared = "--out must be on a disk that all nodes of the cluster share, or in an object store"
    one, node = ClusterSettings(actors=1, cpus_per_actor=1), cluster.add_node(num_cpus=1)
    try:
        until(lambda: sum(not each.leaving for each in alive_nodes()) == 2, "the node", pause=0.1)
        with ray_here(actors, crew, pool):
            with pytest.raises(RunError, match=rf"3 of 3 shards are not as .*, but {shared}$"):
                harvest(model, texts, str(tmp_path / "set"), CaptureSettings(shard_size=1), one)
            monkeypatch.setattr(planned_set, "_SEEN_SECONDS", 0.0)
            with pytest.raises(
                RunError, match=rf"shard-00000.parquet: was made by another node .*; {shared}$"
            ):
                harvest(model, texts, str(tmp_path / "set"), CaptureSettings(shard_size=1), one)
    finally:
        cluster.remove_node(node)
        until(lambda: sum(not each.leaving for each in alive_nodes()) == 1, "the node to go", pause=0.1)


def _memory() -> Placement:
    """A model that only nodes with more than 3 GB hold."""
    node = next(n for n in alive_nodes() if n.id == ray.get_runtime_context().get_node_id())
    memory = int(node.has("memory"))
    return Placement("resident" if memory > 3e9 else "stream", "a test", free=memory)


def _seen_on_large() -> Placement:
    """A GPU of a small node has a driver that is too old."""
    placement = _memory()
    if placement.kind == "stream":
        raise NoGpuError("small: torch can use 0")
    return placement


def _refuses() -> None:
    raise UserError("a model with no tokenizer")


@pytest.mark.timeout(120)
def test_nodes_that_are_lost_before_they_answer_are_not_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """Though another has room. Before, Ray's own words were all that was said, and not how to go on."""
    here, asked = {node.id for node in alive_nodes()}, tmp_path / "asked"
    node = cluster.add_node(num_cpus=1)
    until(lambda: len(alive_nodes()) > len(here), "the node", pause=0.1)

    def lose() -> None:
        until(asked.exists, "the question")
        cluster.remove_node(node, allow_graceful=False)

    def answer() -> None:
        asked.touch()
        time.sleep(600)

    losing = threading.Thread(target=lose)
    losing.start()
    with pytest.raises(RunError, match=r"no node answered \(.*\); run the same command again$"):
        on_nodes(answer, NO_GPU, [node for node in alive_nodes() if node.id not in here])
    losing.join()
    assert NO_GPU.fits(alive_nodes())


@pytest.mark.slow
def test_actors_go_where_the_model_fits_and_the_labels_are(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for memory, kind in ((2, "T4"), (4, "A100"), (6, "H100")):
        cluster.add_node(num_cpus=1, memory=memory * 10**9, labels={SMALL: kind})
    until(lambda: sum(SMALL in node.labels for node in alive_nodes()) == 3, "three nodes", pause=0.1)
    ids = {node.labels[SMALL]: node.id for node in alive_nodes() if SMALL in node.labels}

    size = replicas(ClusterSettings())
    chosen, excluded = _judged(_memory, size)
    assert chosen == Placement("resident", "a test", free=4 * 10**9)  # what holds it where least is free
    assert excluded == [ids["T4"]]
    assert _judged(_seen_on_large, size) == (chosen, excluded)
    assert "small: torch can use 0" in capsys.readouterr().err
    # The head has memory as well, and no label.
    assert [replicas(ClusterSettings(), memory=bytes_).actors for bytes_ in (3 * 10**9, 5 * 10**9)] == [3, 2]
    settings = ClusterSettings(label_selector=f"{SMALL}=in(T4, H100)")
    size, found = replicas(settings, memory=3 * 10**9), dict[str, str]()
    assert size.actors == 1
    size = replace(size, actors=2)  # there is room for one of them, and none is waited for
    tasks = [Task(f"t{i}", 0.3) for i in range(3)]
    run_tasks(Where, (str(tmp_path),), tasks, size, lambda task, node: found.update({task.name: node}))
    assert found == dict.fromkeys(("t0", "t1", "t2"), ids["H100"])
    with pytest.raises(UserError, match="--label-selector zone=b: no node of the cluster has these labels"):
        replicas(ClusterSettings(label_selector="zone=b"))
    answers = on_nodes(_refuses, replicas(ClusterSettings()), alive_nodes()[:2])
    assert [str(answer) for answer in answers.values()] == ["a model with no tokenizer"] * 2
