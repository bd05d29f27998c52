"""A bfloat16 checkpoint over the same weights in float32, on a processor that is slow in bfloat16.

Where this processor is not, a process of its own is held to AVX2, which has no instructions for it: oneDNN by
ONEDNN_MAX_CPU_ISA, torch's own kernels by ATEN_CPU_CAPABILITY. Both are read when a process begins.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.capture.streamed import capture_streamed
from contrans_dist.engine.scoring import Intervention, generate, next_token
from contrans_dist.models import load_model
from contrans_dist.models.precision import choice, linear_rates
from contrans_dist.models.streaming import open_streamed
from speed.common import Bench, Row, max_error
from speed.evaluate import Numbers

_HELD = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
_TEXTS, _PROMPTS, _NEW_TOKENS = 64, 16, 16


def rows(bench: Bench) -> Iterator[Row]:
    """Of harvest, scoring, generation, streaming; and of blocks that are widened as they run."""
    small = replace(bench, device="cpu", shape=bench.shape if bench.shape in ("tiny", "134m") else "134m")
    _save_both(small)
    slow = choice("bfloat16")[0] == "float32"
    if slow or bench.quick:  # a quick run shows that it runs
        yield from _measured(small, "this processor" if slow else "a processor with fast bfloat16")
        return
    arguments = {**asdict(small), "scratch": str(small.scratch), "libraries": None}
    child = subprocess.run(
        [sys.executable, "-m", "speed.any_processor", json.dumps(arguments)],
        env={**os.environ, **_HELD},
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for row in json.loads(child.stdout.splitlines()[-1]):
        yield Row(**row)


def _save_both(bench: Bench) -> None:
    """The model in bfloat16, and the same weights in float32, as folders."""
    folder = bench.saved_model("bfloat16")
    wide = bench.scratch / "model-widened"
    if not wide.exists():
        lm = load_model(str(folder), dtype="float32", device="cpu")
        lm.model.save_pretrained(wide)
        lm.tokenizer.save_pretrained(wide)


def _measured(bench: Bench, processor: str) -> Iterator[Row]:
    folders = {"ours": bench.saved_model("bfloat16"), "theirs": bench.scratch / "model-widened"}
    # A quick run may be on a processor that is fast in bfloat16.
    options: dict[str, Any] = {"device": "cpu", "compute_dtype": "float32" if bench.quick else None}
    lms = {side: load_model(str(folder), **options) for side, folder in folders.items()}
    ids = bench.texts(min(bench.n_texts, _TEXTS))
    prompts, new = ids[:_PROMPTS], 4 if bench.quick else _NEW_TOKENS
    vector = np.random.default_rng(0).normal(size=lms["ours"].d).astype(np.float32)
    steered = [Intervention("v", {len(lms["ours"].blocks) // 2: vector}, s) for s in (0.5, 1.0, 2.0)]
    tokens, asked = sum(map(len, ids)), len(steered) * len(prompts)
    own, wide = (rate / 1e9 for rate in linear_rates("bfloat16"))
    note = f"{processor}: a small Linear {own:.1f} GFLOP/s in bfloat16, {wide:.1f} in float32"

    def row(name: str, work: Callable[[str], list[Any]], count: int) -> Row:
        """`work`: of one of the sides; returns arrays to be compared."""
        error = max_error(*map(work, folders))
        taken = bench.compare({side: partial(work, side) for side in folders}, min(bench.repeats, 3))
        rates = (count / taken[side] for side in folders)
        ratio = taken["theirs"] / taken["ours"]
        return Row("harvest", f"{name}/any-processor", ratio, *rates, "tokens/s", error, note)

    def scores(side: str) -> list[Any]:
        return [next_token(lms[side], prompts, steered, watch=[5, 17, 29]).logprobs]

    def written(side: str) -> list[Any]:
        texts = generate(lms[side], prompts, steered, max_new_tokens=new)
        return [[float(number) for number in text.split()] for of_one in texts for text in of_one]

    yield row("harvest", lambda side: list(capture_ids(lms[side], ids).values()), tokens)
    yield row("score", scores, len(steered) * sum(map(len, prompts)))
    for lm in lms.values():
        lm.tokenizer = Numbers()
        lm.model.generation_config.eos_token_id = None
    yield row("generate", written, asked * new)
    streamed = {side: open_streamed(str(folder), **options) for side, folder in folders.items()}
    yield row("stream", lambda side: list(capture_streamed(streamed[side], ids).values()), tokens)
    lms["ours"] = load_model(str(folders["ours"]), device="cpu", compute_dtype="float32", narrow=True)
    yield row("widened", lambda side: list(capture_ids(lms[side], ids).values()), tokens)


if __name__ == "__main__":
    content = json.loads(sys.argv[1])
    held = Bench(**{**content, "scratch": Path(content["scratch"]), "dtypes": tuple(content["dtypes"])})
    measured = _measured(held, f"held to {torch.backends.cpu.get_cpu_capability()}")
    print(json.dumps([asdict(row) for row in measured]))
