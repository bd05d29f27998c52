"""The harvesting loop never waits for a device: batches overlap on a model that is cut over several.

Proved on pretend devices (`pretend.py`): the engine, the model and accelerate's hooks are the real ones.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from torch import nn

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.engine.capture import Activations, capture_ids, plan_batches, queue_ids
from contrans_dist.engine.scoring import BASE, Intervention, continuation_logprobs, next_token
from contrans_dist.harvest.compute import compute_shard, timed
from contrans_dist.harvest.manifest import identity_of
from contrans_dist.harvest.shards import HarvestSpec, Shard, ShardReport, plan_shards
from contrans_dist.models import LanguageModel, crossing, load_model, model_facts
from contrans_dist.models.device_map import spread_blocks
from contrans_dist.models.loading import describe
from contrans_dist.models.needs import needs
from contrans_dist.store.location import Location
from tests.pretend import Devices, pretend_devices
from tests.tiny import save_tiny

N_DEVICES = 4
AHEAD = N_DEVICES - 1  # so many batches later the first device is, where all are busy
PATIENCE = 20.0  # seconds that the last device holds a batch back for the first device to be so far
N_BATCHES, PER_BATCH, TOKENS = 8, 4, 6
N_BLOCKS, BLOCKS = 8, [1, 4, 7]
RNG = np.random.default_rng(5)
# No two begin alike: nothing is shared.
IDS = [[3 + i, *RNG.integers(3, 290, size=TOKENS - 1).tolist()] for i in range(N_BATCHES * PER_BATCH)]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    architecture = given.get("architecture", "llama")
    return save_tiny(tmp_path / "model", architecture, n_blocks=N_BLOCKS)


def harvest(lm: LanguageModel, position: str = "last") -> Activations:
    return capture_ids(lm, IDS, BLOCKS, position, batch_tokens=PER_BATCH * TOKENS)


@contextmanager
def cut(lm: LanguageModel, folder: Path, aside: bool = True) -> Iterator["Pipeline"]:
    """The model over pretend devices as `contrans` has accelerate spread it. `aside`: as on GPUs, copies
    between devices have queues of their own."""
    described, model = describe(str(folder)), ModelSettings(id=str(folder))
    need = needs(described, model, 1)
    room = round((need.activations + 1.1 * need.weights / N_DEVICES + need.largest_block) / 0.95)
    places = spread_blocks(described, model, need, dict.fromkeys(range(N_DEVICES), room))
    assert places is not None
    with pretend_devices(N_DEVICES) as devices, pytest.MonkeyPatch.context() as patch:
        if aside:
            patch.setattr(crossing, "copied", lambda tensor, device: devices.aside(tensor, device))
        accelerate.dispatch_model(
            lm.model,
            {name: devices.devices[int(k)] for name, k in places.items()},
            main_device=devices.devices[0],
            force_hooks=True,
        )
        pipeline = Pipeline(devices)
        assert {next(block.parameters()).device for block in lm.blocks} == set(devices.devices)
        for k, block in enumerate(lm.blocks):
            block.register_forward_pre_hook(pipeline.on_begin(k))
            block.register_forward_hook(pipeline.on_end(k))
        devices.waits.clear()
        yield pipeline


class Pipeline:
    """What happens on the first and on the last device, which works slowly: a batch ends there only once the
    one AHEAD of it has begun on the first device, or after PATIENCE, which is shown once."""

    def __init__(self, devices: Devices) -> None:
        self.devices, self.batch = devices, -1
        self.begun = [threading.Event() for _ in range(N_BATCHES)]
        self.overlaps: list[bool] = []
        """For each batch but the last: had the first device begun the one AHEAD when this one ended?"""

    def on_begin(self, k: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if k == 0:
                self.batch += 1
                self.devices.submit(self.devices.devices[0], self.begun[self.batch].set)

        return hook

    def on_end(self, k: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if k == N_BLOCKS - 1 and self.batch + AHEAD < N_BATCHES:
                self.devices.submit(
                    self.devices.devices[-1], partial(self._work, self.begun[self.batch + AHEAD])
                )

        return hook

    def _work(self, later: threading.Event) -> None:
        self.overlaps.append(later.wait(PATIENCE if all(self.overlaps) else 0.0))


def test_the_batches_are_those_that_are_meant() -> None:
    assert [len(batch) for batch in plan_batches([len(text) for text in IDS], PER_BATCH * TOKENS)] == (
        [PER_BATCH] * N_BATCHES
    )


@pytest.mark.parametrize(
    ("architecture", "position"),
    [("llama", "last"), ("llama", "mean"), ("gpt2", "last"), ("gemma2", "mean"), ("bloom", "last")],
)
def test_the_first_device_goes_on_while_the_last_one_works(
    folder: Path, architecture: str, position: str
) -> None:
    lm = load_model(str(folder), device="cpu")
    plain = harvest(lm, position)
    with cut(lm, folder) as pipeline:
        rows = harvest(lm, position)
    assert pipeline.overlaps == [True] * (N_BATCHES - AHEAD)
    landed = [why for why in pipeline.devices.waits if why == "cpu numpy"]
    assert len(landed) == N_BATCHES * len(BLOCKS)  # the wanted blocks are on as many devices
    assert set(pipeline.devices.waits) == {"cpu numpy"}
    for block in BLOCKS:
        np.testing.assert_allclose(rows[block], plain[block], rtol=0, atol=1e-5 * np.abs(plain[block]).max())


def test_it_goes_on_from_one_call_to_the_next(folder: Path) -> None:
    """Where each is as little as one batch: a shard of a large model, say."""
    lm = load_model(str(folder), device="cpu")
    plain = harvest(lm)
    with cut(lm, folder) as pipeline:
        calls = [IDS[i : i + PER_BATCH] for i in range(0, len(IDS), PER_BATCH)]
        queued = [queue_ids(lm, ids, BLOCKS) for ids in calls]
        assert pipeline.devices.waits == []
        rows = [each.land() for each in queued]
    assert pipeline.overlaps == [True] * (N_BATCHES - AHEAD)
    for block in BLOCKS:
        found = np.concatenate([of_call[block] for of_call in rows])
        np.testing.assert_allclose(found, plain[block], rtol=0, atol=1e-5 * np.abs(plain[block]).max())


def test_so_it_does_from_one_shard_to_the_next(folder: Path, tmp_path: Path) -> None:
    """Each in a thread of its own: they take turns at the model, not at waiting for rows."""
    lm = load_model(str(folder), device="cpu")
    table = text_table({"text": ["the boy was happy", "a dog", "She felt sad and afraid", "One day a bird"]})
    capture, facts = CaptureSettings(shard_size=1, blocks="1,4,7"), model_facts(str(folder))
    identity = identity_of(ModelSettings(id=str(folder)), facts, capture, BLOCKS, 1, table, "prompts")
    shards = plan_shards(HarvestSpec(identity, capture, facts.d, Location.parse(tmp_path / "set")))
    assert 2 * len(shards) == N_BATCHES  # a text, and the same again alone
    with cut(lm, folder) as pipeline, ThreadPoolExecutor(len(shards)) as slots:
        # Tensors get to pretended devices in threads that know of these.
        model = ThreadPoolExecutor(1, initializer=pipeline.devices.__enter__)

        def make(shard: Shard) -> ShardReport:
            rows = table.slice(shard.start, 1)
            return compute_shard(lm, shard, rows, lambda work: model.submit(timed, work).result())

        reports = list(slots.map(make, shards))
    assert pipeline.overlaps == [True] * (N_BATCHES - AHEAD)
    assert all(report.facts.canary < 1e-5 for report in reports)
    assert all(len(report.timing.captured) == 2 for report in reports if report.timing)


def test_scoring_waits_for_its_results_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PATIENCE", 0.0)
    lm = load_model(str(folder), device="cpu")
    vector = RNG.standard_normal(lm.d).astype(np.float32)
    swept = [BASE, Intervention("steered", {4: vector}, 1.0), Intervention("more", {4: vector}, 2.0)]
    answers = [[5, 6 + i] for i in range(len(IDS))]

    @torch.no_grad()
    def scored() -> tuple[np.ndarray, np.ndarray]:
        # Without inference mode, which takes pretended tensors for real ones.
        next_, continued = (inspect.unwrap(call) for call in (next_token, continuation_logprobs))
        tokens = next_(lm, IDS, swept, watch=[5, 250], batch_tokens=4 * PER_BATCH * TOKENS)
        return tokens.logprobs, continued(lm, IDS, answers, swept, batch_tokens=100).sums

    plain = scored()
    with cut(lm, folder) as pipeline:
        pipeline.begun = [threading.Event() for _ in range(100)]
        found = scored()
    assert set(pipeline.devices.waits) == {"cpu numpy"}
    for values, expected in zip(found, plain, strict=True):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda state: state[0, 0].tolist(),
        lambda state: state[:, -1].cpu(),
        lambda state: bool((state > 0).all()),
    ],
    ids=["tolist", "cpu", "bool"],
)
def test_a_hook_that_asks_for_values_holds_the_first_device_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[torch.Tensor], object]
) -> None:
    """So the test above can fail."""
    monkeypatch.setattr(f"{__name__}.PATIENCE", 0.5)
    lm = load_model(str(folder), device="cpu")
    harvest(lm)  # what the model can do is tried with its first texts

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        ask(output if isinstance(output, torch.Tensor) else output[0])  # type: ignore[index]

    with cut(lm, folder) as pipeline:
        lm.blocks[-1].register_forward_hook(hook)
        harvest(lm)
    assert pipeline.overlaps == [False] * (N_BATCHES - AHEAD)


def test_plain_copies_between_devices_hold_the_first_one_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every block is told comes from the first device, which then waits for the last."""
    monkeypatch.setattr(f"{__name__}.PATIENCE", 0.5)
    lm = load_model(str(folder), device="cpu")
    harvest(lm)
    with cut(lm, folder, aside=False) as pipeline:
        harvest(lm)
    assert pipeline.overlaps == [False] * (N_BATCHES - AHEAD)
