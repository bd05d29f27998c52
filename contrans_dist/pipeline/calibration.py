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
from contrans_dist.pipeline.plan import Stage
from contrans_dist.pipeline.plan.calls import Call, Captured, Classified, Generated, Scored
from contrans_dist.pipeline.plan.sides import Judge, Side

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
        for side in stage.sides:
            cost = 2 * side.block_parameters / flops
            for call in stage.calls:
                works = call.works(side.n_blocks, side.head_share)
                computing += cost * sum(works)
                if isinstance(call, Generated) and stage.actors.gpus:
                    computing += max(0.0, call.steps * side.weights / _WEIGHT_RATE - cost * works[1])
        _fill(stage, computing, _START)


def calibrate(stages: Sequence[Stage]) -> None:
    """Fills in the seconds from a minute or so of running samples on this machine, as one actor would.

    A model whose weights are here runs itself; for any other, two blocks of random weights stand for all.
    """
    starting = {count: _starting(count) for count in {min(s.actors.count, _CORES) for s in stages}}
    computing = dict.fromkeys(map(id, stages), 0.0)
    for side in {id(side): side for stage in stages for side in stage.sides}.values():
        own = [stage for stage in stages if side in stage.sides]
        sample = _Reading(side, own) if isinstance(side, Side) else _Judging(side)
        known: dict[Any, Rates] = {}
        for stage in own:
            for kind in {type(call) for call in stage.calls}:
                calls = [call for call in stage.calls if type(call) is kind]
                largest = max(calls, key=lambda call: call.tokens)
                key = stage.actors.threads, _like(largest)
                if key not in known:
                    with _threads(stage.actors.threads):
                        known[key] = sample.rates(largest)
                for call in calls:
                    works = call.works(side.n_blocks, side.head_share)
                    computing[id(stage)] += sum(r * work for r, work in zip(known[key], works, strict=True))
    for stage in stages:
        _fill(stage, computing[id(stage)], starting[min(stage.actors.count, _CORES)])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads, as an actor does that has so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _like(call: Call) -> tuple[Any, ...]:
    """Calls for which this is the same take about the same for a unit of work."""
    if isinstance(call, Classified):
        return Classified, call.length
    length = sum(map(len, call.ids)) // len(call.ids)
    return type(call), length.bit_length(), getattr(call, "own", False), getattr(call, "rows", 0)


def _fill(stage: Stage, computing: float, starting: float) -> None:
    """The stage's seconds, from those that one actor computes. A streamed model is read while it runs."""
    reading = stage.actors.weights / _READ_RATE
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

    def __init__(self, side: Side, stages: Sequence[Stage]) -> None:
        self.side, self.whole = side, side.here and all(_fits(stage) for stage in stages)
        head = any(not isinstance(call, Captured) for stage in stages for call in stage.calls)
        if self.whole:
            self.lm = load_model(side.name, **side.model.model_dump(exclude={"id"}))
        else:
            self.lm = _part(side, head)

    def rates(self, call: Any) -> Rates:
        """Measured on some of its texts."""
        if isinstance(call, Captured):
            return self._captured(call)
        return self._scored(call) if isinstance(call, Scored) else self._generated(call)

    def _rates(self, sample: Call, taken: Rates) -> Rates:
        works = sample.works(len(self.lm.blocks), self.side.head_share)
        return tuple(seconds / work for seconds, work in zip(taken, works, strict=True))

    def _some(self, ids: Sequence[list[int]]) -> list[list[int]]:
        """The first texts, with no token that a model of a smaller vocabulary lacks."""
        ends = np.cumsum([len(text) for text in ids])
        count = max(1, int(np.searchsorted(ends, _SAMPLE_TOKENS)))
        vocabulary = int(self.lm.config.vocab_size)
        return [[token % vocabulary for token in text] for text in ids[:count]]

    def _captured(self, call: Captured) -> Rates:
        ids, most = self._some(call.ids), self.lm.largest_batch(_SAMPLE_TOKENS)
        top = len(self.lm.blocks) - 1
        sample = Captured.of(self.lm, ids, [len(text) - 1 for text in ids], False, top, most)
        return self._rates(sample, (_timed(partial(capture_ids, self.lm, ids, [top])),))

    def _scored(self, call: Scored) -> Rates:
        lm, ids = self.lm, self._some(call.ids)
        wanted = call.wanted[: len(ids)]
        steered = [BASE]
        if self.whole and any(block is not None for block in call.blocks):
            rng = np.random.default_rng(0)
            blocks = [block for block in call.blocks if block is not None][:_SAMPLE_INTERVENTIONS]
            shape = (len(ids), lm.d) if call.own else (lm.d,)
            made = [{block: rng.normal(size=shape).astype(np.float32)} for block in blocks]
            steered = [Intervention("sample", vectors, 1.0) for vectors in made]
        blocks_run = [each.block for each in steered]
        sample = Scored.of(lm, ids, wanted, blocks_run, call.own, lm.largest_batch(_SAMPLE_TOKENS))
        # What is run is all but the last token of a continuation.
        prompts = [text[: len(text) + 1 - n] for text, n in zip(ids, wanted, strict=True)]
        ends = [[*text[len(text) + 1 - n :], text[-1]] for text, n in zip(ids, wanted, strict=True)]
        return self._rates(sample, (_timed(partial(continuation_logprobs, lm, prompts, ends, steered)),))

    def _generated(self, call: Generated) -> Rates:
        """A few tokens more against one token alone: passes over prompts, and passes after them."""
        width = max(map(len, call.ids)) + _SAMPLE_NEW
        rows = max(1, min(call.rows, _SAMPLE_TOKENS // width))
        longest = sorted(self._some(call.ids), key=len, reverse=True)
        prompts = [text for text in longest for _ in range(call.times)][:rows]
        some = partial(generate, self.lm, prompts, batch_size=rows)
        one = _timed(partial(some, max_new_tokens=1))
        more = _timed(partial(some, max_new_tokens=_SAMPLE_NEW))
        sample = Generated.of(prompts, 1, _SAMPLE_NEW, rows)
        return self._rates(sample, (one, max(0.0, more - one)))


class _Judging:
    """A classifier on this machine, whole or its lowest blocks."""

    def __init__(self, judge: Judge) -> None:
        self.n_blocks = judge.n_blocks if judge.here else _SAMPLE_BLOCKS
        if judge.here:
            self.model = load_classifier(judge.name).model
        else:
            config = deepcopy(judge.config)
            config.num_hidden_layers = _SAMPLE_BLOCKS
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.model = AutoModelForSequenceClassification.from_config(config).eval().to(device)

    def rates(self, call: Any) -> Rates:
        """Measured on one batch."""
        sample = Classified(min(BATCH_SIZE, call.texts), call.length)
        ids = torch.full((sample.texts, sample.length), 5, device=self.model.device)
        seen = torch.ones_like(ids)
        with torch.inference_mode():
            taken = _timed(lambda: self.model(input_ids=ids, attention_mask=seen).logits.cpu())
        return (taken / sample.works(self.n_blocks, 0.0)[0],)


def _fits(stage: Stage) -> bool:
    """Whether the stage's whole models can be loaded here."""
    room = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else host_memory()
    return stage.actors.placement == "resident" and stage.actors.weights + stage.actors.activations < room


def _part(side: Side, head: bool) -> LanguageModel:
    """The lowest blocks with random weights."""
    described = side.at(None, head)
    config = deepcopy(described.config)
    config.get_text_config().num_hidden_layers = _SAMPLE_BLOCKS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[side.dtype])
    try:
        with torch.device(device):
            model = described.whole(config)
    finally:
        torch.set_default_dtype(before)
    return wrap_model(model.requires_grad_(False), side.lm.tokenizer)
