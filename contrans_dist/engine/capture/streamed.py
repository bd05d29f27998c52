"""Capturing from a model that is never whole in memory: all texts through one block, then the next."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contrans_dist.config import BATCH_TOKENS
from contrans_dist.engine.capture.activations import Activations
from contrans_dist.engine.capture.batches import Position, Prepared, chosen_blocks, plan_batches, prepare
from contrans_dist.engine.capture.gather import gather_rows
from contrans_dist.engine.capture.states import States
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel
from contrans_dist.models.crossing import OnHost, to_device
from contrans_dist.models.devices import out_of_memory
from contrans_dist.models.streaming import StreamedModel

MEMORY = 2 << 30
"""Bytes of states that are kept in memory unless asked otherwise."""
_IN_FLIGHT = 2
"""Batches that may still be on their way from a GPU."""


class Rows(Protocol):
    """Rows `[n, d]`: an array, or a file."""

    def __setitem__(self, places: list[int], rows: NDArray[np.float32], /) -> None: ...

    def __getitem__(self, places: slice, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Batch:
    """Texts that run together, padded on the right to the longest."""

    ids: Tensor
    """int32 `[texts, tokens]`. No mask goes with it: no token can see the padding on its right."""
    tokens: list[int]
    """Index of the token that each text's row is taken from."""
    rows: list[int]
    """Where each text's row goes."""
    blocks: frozenset[int]
    """Where rows are wanted."""
    mean: bool

    def gather(self, hidden: Tensor) -> Tensor:
        """`[texts, tokens, d]` -> `[texts, d]`, on the same device."""
        tokens = to_device(torch.tensor(self.tokens), hidden.device)
        return gather_rows(hidden, torch.arange(len(hidden), device=hidden.device), tokens, self.mean)


@dataclass(frozen=True)
class Plan(Prepared):
    """Texts as they are run: what `capture_ids` would make of them, batch for batch."""

    batches: list[Batch]


def plan_capture(
    lm: LanguageModel,
    ids: list[list[int]],
    blocks: Sequence[int],
    position: Position = "last",
    batch_tokens: int = BATCH_TOKENS,
    place: int = 0,
) -> Plan:
    """The batches in which texts go through a model's blocks one after the other.

    Args:
        lm: The model, whose blocks need no weights.
        ids: Token ids of each text.
        blocks: Where rows are wanted, from 0.
        position: The token of each row, as in `capture`.
        batch_tokens: Tokens of a batch, padding included.
        place: Where the row of the first text goes; the others follow.

    Raises:
        UserError: For a text that has no tokens, too few or too many.
    """
    texts, wanted = prepare(lm, ids, position), frozenset(blocks)
    batches = [
        Batch(
            _padded([texts.ids[i] for i in group]),
            [texts.tokens[i] for i in group],
            [place + i for i in group],
            wanted,
            texts.mean,
        )
        for group in plan_batches(texts.lengths, lm.largest_batch(batch_tokens), lm.split_at)
    ]
    return Plan(texts.ids, texts.tokens, texts.mean, batches)


def _padded(ids: list[list[int]]) -> Tensor:
    out = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int32)
    for row, text in zip(out, ids, strict=True):
        row[: len(text)] = torch.tensor(text)
    return out


def capture_streamed(
    model: StreamedModel,
    ids: list[list[int]],
    blocks: Sequence[int] | str | None = None,
    position: Position = "last",
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
) -> Activations:
    """Rows of texts given as token ids, as `capture_ids` gives them for the whole model.

    Each block up to the highest asked for is read once. At most two blocks, `memory` bytes of states and the
    rows are in memory; states beyond that go to the temporary folder. Raises as `capture_ids`.
    """
    lm = model.lm
    chosen = chosen_blocks(lm, blocks)
    plan = plan_capture(lm, ids, chosen, position, batch_tokens)
    rows = {k: np.empty((len(ids), lm.d), dtype=np.float32) for k in chosen}
    with (
        tempfile.TemporaryDirectory(prefix="contrans-") as folder,
        states_of(model, plan.batches, memory, Path(folder)) as states,
    ):
        sweep(model, plan.batches, rows, states)
    return plan.activations(rows)


def states_of(model: StreamedModel, batches: Sequence[Batch], memory: int, folder: Path) -> States:
    """Room for the states of batches between two blocks.

    Args:
        model: The model.
        batches: As `plan_capture` gives them.
        memory: Bytes of states that are kept in memory.
        folder: Where the others lie, in one raw file a pass.
    """
    shapes = [(batch.ids.shape[0], batch.ids.shape[1], model.lm.d) for batch in batches]
    return States(shapes, model.lm.dtype, memory, folder, of_gpu=model.device.type == "cuda")


def sweep(
    model: StreamedModel,
    batches: Sequence[Batch],
    rows: Mapping[int, Rows],
    states: States,
    after: int | None = None,
    finished: Callable[[int], None] = lambda _k: None,
) -> None:
    """Every batch through block after block; the next block is read while one computes.

    Args:
        model: The model, of which one pass may run at a time.
        batches: As `plan_capture` gives them.
        rows: Takes the rows `[n, d]` of each wanted block; nothing above the highest of these runs.
        states: What enters the next block, as `states_of` gives room for it.
        after: Go on after this block, with states that were saved; None begins at the embeddings.
        finished: Called with k when all texts are through block k.

    Raises:
        RunError: For missing weights, a damaged file, or a text that alone does not fit into memory.
    """
    highest = max(rows)
    first = 0 if after is None else after + 1
    if after is None:
        # The first block is not read yet: an embedding may be as large as several blocks.
        states.begin(0)
        embedded = partial(_fitting, model.lm, model.embedded)
        _pass(batches, (batch.ids.long() for batch in batches), embedded, states)
        states.end()
        model.forget_embedding()
    with ThreadPoolExecutor(1) as reader:
        coming: Future[nn.Module] | None = reader.submit(model.load, first)
        for k in range(first, highest + 1):
            assert coming is not None
            block = _read(coming)
            coming = None  # an error in it would hold what was read
            if block is None:
                largest, fits = max(batch.ids.numel() for batch in batches), model.lm.fits
                model.lm.did_not_fit(largest if fits is None else min(largest, fits))
                block = reader.submit(model.load, k).result()
            coming = reader.submit(model.load, k + 1) if k < highest else None
            states.begin(k + 1)
            with model.running(k, [block]) as run:
                if k == first:
                    model.check_block(run)
                fitting = partial(_fitting, model.lm, run)
                _pass(batches, states.in_order(), fitting, states if k < highest else None, k, rows.get(k))
            # All hold on to the block, which must go before the next but one comes.
            del block, run, fitting
            states.end()
            finished(k)


def _read(coming: Future[nn.Module]) -> nn.Module | None:
    """A block that was read; None where a GPU had no memory for it beside the one before."""
    try:
        return coming.result()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _pass(
    batches: Sequence[Batch],
    entering: Iterable[Tensor],
    run: Callable[[Tensor], Tensor],
    states: States | None,
    k: int = -1,
    rows: Rows | None = None,
) -> None:
    """`run` on what enters for each batch, which goes to `states` then; rows wanted at block k to `rows`."""
    flying: deque[tuple[int, OnHost, OnHost | None]] = deque()

    def land(leave: int) -> None:
        while len(flying) > leave:
            i, leaving, gathered = flying.popleft()
            if gathered is not None and rows is not None:
                rows[batches[i].rows] = gathered.tensor().float().numpy()
            if states is not None:
                states.put(i, leaving.tensor())

    for i, (batch, state) in enumerate(zip(batches, entering, strict=True)):
        if k > max(batch.blocks):  # other batches alone go on
            if states is not None:
                states.put(i, state)
            continue
        output = run(state)
        gathered = OnHost(batch.gather(output)) if k in batch.blocks else None
        flying.append((i, OnHost(output), gathered))
        land(_IN_FLIGHT if output.is_cuda else 0)
    land(0)


def _fitting(lm: LanguageModel, run: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """`run(state)`, in halves where a GPU has not the memory for all of it."""
    (output,) = in_halves(lm, lambda some: [run(state[some])], slice(0, len(state)), state.shape[1])
    return output


def in_halves(
    lm: LanguageModel, run: Callable[[slice], list[Tensor]], texts: slice, tokens: int
) -> list[Tensor]:
    """What `run` makes of these texts, padded to so many tokens, in tensors with a row a text; in halves
    where a GPU has not the memory for all. Raises RunError for a text that alone does not fit."""
    size = (texts.stop - texts.start) * tokens
    if lm.fits is None or size <= lm.fits or size == tokens:
        try:
            return run(texts)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if size == tokens:
                raise RunError(f"a text of {tokens} tokens alone does not fit into memory") from error
        lm.did_not_fit(size)
    middle = (texts.start + texts.stop) // 2
    halves = slice(texts.start, middle), slice(middle, texts.stop)
    parts = zip(*(in_halves(lm, run, half, tokens) for half in halves), strict=True)
    return [torch.cat(part) for part in parts]
