"""How long a plan's stages take: measured on a sample where that can be had, else from a rate."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.scoring import BASE, Intervention, continuation_logprobs, generate
from contrans_dist.models import LanguageModel, load_model, wrap_model
from contrans_dist.models.classifier import BATCH_SIZE, load_classifier
from contrans_dist.models.devices import host_memory
from contrans_dist.models.loading import DTYPES
from contrans_dist.pipeline.plan.costs import Captured, Classified, Cost, Generated, Ids, Scored
from contrans_dist.pipeline.plan.models import PlannedJudge, PlannedModel
from contrans_dist.pipeline.plan.stages import Stage

_SAMPLE_TOKENS = 2048
_SAMPLE_BLOCKS = 2
_SAMPLE_INTERVENTIONS = 4
_SAMPLE_NEW = 9
"""Tokens that a sample's texts get."""
_CORES = os.cpu_count() or 1
_READ_RATE = 1e9
"""Bytes a second that a checkpoint is taken to be read at."""
_START = 10.0
"""Seconds that an actor's process is taken to need until it loads a model, where that is not measured."""
_WEIGHT_RATE = 1e12
"""Bytes a second at which a GPU is taken to go through the weights for each new token of a batch."""

Rates = tuple[float, ...]
"""Seconds for a unit of each of a call's works."""


def from_rate(stages: Sequence[Stage], flops: float) -> None:
    """Fills in the seconds, at so many operations a second of one actor: two for each parameter of a block,
    token and block. On a GPU a new token of a batch also takes as long as going through the weights does."""
    for stage in stages:
        computing = 0.0
        for model in stage.models:
            for cost in stage.costs:
                seconds = [
                    2 * model.block_parameters / flops * work
                    for work in cost.works(model.n_blocks, model.head_share)
                ]
                if isinstance(cost, Generated) and stage.actors.gpus:
                    seconds[1] = max(seconds[1], cost.steps * model.weights / _WEIGHT_RATE)
                computing += sum(seconds)
        _fill(stage, computing, _START)


def from_samples(stages: Sequence[Stage]) -> None:
    """Fills in the seconds from a minute or so of running samples on this machine, as one actor would.

    A model whose weights are here runs itself; for any other, two blocks of random weights stand for all.
    """
    starting = {count: _starting(count) for count in {min(s.actors.count, _CORES) for s in stages}}
    computing = dict.fromkeys(map(id, stages), 0.0)
    for model in {id(model): model for stage in stages for model in stage.models}.values():
        served = [stage for stage in stages if model in stage.models]
        sample = _Judging(model) if isinstance(model, PlannedJudge) else _Reading(model, served)
        known: dict[Any, Rates] = {}
        for stage in served:
            for kind in {type(cost) for cost in stage.costs}:
                costs = [cost for cost in stage.costs if type(cost) is kind]
                largest = max(costs, key=lambda cost: cost.tokens)
                key = stage.actors.threads, _alike(largest)
                if key not in known:
                    with _threads(stage.actors.threads):
                        known[key] = sample.rates(largest)
                for cost in costs:
                    works = cost.works(model.n_blocks, model.head_share)
                    computing[id(stage)] += sum(r * work for r, work in zip(known[key], works, strict=True))
    for stage in stages:
        _fill(stage, computing[id(stage)], starting[min(stage.actors.count, _CORES)])


def _fill(stage: Stage, computing: float, starting: float) -> None:
    """The stage's seconds, from those that one actor computes. A streamed model is read while it runs."""
    reading = stage.actors.weights / _READ_RATE
    if stage.actors.placement == "stream":
        computing, reading = max(computing, reading * stage.actors.count), 0.0
    stage.seconds = computing * stage.rounds + (starting + reading if stage.begins else 0.0)


def _alike(cost: Cost) -> tuple[Any, ...]:
    """Calls for which this is the same take about the same for a unit of work."""
    if isinstance(cost, Classified):
        return Classified, cost.length
    length = sum(map(len, cost.ids)) // len(cost.ids)
    return type(cost), length.bit_length(), getattr(cost, "apart", False), getattr(cost, "rows", 0)


def _starting(count: int) -> float:
    """Seconds until so many actors, which start side by side, have what they need."""
    command = [sys.executable, "-c", "import ray, contrans_dist.evaluation.actors"]
    started = time.perf_counter()
    for process in [subprocess.Popen(command) for _ in range(count)]:
        process.wait()
    return time.perf_counter() - started


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads, as an actor does that has so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the better of two calls: a pause of the machine is not its speed."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


class _Reading:
    """A language model on this machine, whole or its lowest blocks, that runs samples of calls."""

    def __init__(self, model: PlannedModel, stages: Sequence[Stage]) -> None:
        self.model, self.whole = model, model.here and all(map(_fits, stages))
        if self.whole:
            self.lm = load_model(model.name, **model.settings.model_dump(exclude={"id"}))
        else:
            head = any(not isinstance(cost, Captured) for stage in stages for cost in stage.costs)
            self.lm = _lowest_blocks(model, head)

    def rates(self, cost: Any) -> Rates:
        """Measured on some of its texts."""
        if isinstance(cost, Captured):
            sample, seconds = self._captured(cost)
        else:
            sample, seconds = self._scored(cost) if isinstance(cost, Scored) else self._generated(cost)
        works = sample.works(len(self.lm.blocks), self.model.head_share)
        return tuple(taken / work for taken, work in zip(seconds, works, strict=True))

    def _some(self, ids: Sequence[Ids]) -> list[Ids]:
        """The first texts, with no token that a model of a smaller vocabulary lacks."""
        ends = np.cumsum([len(text) for text in ids])
        count = max(1, int(np.searchsorted(ends, _SAMPLE_TOKENS)))
        vocabulary = int(self.lm.config.vocab_size)
        return [[token % vocabulary for token in text] for text in ids[:count]]

    def _captured(self, cost: Captured) -> tuple[Cost, Rates]:
        ids, most, top = self._some(cost.ids), self.lm.largest_batch(_SAMPLE_TOKENS), len(self.lm.blocks) - 1
        sample = Captured.of(self.lm, ids, [len(text) - 1 for text in ids], True, top, most)
        return sample, (_timed(partial(capture_ids, self.lm, ids, [top])),)

    def _scored(self, cost: Scored) -> tuple[Cost, Rates]:
        lm, ids = self.lm, self._some(cost.ids)
        positions, steered = cost.positions[: len(ids)], [BASE]
        blocks = [block for block in cost.blocks if block is not None][:_SAMPLE_INTERVENTIONS]
        if self.whole and blocks:
            shape = (len(ids), lm.d) if cost.apart else (lm.d,)
            vector = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            steered = [Intervention("sample", {block: vector}, 1.0) for block in blocks]
        run = [each.block for each in steered]
        sample = Scored.of(lm, ids, positions, run, cost.apart, lm.largest_batch(_SAMPLE_TOKENS))
        # What is run is all but the last token of a continuation.
        cuts = [len(text) + 1 - n for text, n in zip(ids, positions, strict=True)]
        prompts = [text[:cut] for text, cut in zip(ids, cuts, strict=True)]
        ends = [[*text[cut:], text[-1]] for text, cut in zip(ids, cuts, strict=True)]
        return sample, (_timed(partial(continuation_logprobs, lm, prompts, ends, steered)),)

    def _generated(self, cost: Generated) -> tuple[Cost, Rates]:
        """A few tokens more against one token alone: passes over prompts, and passes after them."""
        width = max(map(len, cost.ids)) + _SAMPLE_NEW
        rows = max(1, min(cost.rows, _SAMPLE_TOKENS // width))
        longest = sorted(self._some(cost.ids), key=len, reverse=True)
        prompts = [text for text in longest for _ in range(cost.times)][:rows]
        some = partial(generate, self.lm, prompts, batch_size=rows)
        one = _timed(partial(some, max_new_tokens=1))
        more = _timed(partial(some, max_new_tokens=_SAMPLE_NEW))
        return Generated(prompts, 1, _SAMPLE_NEW, rows), (one, max(0.0, more - one))


class _Judging:
    """A classifier on this machine, whole or its lowest blocks."""

    def __init__(self, judge: PlannedJudge) -> None:
        self.n_blocks = judge.n_blocks if judge.here else _SAMPLE_BLOCKS
        if judge.here:
            self.model = load_classifier(judge.name).model
        else:
            config = deepcopy(judge.config)
            config.num_hidden_layers = _SAMPLE_BLOCKS
            self.model = AutoModelForSequenceClassification.from_config(config).eval().to(_device())

    def rates(self, cost: Any) -> Rates:
        """Measured on one batch."""
        sample = Classified(min(BATCH_SIZE, cost.texts), cost.length)
        ids = torch.full((sample.texts, sample.length), 5, device=self.model.device)
        seen = torch.ones_like(ids)
        with torch.inference_mode():
            taken = _timed(lambda: self.model(input_ids=ids, attention_mask=seen).logits.cpu())
        return (taken / sample.works(self.n_blocks, 0.0)[0],)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _fits(stage: Stage) -> bool:
    """Whether the stage's whole models can be loaded here."""
    room = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else host_memory()
    return stage.actors.placement == "resident" and stage.actors.weights + stage.actors.activations < room


def _lowest_blocks(model: PlannedModel, head: bool) -> LanguageModel:
    """Those of a model, with random weights."""
    described = model.up_to(None, head)
    config = deepcopy(described.config)
    config.get_text_config().num_hidden_layers = _SAMPLE_BLOCKS
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[model.dtype])
    try:
        with torch.device(_device()):
            made = described.whole(config)
    finally:
        torch.set_default_dtype(before)
    return wrap_model(made.requires_grad_(False), model.lm.tokenizer)
