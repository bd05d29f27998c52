"""How long a plan's stages take: measured on a sample where that can be had, else from a rate."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from contrans_dist.benchmarks.calls import Ids
from contrans_dist.engine.capture import capture_ids
from contrans_dist.models import DTYPES, LanguageModel
from contrans_dist.models.devices import host_memory
from contrans_dist.pipeline.plan.costs import captured
from contrans_dist.pipeline.plan.models import PlannedJudge, PlannedModel
from contrans_dist.pipeline.plan.stages import Stage

_SAMPLE_TOKENS = 2048
_SAMPLE_BLOCKS = 2
_LEAST_SECONDS = 0.3
"""That a measurement takes."""
_CORES = os.cpu_count() or 1
_READ_RATE = 1e9
"""Bytes a second that a checkpoint is taken to be read at."""
_START = 10.0
"""Seconds that an actor's process is taken to need until it loads a model, where that is not measured."""
_WEIGHT_RATE = 1e12
"""Bytes a second at which a GPU is taken to go through the weights for each new token of a batch."""


def from_rate(stages: Sequence[Stage], flops: float) -> None:
    """Fills in the seconds, at so many operations a second of one actor: two for each parameter of a block,
    token and block. On a GPU a new token of a batch also takes as long as going through the weights does."""
    for stage in stages:
        computing = 0.0
        for model in stage.models:
            work = stage.cost.over_texts(model.n_blocks, model.head)
            later = stage.cost.one_by_one(model.n_blocks, model.head)
            rate = 2 * model.block_parameters / flops
            weights = model.n_blocks * model.block_parameters * DTYPES[model.dtype].itemsize
            least = stage.cost.steps * weights / _WEIGHT_RATE if stage.actors.gpus else 0.0
            computing += rate * work + max(rate * later, least)
        _fill(stage, computing, _START)


def from_samples(stages: Sequence[Stage]) -> None:
    """Fills in the seconds from a minute or so of running samples on this machine, as one actor would.

    A model whose weights are here runs itself; for any other, two blocks of random weights stand for all.
    """
    starting = {count: _starting(count) for count in {min(s.actors.count, _CORES) for s in stages}}
    computing = dict.fromkeys(map(id, stages), 0.0)
    for model in {id(model): model for stage in stages for model in stage.models}.values():
        served = [stage for stage in stages if model in stage.models]
        sample = _Sample(model, whole=model.here and all(map(_fits, served)))
        for stage in served:
            over_texts, one_by_one = sample.rates(stage)
            computing[id(stage)] += over_texts * stage.cost.over_texts(model.n_blocks, model.head)
            computing[id(stage)] += one_by_one * stage.cost.one_by_one(model.n_blocks, model.head)
    for stage in stages:
        _fill(stage, computing[id(stage)], starting[min(stage.actors.count, _CORES)])


def _fill(stage: Stage, computing: float, starting: float) -> None:
    """The stage's seconds, from those that one actor computes. A streamed model is read while it runs."""
    reading = stage.actors.read / _READ_RATE / stage.actors.stages
    computing /= stage.actors.stages
    if stage.actors.placement == "stream":
        computing, reading = max(computing, reading * stage.actors.count), 0.0
    stage.seconds = computing * stage.rounds + (starting + reading if stage.begins else 0.0)


def _starting(count: int) -> float:
    """Seconds until so many actors, which start side by side, have what they need."""
    command = [sys.executable, "-c", "import ray, contrans_dist.evaluation.actors"]
    started = time.perf_counter()
    for process in [subprocess.Popen(command) for _ in range(count)]:
        process.wait()
    return time.perf_counter() - started


def _fits(stage: Stage) -> bool:
    """Whether the stage's whole models can be loaded here."""
    room = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else host_memory()
    return stage.actors.placement == "resident" and stage.actors.weights + stage.actors.activations < room


class _Sample:
    """A model on this machine, whole or its lowest blocks, and how fast it is."""

    def __init__(self, model: PlannedModel | PlannedJudge, whole: bool) -> None:
        self.n_blocks = model.n_blocks if whole else _SAMPLE_BLOCKS
        self.model = model.loaded() if whole else _with_random_weights(model)
        self._known: dict[tuple[str | int, ...], float] = {}

    def rates(self, stage: Stage) -> tuple[float, float]:
        """Seconds for a token and block of a stage's passes over texts, and of those over one new token of
        each text."""
        cost, threads = stage.cost, stage.actors.threads
        batch = round(cost.later / cost.steps) if cost.steps else 0
        one_by_one = self._of_batch(threads, batch, 1) if batch else 0.0
        if not isinstance(self.model, LanguageModel):
            length = len(stage.sample[0])
            rows = min(len(stage.sample), max(1, _SAMPLE_TOKENS // length))
            return self._of_batch(threads, rows, length), one_by_one
        return self._of_texts(self.model, threads, stage.sample), one_by_one

    def _of_texts(self, lm: LanguageModel, threads: int, sample: Sequence[Ids]) -> float:
        """Measured on the first texts, as the engine runs them."""
        ends = np.cumsum([len(text) for text in sample])
        count = max(1, int(np.searchsorted(ends, _SAMPLE_TOKENS)))
        key = "texts", threads, count, int(ends[count - 1]).bit_length()
        if key not in self._known:
            vocabulary, top = int(lm.config.vocab_size), self.n_blocks - 1
            ids = [[token % vocabulary for token in text] for text in sample[:count]]
            most = lm.largest_batch(_SAMPLE_TOKENS)
            cost = captured(lm, ids, [len(text) - 1 for text in ids], True, top, most)
            taken = _seconds(threads, lambda: capture_ids(lm, ids, [top]))
            self._known[key] = taken / cost.over_texts(self.n_blocks, 0.0)
        return self._known[key]

    def _of_batch(self, threads: int, rows: int, length: int) -> float:
        """Measured on one pass over so many texts of one length."""
        key = "batch", threads, rows, length
        if key not in self._known:
            module = self.model.decoder if isinstance(self.model, LanguageModel) else self.model
            ids = torch.ones((rows, length), dtype=torch.int64, device=next(module.parameters()).device)

            def run() -> None:
                with torch.inference_mode():
                    module(input_ids=ids, attention_mask=torch.ones_like(ids))[0].cpu()

            self._known[key] = _seconds(threads, run) / (rows * length * self.n_blocks)
        return self._known[key]


def _with_random_weights(model: PlannedModel | PlannedJudge) -> LanguageModel | nn.Module:
    """Its lowest blocks."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[model.dtype])
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return model.made(_SAMPLE_BLOCKS)
    finally:
        torch.set_default_dtype(before)


def _seconds(threads: int, work: Callable[[], object]) -> float:
    """Of the best of a few calls with so many threads: a pause of the machine is not its speed."""
    taken: list[float] = []
    with _threads(threads):
        while len(taken) < 2 or sum(taken) < _LEAST_SECONDS:
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return min(taken)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads, as an actor does that has so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
