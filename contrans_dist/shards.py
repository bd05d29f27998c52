"""One shard of a harvest: planned and computed. Knows nothing of Ray."""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from contrans_dist.capturing import Activations, canary, capture_ids, truncate
from contrans_dist.config import CaptureSettings
from contrans_dist.models import LanguageModel, encode_many
from contrans_dist.shardfiles import (
    ROW_GROUP,
    Counts,
    HarvestSpec,
    Piece,
    Shard,
    ShardReport,
    Work,
    publish_shard,
)
from contrans_dist.templates import prompts

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


def rows_per_shard(n_rows: int, n_blocks: int, d: int, asked: int | None) -> int:
    """Rows in a shard: as asked, else for about 128 MB on disk, and at least eight shards of a small input.

    Depends on the input and the settings alone, never on the cluster, so that a resumed harvest is cut alike.
    """
    if asked is not None:
        return asked
    by_size = int(_TARGET_BYTES / (n_blocks * d * 4 * _STORED_RATIO))
    to_share = max(_FEWEST_ROWS, -(-n_rows // _LEAST_SHARDS))
    return max(1, min(by_size, to_share))


def plan_shards(n_rows: int, size: int) -> list[Shard]:
    """Consecutive row ranges of `size` rows; the last one may be shorter."""
    starts = range(0, n_rows, size)
    return [Shard(index, start, min(size, n_rows - start)) for index, start in enumerate(starts)]


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


def compute_shard(
    lm: LanguageModel, rows: pa.Table, spec: HarvestSpec, shard: Shard, run: Callable[..., Any] = timed
) -> ShardReport:
    """Run the shard's texts (`rows` of the input table) through the model and publish its file.

    Shards that are computed in several threads share an `InTurn` as `run`. Raises RunError, naming rows
    and block, when an activation is NaN or infinite, and UserError for a text that is too short for the
    position; nothing is published then.
    """
    began, capturing = time.monotonic(), 0.0
    settings = spec.capture
    ids, truncated = token_ids(lm, rows, settings)

    def capture(start: int, stop: int) -> Activations:
        nonlocal capturing
        first, part = shard.start + start, ids[start:stop]
        work = partial(capture_ids, lm, part, spec.blocks, settings.position, settings.batch_tokens, first)
        captured, seconds = run(work)
        capturing += seconds
        return captured

    size = piece_rows(len(spec.blocks), spec.d)
    first = capture(0, size)
    sample = canary_rows(len(first.n_tokens))
    reference = {block: found[sample] for block, found in first.items()}
    worst, seconds = run(partial(canary, lm, [ids[row] for row in sample], reference, settings.position))
    capturing += seconds

    def pieces() -> Iterator[Piece]:
        yield Piece(0, first)
        for start in range(size, shard.rows, size):
            yield Piece(start, capture(start, start + size))

    counts = Counts(sum(map(len, ids)), len(truncated), worst)
    report = publish_shard(rows, pieces(), counts, spec, shard, str(lm.device))
    return replace(report, work=Work(_PROCESS, began, time.monotonic(), capturing))
