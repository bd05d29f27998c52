"""The harvesting loop never waits for a device: batches overlap on a model that is cut over several.

Proved on pretend devices (`pretend.py`): the engine, the model and accelerate's hooks are the real ones.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import accelerate
import numpy as np
import pytest
import torch
from pretend import Devices, pretend_devices
from tiny import tiny_model, tiny_tokenizer
from torch import nn

from contrans_dist.capturing import Activations, capture_ids, plan_batches
from contrans_dist.models import LanguageModel, wrap_model

N_DEVICES = 4
PATIENCE = 20.0  # seconds that the last device holds a batch back for the first device to begin the next one
N_BATCHES, PER_BATCH, TOKENS = 8, 4, 6
BLOCKS = [1, 3]
RNG = np.random.default_rng(5)
# No two begin alike: nothing is shared.
IDS = [[3 + i, *RNG.integers(3, 290, size=TOKENS - 1).tolist()] for i in range(N_BATCHES * PER_BATCH)]


def language_model(architecture: str) -> LanguageModel:
    return wrap_model(tiny_model(architecture, n_blocks=N_DEVICES), tiny_tokenizer())


def harvest(lm: LanguageModel, position: str = "last") -> Activations:
    return capture_ids(lm, IDS, BLOCKS, position, batch_tokens=PER_BATCH * TOKENS)


@contextmanager
def cut(lm: LanguageModel) -> Iterator["Pipeline"]:
    """The model with block k on pretend device k, everything below on the first, as accelerate cuts it."""
    names = {id(module): name for name, module in lm.model.named_modules()}
    places = {names[id(block)]: k for k, block in enumerate(lm.blocks)}
    inside = tuple(f"{name}." for name in places)
    for name, module in lm.model.named_modules():
        if name and not list(module.children()) and not name.startswith(inside):
            places[name] = 0
    with pretend_devices(N_DEVICES) as devices:
        accelerate.dispatch_model(
            lm.model,
            {name: devices.devices[k] for name, k in places.items()},
            main_device=devices.devices[0],
            force_hooks=True,
        )
        pipeline = Pipeline(devices)
        for k, block in enumerate(lm.blocks):
            block.register_forward_pre_hook(pipeline.on_begin(k))
            block.register_forward_hook(pipeline.on_end(k))
        devices.waits.clear()
        yield pipeline


class Pipeline:
    """What happens on the first and on the last device, which works slowly: a batch ends there only once the
    next one has begun on the first device, or after PATIENCE, which is shown once."""

    def __init__(self, devices: Devices) -> None:
        self.devices, self.batch = devices, -1
        self.begun = [threading.Event() for _ in range(N_BATCHES)]
        self.overlaps: list[bool] = []
        """For each batch but the last: had the first device begun the next one when this one ended?"""

    def on_begin(self, k: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if k == 0:
                self.batch += 1
                self.devices.submit(self.devices.devices[0], self.begun[self.batch].set)

        return hook

    def on_end(self, k: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if k == N_DEVICES - 1 and self.batch + 1 < N_BATCHES:
                self.devices.submit(self.devices.devices[k], partial(self._work, self.begun[self.batch + 1]))

        return hook

    def _work(self, next_one: threading.Event) -> None:
        self.overlaps.append(next_one.wait(PATIENCE if all(self.overlaps) else 0.0))


def test_the_batches_are_those_that_are_meant() -> None:
    assert [len(batch) for batch in plan_batches([len(text) for text in IDS], PER_BATCH * TOKENS)] == (
        [PER_BATCH] * N_BATCHES
    )


@pytest.mark.parametrize("position", ["last", "mean"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bloom"])
def test_the_first_device_goes_on_while_the_last_one_works(architecture: str, position: str) -> None:
    lm = language_model(architecture)
    plain = harvest(lm, position)
    with cut(lm) as pipeline:
        rows = harvest(lm, position)
    assert pipeline.overlaps == [True] * (N_BATCHES - 1)
    landed = [why for why in pipeline.devices.waits if why == "cpu numpy"]
    assert len(landed) == N_BATCHES
    assert set(pipeline.devices.waits) == {"cpu numpy"}
    for block in BLOCKS:
        np.testing.assert_allclose(rows[block], plain[block], rtol=0, atol=1e-5 * np.abs(plain[block]).max())


@pytest.mark.parametrize(
    "ask",
    [
        lambda state: state[0, 0, 0].item(),
        lambda state: state[0, 0].tolist(),
        lambda state: state[:, -1].cpu(),
        lambda state: bool((state > 0).all()),
    ],
    ids=["item", "tolist", "cpu", "bool"],
)
def test_a_hook_that_asks_for_values_holds_the_first_device_back(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[torch.Tensor], object]
) -> None:
    """So the test above can fail."""
    monkeypatch.setattr("test_overlap.PATIENCE", 0.5)
    lm = language_model("llama")
    harvest(lm)  # what the model can do is tried with its first texts

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        ask(output if isinstance(output, torch.Tensor) else output[0])  # type: ignore[index]

    with cut(lm) as pipeline:
        lm.blocks[-1].register_forward_hook(hook)
        harvest(lm)
    assert pipeline.overlaps == [False] * (N_BATCHES - 1)
