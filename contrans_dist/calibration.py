"""How long a plan's stages take: measured on a sample where that can be had, else from a rate."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch

from contrans_dist.capturing import capture_ids
from contrans_dist.config import Recipe
from contrans_dist.models import LanguageModel, find_blocks, load_model, split_name, wrap_model
from contrans_dist.models.loading import DTYPES
from contrans_dist.models.placement import host_memory
from contrans_dist.plan import Side, Stage, Texts
from contrans_dist.scoring import BASE, Intervention, next_token

_SAMPLE_TEXTS = 200
_SAMPLE_ITEMS = 24
_SAMPLE_BLOCKS = 2
_SAMPLE_TOKENS = 4096
_READ_RATE = 1e9
"""Bytes a second that a checkpoint is taken to be read at, where it is streamed."""


def from_rate(stages: Sequence[Stage], flops: float) -> None:
    """Fills in the seconds, at so many operations a second of one actor: two for each parameter of a block,
    token and block."""
    for stage in stages:
        computing = 2 * _block_parameters(stage.side) * stage.work / flops
        stage.seconds = _with_reading(stage, computing) / stage.actors.count


def calibrate(stages: Sequence[Stage], recipe: Recipe) -> None:
    """Fills in the seconds from about a minute of running samples on this machine, as one actor would.

    A model whose weights are here runs itself; for any other, two blocks of random weights stand for all.
    """
    starting = _starting()
    pools: set[tuple[str, str]] = set()
    for side in {id(stage.side): stage.side for stage in stages}.values():
        own = [stage for stage in stages if stage.side is side]
        here = any(Path(split_name(side.model.id)[0]).glob("*.safetensors")) and all(_fits(s) for s in own)
        lm = _whole(side) if here else _part(side)
        for stage in own:
            torch.set_num_threads(stage.actors.threads)
            if stage.name.startswith("evaluate") and here:
                ids = _sample(lm, stage.seen, _SAMPLE_ITEMS)
                alone = _scoring(lm, ids, recipe, stage.name.partition(" ")[2])
                seconds = alone * len(stage.seen.pieces) / len(ids)
            else:
                ids = _sample(lm, stage.seen, _SAMPLE_TEXTS)
                capture_ids(lm, ids[:4])
                taken = _timed(partial(capture_ids, lm, ids))
                seconds = taken * stage.work / (Texts([list(text) for text in ids]).distinct * len(lm.blocks))
            pool = (side.model.id, stage.actors.use)
            seconds = _with_reading(stage, seconds) / stage.actors.count
            stage.seconds = seconds + (0 if pool in pools else starting)
            pools.add(pool)


def _fits(stage: Stage) -> bool:
    """Whether the stage's whole model can be loaded here."""
    room = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else host_memory()
    return stage.actors.placement == "resident" and stage.actors.weights + stage.actors.activations < room


def _with_reading(stage: Stage, computing: float) -> float:
    """Seconds of a stage that takes so long to compute: while a block computes, the next one is read."""
    streamed = stage.actors.placement == "stream"
    return max(computing, stage.actors.weights / _READ_RATE * stage.actors.count) if streamed else computing


def _starting() -> float:
    """Seconds until an actor of a fresh pool has what it needs."""
    return _timed(
        lambda: subprocess.run([sys.executable, "-c", "import contrans_dist.harvesters"], check=True)
    )


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the better of two calls: a pause of the machine is not its speed."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _whole(side: Side) -> LanguageModel:
    return load_model(side.model.id, **side.model.model_dump(exclude={"id"}))


def _part(side: Side) -> LanguageModel:
    """The lowest blocks with random weights."""
    config = deepcopy(side.config.config)
    config.get_text_config().num_hidden_layers = _SAMPLE_BLOCKS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[side.dtype])
    try:
        with torch.device(device):
            model = side.config.whole(config)
    finally:
        torch.set_default_dtype(before)
    return wrap_model(model.requires_grad_(False), None)


def _sample(lm: LanguageModel, seen: Texts, count: int) -> list[list[int]]:
    """Evenly spaced texts as token ids; made up, in their lengths, where there is no tokenizer."""
    texts = seen.pieces[:: max(1, len(seen.pieces) // count)][:count]
    if seen.scale == 1.0:
        return [[int(str(token)) for token in text] for text in texts]
    rng = np.random.default_rng(0)
    room = lm.config.vocab_size
    ids = [rng.integers(3, room, round(seen.scale * len(text))).tolist() for text in texts]
    total = np.cumsum([len(text) for text in ids])
    return ids[: max(1, int(np.searchsorted(total, _SAMPLE_TOKENS)))]


def _scoring(lm: LanguageModel, ids: list[list[int]], recipe: Recipe, name: str) -> float:
    """Seconds to score these prompts as the evaluation of this name would, with random vectors."""
    settings, block = recipe.evaluations[name], 3 * len(lm.blocks) // 4
    rng = np.random.default_rng(0)
    steered = [BASE]
    for condition in settings.conditions:
        shape = (len(ids), lm.d) if condition == "random" else (lm.d,)
        vectors = {block: rng.normal(size=shape).astype(np.float32)}
        steered += [Intervention(condition, vectors, s) for s in settings.strengths if s]
    next_token(lm, ids[:2], steered[:2], watch=[5])
    return _timed(lambda: next_token(lm, ids, steered, watch=[5, 6]))


def _block_parameters(side: Side) -> float:
    """Of one block, on average."""
    model = side.config.empty()
    _, blocks = find_blocks(model)
    return sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1) / len(blocks)
