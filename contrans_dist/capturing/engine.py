"""The loop over batches."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from contrans_dist.capturing.activations import Activations
from contrans_dist.capturing.batches import Position, parse_position, plan_batches, taken_from, truncate
from contrans_dist.capturing.gather import Gatherer, Landing
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import LanguageModel, encode_many, resolve_blocks

_log = logging.getLogger(__name__)


def _check_blocks(lm: LanguageModel, blocks: Sequence[int] | str | None) -> list[int]:
    if blocks is None:
        return list(range(len(lm.blocks)))
    if isinstance(blocks, str):
        chosen = resolve_blocks(blocks, lm.n_blocks)
    else:
        chosen = sorted({b for block in blocks for b in resolve_blocks(int(block), lm.n_blocks)})
    if not chosen or chosen[-1] >= len(lm.blocks):
        raise UserError(f"--blocks {blocks}: blocks 0 to {len(lm.blocks) - 1} are loaded")
    return chosen


def _run(
    lm: LanguageModel,
    batches: list[list[int]],
    ids: list[list[int]],
    tokens: list[int],
    mean: bool,
    landing: Landing,
) -> None:
    """Runs the batches in order; once one has not fitted into memory, those as large are halved first."""
    queue = deque(batches)
    limit: float | None = None
    with Gatherer(lm, list(landing.arrays), mean) as gatherer:
        while queue:
            batch = queue.popleft()
            size = len(batch) * len(ids[batch[0]])
            if limit is not None and size > limit and len(batch) > 1:
                queue.extendleft([batch[len(batch) // 2 :], batch[: len(batch) // 2]])
                continue
            try:
                landing.add(batch, *gatherer.run([ids[i] for i in batch], [tokens[i] for i in batch]))
                continue
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise RunError(
                        f"text {batch[0]}: its {size} tokens alone do not fit into memory"
                    ) from error
            # Only here, after the exception, has the failed batch let go of its memory.
            torch.cuda.empty_cache()
            if limit is None:
                _log.warning("out of memory at %d tokens a batch: going on with smaller batches", size)
            limit = size // 2
            queue.appendleft(batch)
    landing.land()


def capture_ids(
    lm: LanguageModel,
    ids: list[list[int]],
    blocks: Sequence[int] | str | None = None,
    position: Position = "last",
    batch_tokens: int = 4096,
    first_row: int = 0,
) -> Activations:
    """Rows of texts given as token ids; NaN and infinity are left for the caller to find (`bad_rows`).

    Out of memory on a GPU halves the batches from there on. `first_row`: the number that messages give the
    first text. Raises UserError naming the row for a text without tokens or too short for `position`,
    RunError where a single text does not fit into memory.
    """
    chosen = _check_blocks(lm, blocks)
    position = parse_position(position)
    for row, text in enumerate(ids, first_row):
        if not text:
            raise UserError(f"text {row}: no tokens (an empty text, and a tokenizer without BOS)")
    ids, truncated = truncate(lm, ids)
    lengths = [len(text) for text in ids]
    tokens = taken_from(position, lengths, first_row)
    landing = Landing(chosen, len(ids), lm.d)
    _run(lm, plan_batches(lengths, batch_tokens, lm.split_at), ids, tokens, position == "mean", landing)
    n_tokens = np.array(lengths, dtype=np.int32)
    token_ids = [-1 if position == "mean" else text[i] for text, i in zip(ids, tokens, strict=True)]
    return Activations(landing.arrays, n_tokens, np.array(token_ids, dtype=np.int32), truncated)


def capture(
    lm: LanguageModel,
    texts: Sequence[str],
    blocks: Sequence[int] | str | None = None,
    position: Position = "last",
    batch_tokens: int = 4096,
    chat: bool = False,
) -> Activations:
    """The residual stream as each block returns it, one row a text: `{block: float32 [n_texts, d]}`.

    `blocks`: numbers, a specification as in `resolve_blocks`, or None for all that are loaded. `position`:
    `last`, `mean`, or an offset such as -2. `batch_tokens`: at most so many tokens, padding included, run at
    once. `chat`: through the tokenizer's chat template. Raises UserError for unusable input, RunError for NaN
    or infinity.
    """
    activations = capture_ids(lm, encode_many(lm, list(texts), chat), blocks, position, batch_tokens)
    bad = activations.bad_rows()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise RunError(
            f"NaN or infinity in the rows of texts {rows}, first at block {activations.first_bad_block()}"
            f" ({lm.dtype}); try another --dtype"
        )
    return activations


def canary(
    lm: LanguageModel,
    ids: list[list[int]],
    reference: Mapping[int, np.ndarray],
    position: Position = "last",
) -> float:
    """Worst deviation, max|a - b| / max|a| over the entries of a row, between the rows `reference`
    (`{block: [n_texts, d]}`) and the same texts run again, each alone."""
    alone = capture_ids(lm, ids, sorted(reference), position, batch_tokens=1)
    worst = 0.0
    for block, rows in alone.items():
        scale = np.abs(reference[block]).max(axis=1, initial=0).clip(min=np.finfo(np.float32).tiny)
        deviation = np.abs(rows - reference[block]).max(axis=1, initial=0) / scale
        worst = max(worst, float(deviation.max(initial=0)))
    return worst
