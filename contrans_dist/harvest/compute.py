"""One shard of a harvest: planned and computed. Knows nothing of Ray."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from contrans_dist.config import CaptureSettings
from contrans_dist.data.templates import prompts
from contrans_dist.engine.capture import Activations, canary, capture_ids, truncate
from contrans_dist.engine.capture.batches import parse_position, too_short
from contrans_dist.harvest.shard_files import (
    ROW_GROUP,
    Counts,
    HarvestSpec,
    Piece,
    Shard,
    ShardReport,
    SpoiltError,
    Work,
    publish_shard,
    spoilt_rows,
)
from contrans_dist.models import LanguageModel, encode_many, unusable
from contrans_dist.store.manifest import Skipped

_TARGET_BYTES = 128 << 20
_STORED_RATIO = 0.7
"""Bytes on disk per raw float32 byte of bf16 activations, halved by byte-stream-split and zstd."""
_FEWEST_ROWS = 64
_LEAST_SHARDS = 8
_PIECE_BYTES = 32 << 20
_FEWEST_PIECE_ROWS = 512
_TWO_CANARIES = 256
_PROCESS = uuid.uuid4().hex
"""Tells the processes of a cluster apart."""

_T = TypeVar("_T")


def rows_per_shard(n_rows: int, n_blocks: int, d: int, shard_size: int | None) -> int:
    """Rows in a shard: as asked, else for about 128 MB on disk, and at least eight shards of a small input.

    Depends on the input and the settings alone, never on the cluster, so that a resumed harvest is cut alike.
    """
    if shard_size is not None:
        return shard_size
    by_size = int(_TARGET_BYTES / (n_blocks * d * 4 * _STORED_RATIO))
    to_share = max(_FEWEST_ROWS, -(-n_rows // _LEAST_SHARDS))
    return max(1, min(by_size, to_share))


def plan_shards(n_rows: int, size: int, first: int = 0, index: int = 0) -> list[Shard]:
    """Consecutive ranges of `size` rows from row `first` on, numbered from `index` on; the last one may be
    shorter."""
    starts = range(0, n_rows, size)
    return [Shard(index + i, first + start, min(size, n_rows - start)) for i, start in enumerate(starts)]


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What `work` returns, and the seconds it took."""
    started = time.monotonic()
    return work(), time.monotonic() - started


class InTurn:
    """`timed`, but all in one thread: so one shard is written while the model computes another.

    Not in the shards' own threads under a lock: each thread that runs matrix products gets a set of worker
    threads to itself.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")

    def __call__(self, work: Callable[[], _T]) -> tuple[_T, float]:
        return self._thread.submit(timed, work).result()


def piece_rows(n_blocks: int, d: int) -> int:
    """Rows that are captured before they are written: whole row groups of about 32 MB, and never so few that
    batches stay half empty."""
    rows = max(_PIECE_BYTES // (n_blocks * d * 4), _FEWEST_PIECE_ROWS)
    return -(-rows // ROW_GROUP) * ROW_GROUP


def canary_rows(rows: int) -> list[int]:
    """The rows, of so many, that are also run alone; that costs a pass each, so a small shard has but one."""
    return [rows // 2] if rows < _TWO_CANARIES else [rows // 3, 2 * rows // 3]


def token_ids(
    lm: LanguageModel, rows: pa.Table, settings: CaptureSettings
) -> tuple[list[list[int]], list[int]]:
    """What is run for each of the texts, and which of them were cut."""
    texts = prompts(rows, settings.template)
    ids = encode_many(lm, texts, settings.chat, settings.chat_date)
    return truncate(lm, ids, settings.max_tokens)


@dataclass(frozen=True)
class Runnable:
    """The texts of a shard that can be run."""

    rows: pa.Table
    ids: list[list[int]]
    truncated: frozenset[int]
    """Which of them, by row of the input, were cut."""
    skipped: tuple[Skipped, ...] = ()
    """Those that cannot be run: each of these would fail by itself."""

    @classmethod
    def of(cls, lm: LanguageModel, rows: pa.Table, settings: CaptureSettings) -> "Runnable":
        """Of these rows of the input."""
        ids, cut = token_ids(lm, rows, settings)
        position, numbers = parse_position(settings.position), rows.column("row").to_pylist()
        reasons = {
            row: unusable(lm, text) or too_short(position, len(text))
            for row, text in zip(numbers, ids, strict=True)
        }
        bad = {row: reason for row, reason in reasons.items() if reason is not None}
        return cls(rows, ids, frozenset(numbers[place] for place in cut)).without(bad)[1]

    def without(self, bad: Mapping[int, str]) -> "tuple[list[int], Runnable]":
        """The places of those that are left, and these alone. `bad`: why a row of the input is of no use."""
        numbers = self.rows.column("row").to_pylist()
        kept = [place for place, row in enumerate(numbers) if row not in bad]
        fresh = [Skipped(row=row, reason=reason) for row, reason in bad.items()]
        return kept, Runnable(
            self.rows if len(kept) == len(numbers) else self.rows.take(pa.array(kept, pa.int64())),
            [self.ids[place] for place in kept],
            self.truncated - set(bad),
            tuple(sorted([*self.skipped, *fresh], key=lambda skipped: skipped.row)),
        )


def compute_shard(
    lm: LanguageModel, rows: pa.Table, spec: HarvestSpec, shard: Shard, run: Callable[..., Any] = timed
) -> ShardReport:
    """Run the shard's texts (`rows` of the input table) through the model and publish its file.

    A text that cannot be run is left out, and the shard says so. Shards that are computed in several threads
    share an `InTurn` as `run`. Raises RunError, naming rows and block, when half of the activations or more
    are NaN or infinite; nothing is published then.
    """
    began, capturing = time.monotonic(), 0.0
    settings = spec.capture
    size = piece_rows(len(spec.blocks), spec.d)

    def worked(work: Callable[[], _T]) -> _T:
        nonlocal capturing
        result, seconds = run(work)
        capturing += seconds
        return result

    def pieces(texts: Runnable) -> Iterator[Piece]:
        for start in range(0, len(texts.ids), size):
            part = texts.ids[start : start + size]
            yield Piece(
                start,
                worked(partial(capture_ids, lm, part, spec.blocks, settings.position, settings.batch_tokens)),
            )

    def published(texts: Runnable) -> ShardReport:
        coming = pieces(texts)
        first, worst = next(coming, Piece(0, no_activations(spec.blocks, spec.d))), 0.0
        if texts.ids:
            sample = canary_rows(len(first.activations.n_tokens))
            reference = {block: rows[sample] for block, rows in first.activations.items()}
            alone = [texts.ids[row] for row in sample]
            worst = worked(partial(canary, lm, alone, reference, settings.position))
        counts = Counts(sum(map(len, texts.ids)), len(texts.truncated), worst, texts.skipped)
        try:
            return publish_shard(texts.rows, chain([first], coming), counts, spec, shard, str(lm.device))
        except SpoiltError as error:
            spoilt = dict(error.rows)
            for piece in coming:
                spoilt |= spoilt_rows(texts.rows, piece)
            few_spoilt(SpoiltError(shard.name, spoilt), len(texts.ids))
            return published(texts.without(spoilt)[1])

    report = published(Runnable.of(lm, rows, settings))
    return replace(report, work=Work(_PROCESS, began, time.monotonic(), capturing))


def few_spoilt(error: SpoiltError, rows: int) -> None:
    """Raise the error unless less than half of the rows are spoilt: the others show that the model works."""
    if 2 * len(error.rows) >= rows:
        raise error


def no_activations(blocks: list[int], d: int) -> Activations:
    """Those of no texts."""
    nothing = np.empty(0, np.int32)
    return Activations({block: np.empty((0, d), np.float32) for block in blocks}, nothing, nothing, [])
