"""A model that lies over several nodes: its rows are those of the whole model, whoever dies."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.distributed import placement as distributed_placement
from contrans_dist.distributed.cluster import connected
from contrans_dist.engine.capture.stage import Stage
from contrans_dist.engine.capture.streamed import plan_capture
from contrans_dist.errors import UserError
from contrans_dist.harvest.driver import harvest
from contrans_dist.models.placement import Placement, choose_placement
from contrans_dist.models.streaming import StreamedModel, open_streamed
from tests.tiny import save_tiny
from tests.truth import block_rows, by_transformers, read_all

N_BLOCKS, D = 6, 32
WORDS = ["the", "boy", "was", "happy", "sad", "dog", "cat", "tree", "ball"]


_SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "gemma2", "qwen3_moe")]


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma3_text", *_SLOW])
def test_stages_give_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    """Of six blocks two in the first stage, four in the second; of each stage, no other weights are read."""
    folder = save_tiny(tmp_path / "model", kind, n_blocks=N_BLOCKS)
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(12)]
    first, second = open_streamed(str(folder)), open_streamed(str(folder))
    stages = Stage(first, 0, 1), Stage(second, 2, 5)
    ids, blocks = [first.lm.tokenizer(line)["input_ids"] for line in lines], [0, 1, 2, 4]
    whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = [whole(torch.tensor([text]), output_hidden_states=True).hidden_states for text in ids]
    plan = plan_capture(first.lm, ids, blocks, batch_tokens=40)
    rows = {k: np.zeros((len(ids), first.lm.d), np.float32) for k in blocks}
    stages[1].run(plan.batches, rows, stages[0].run(plan.batches, rows))
    for k in blocks:
        wanted = np.stack([of_text[k + 1][0, -1].numpy() for of_text in states])
        np.testing.assert_allclose(rows[k], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert (first.blocks_read, second.blocks_read) == ([0, 1], [2, 3, 4, 5])


def test_a_stage_takes_a_batch_in_halves_where_memory_ends(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=2)
    model = open_streamed(str(folder))
    stage, ids = Stage(model, 0, 1), [[3, 4, 5, 6 + i] for i in range(7)]
    plan = plan_capture(model.lm, ids, [0, 1], batch_tokens=4096)
    whole, halves = ({k: np.zeros((7, model.lm.d), np.float32) for k in (0, 1)} for _ in range(2))
    leaving = stage.run(plan.batches, whole)

    def full(_module: object, _args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if len(named.get("inputs_embeds", ())) > 2:
            raise RuntimeError("CUDA error: out of memory")

    model.lm.decoder.register_forward_pre_hook(full, with_kwargs=True)
    again = stage.run(plan.batches, halves)
    torch.testing.assert_close(again, leaving)
    for k in (0, 1):
        np.testing.assert_allclose(halves[k], whole[k], atol=1e-5)


def test_a_stage_waits_for_its_device_once_not_for_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does whenever `running` ends."""
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=2)
    model = open_streamed(str(folder))
    stage, running, entered = Stage(model, 0, 1), StreamedModel.running, list[int]()

    def counted(*arguments: Any) -> Any:
        entered.append(1)
        return running(*arguments)

    monkeypatch.setattr(StreamedModel, "running", counted)
    plan = plan_capture(model.lm, [[3, 4, 5 + i] for i in range(6)], [0, 1], batch_tokens=6)
    stage.run(plan.batches, {k: np.zeros((6, model.lm.d), np.float32) for k in (0, 1)})
    assert (len(plan.batches), len(entered)) == (3, 1)


MEMORIES = range(250_000, 480_000, 10_000)
"""Bytes of a node, of which the least hold one block of a model of these tests, and the most all six."""


def _placed(folder: Path, free: int) -> Placement:
    """On nodes with so many bytes."""
    settings, memories = ModelSettings(id=str(folder)), {"cpu": free}
    return choose_placement(
        settings, highest_block=5, head=False, placement="pipeline", memories=memories, batch_tokens=48
    )


def _least(folder: Path, stages: int) -> int:
    """Bytes of a node with which the model lies on so many."""
    return next(free for free in MEMORIES if len(_placed(folder, free).stages) == stages)


def test_stages_are_as_few_as_hold_the_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=N_BLOCKS, d=D)
    counts = [len(_placed(folder, free).stages) for free in MEMORIES]
    assert sorted(counts, reverse=True) == counts
    assert {counts[0], counts[-1]} == {6, 1}
    two = _placed(folder, _least(folder, 2))
    assert two.stages == ((0, 2), (3, 5))
    assert 0 < two.memory <= 0.95 * two.free
    with pytest.raises(UserError, match="--placement pipeline: one block"):
        _placed(folder, 200_000)
    with pytest.raises(UserError, match="--placement pipeline: it reads plain weights; leave out --quant"):
        choose_placement(ModelSettings(id=str(folder), quantization="int8"), placement="pipeline")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if ray.is_initialized():
        ray.shutdown()
    noticed = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": noticed}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with connected(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_line_over_three_nodes_survives_the_loss_of_its_actors(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stages on three nodes; one after the other, a follower and the first of the line are killed."""
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=N_BLOCKS, d=D)
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(400)]
    texts, capture = text_table({"text": lines}), CaptureSettings(shard_size=2, batch_tokens=48)
    chosen = distributed_placement._chosen
    small = partial(chosen, memories={"cpu": _least(folder, 2)})
    monkeypatch.setattr(distributed_placement, "_chosen", small)
    out, killed = tmp_path / "set", list[str]()

    def kill(name: str, after: int) -> None:
        while len(list(out.glob("shard-*"))) < after:
            time.sleep(0.01)
        found = [p for p in psutil.process_iter(["name"]) if (p.info["name"] or "").startswith(name)]
        mine = [p for p in found if psutil.Process() in p.parents() or p.ppid() in _raylets(cluster)]
        mine[0].kill()
        killed.append(name)

    threads = [
        threading.Thread(target=kill, args=(f"ray::{name}", after))
        for name, after in (("StageActor", 5), ("LineActor", 60))
    ]
    for thread in threads:
        thread.start()
    made = harvest(
        ModelSettings(id=str(folder)), texts, str(out), capture, ClusterSettings(placement="pipeline")
    )
    for thread in threads:
        thread.join()
    assert sorted(killed) == ["ray::LineActor", "ray::StageActor"]
    wanted, _ = by_transformers(folder, lines)
    np.testing.assert_allclose(block_rows(read_all(out)), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert (made.manifest.throughput.placement, made.manifest.throughput.lost_actors) == ("pipeline", 2)
    smaller = partial(chosen, memories={"cpu": _least(folder, 6)})
    monkeypatch.setattr(distributed_placement, "_chosen", smaller)
    settings, pipeline = ModelSettings(id=str(folder)), ClusterSettings(placement="pipeline")
    with pytest.raises(UserError, match=r"lies on 6 nodes or GPUs, and there is room on 3; --placement str"):
        harvest(settings, texts, str(tmp_path / "no"), capture, pipeline)


def _raylets(cluster: Cluster) -> set[int]:
    """Process ids of the nodes, which start the actors."""
    nodes = cluster.list_all_nodes()
    return {info.process.pid for node in nodes for info in node.all_processes.get("raylet", [])}
