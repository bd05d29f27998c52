"""One shard by a model that is whole in memory. Knows nothing of Ray."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from contrans_dist.console import one_by_one
from contrans_dist.engine.capture import Activations, deviation, queue_ids
from contrans_dist.harvest.runnable import Runnable, SpoiltError, canary_rows
from contrans_dist.harvest.shard_files import ROW_GROUP, publish_shard
from contrans_dist.harvest.shards import Shard, ShardReport, Timing
from contrans_dist.models import LanguageModel

_PIECE_BYTES = 32 << 20
_FEWEST_PIECE_ROWS = 512
_PROCESS = uuid.uuid4().hex
"""Tells the processes of a cluster apart."""

_T = TypeVar("_T")


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What `work` returns, and when it began."""
    began = time.monotonic()
    return work(), began


class InTurn:
    """`timed`, but all in one thread: so one shard's rows come to the host and are written while the model
    computes another.

    Not in the shards' own threads under a lock: each thread that runs matrix products gets a set of worker
    threads to itself.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")

    def __call__(self, work: Callable[[], _T]) -> tuple[_T, float]:
        return self._thread.submit(copy_context().run, timed, work).result()


def piece_rows(n_blocks: int, d: int) -> int:
    """Rows that are captured before they are written: whole row groups of about 32 MB, and never so few that
    batches stay half empty."""
    rows = max(_PIECE_BYTES // (n_blocks * d * 4), _FEWEST_PIECE_ROWS)
    return -(-rows // ROW_GROUP) * ROW_GROUP


class _Passes:
    """What it takes to run a shard's texts through the model, piece by piece."""

    def __init__(self, lm: LanguageModel, shard: Shard, run: Callable[..., Any]) -> None:
        self.lm, self.run = lm, run
        self.blocks, self.settings, self.d = shard.spec.blocks, shard.spec.capture, shard.spec.d
        self.captured: list[tuple[float, float]] = []
        self.worst = 0.0
        """Deviation of a canary."""

    def _queued(self, ids: list[list[int]], alone: bool = False) -> Callable[[], Activations]:
        tokens = 1 if alone else self.settings.batch_tokens
        queue = partial(queue_ids, self.lm, ids, self.blocks, self.settings.position, tokens, not alone)
        begun, since = self.run(queue)

        def landed() -> Activations:
            found: Activations = begun.land(lambda work: self.run(work)[0])
            self.captured.append((since, time.monotonic()))
            return found

        return landed

    def pieces(self, texts: Runnable) -> Iterator[Activations]:
        """The texts' activations, in order."""
        size = piece_rows(len(self.blocks), self.d)
        for start in one_by_one(range(0, len(texts.ids), size)):
            ids = texts.ids[start : start + size]
            rows, sample = self._queued(ids), [] if start else canary_rows(len(ids))
            # Queued with the rows, not once these are there: the devices would stand still between the two.
            alone = self._queued([ids[row] for row in sample], alone=True) if sample else None
            piece = rows()
            if alone:
                self.worst = deviation(alone(), {block: values[sample] for block, values in piece.items()})
            yield piece


def compute_shard(
    lm: LanguageModel,
    shard: Shard,
    rows: pa.Table,
    run: Callable[..., Any] = timed,
    fatal: Mapping[int, str] = MappingProxyType({}),
) -> ShardReport:
    """Run the shard's texts (its rows of the input) through the model and publish its file.

    A text that cannot be run is left out, and the shard says so; so are `fatal` ones, by row of the input.
    Shards that are computed in several threads share an `InTurn` as `run`. Raises SpoiltError, naming rows
    and block, when half of the activations or more are NaN or infinite; nothing is published then.
    """
    began, passes = time.monotonic(), _Passes(lm, shard, run)
    texts, report = Runnable.of(lm, rows, passes.settings, fatal), None
    while report is None:
        coming = passes.pieces(texts)
        first = next(coming, _no_activations(passes.blocks, passes.d))
        try:
            report = publish_shard(shard, texts, chain([first], coming), passes.worst, str(lm.device))
        except SpoiltError as error:
            texts = texts.without_spoilt(error)[1]
    return replace(report, timing=Timing(_PROCESS, began, time.monotonic(), tuple(passes.captured)))


def try_texts(lm: LanguageModel, shard: Shard, rows: pa.Table, run: Callable[..., Any] = timed) -> None:
    """Run some of the shard's texts, and keep nothing: who asks wants to know whether this process lives."""
    for _ in _Passes(lm, shard, run).pieces(Runnable.of(lm, rows, shard.spec.capture)):
        pass


def _no_activations(blocks: list[int], d: int) -> Activations:
    """Those of no texts."""
    nothing = np.empty(0, np.int32)
    return Activations({block: np.empty((0, d), np.float32) for block in blocks}, nothing, nothing, [])
