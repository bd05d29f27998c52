"""What every part of the benchmark uses: a row of the table, the model's shape, the texts, the stop-watch."""

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from contrans_dist.models import LanguageModel, wrap_model

REAL_TEXTS = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Real data sets, where they lie beside the repository."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, on both sides, and whether they computed the same."""

    part: str
    name: str
    ratio: float
    """Ours over theirs, larger is better (or a share, where the name says so)."""
    ours: float
    theirs: float
    unit: str
    max_error: float | None
    """Worst deviation between the two sides' numbers; None where there is nothing to compare."""
    note: str = ""


@dataclass(frozen=True)
class Shape:
    """A Llama of random weights."""

    d: int
    n_blocks: int
    heads: int
    feed_forward: int
    vocabulary: int = 32_000
    kv_heads: int | None = None

    @property
    def block_parameters(self) -> int:
        """Parameters of all blocks' matrices: two operations each for every token."""
        kv = self.d * (self.kv_heads or self.heads) // self.heads
        return self.n_blocks * (2 * self.d * self.d + 2 * self.d * kv + 3 * self.d * self.feed_forward)


TOLERANCES = {"harvest/prefix": 1e-5, "harvest/no-prefix": 1e-5, "stream/disk-offload": 1e-5}
"""How far the two sides' numbers may differ in float32; 1e-4 for all others."""

SHAPES = {
    "tiny": Shape(64, 3, 4, 128, 500),
    "134m": Shape(768, 12, 12, 2048),
    "7b": Shape(4096, 32, 32, 11008),
    "70b": Shape(8192, 80, 64, 28672, kv_heads=8),
}


@dataclass(frozen=True)
class Bench:
    """What was asked for on the command line."""

    device: str
    shape: str
    dtypes: tuple[str, ...]
    repeats: int
    n_texts: int
    quick: bool
    """A few texts and no repeats: shows that it runs, measures nothing."""
    scratch: Path
    libraries: Path | None = None
    """Folder of virtual environments with the libraries to compare with; None leaves them out."""
    missed: list[str] = field(default_factory=list, compare=False)
    """What could not be measured."""

    def texts(self, n: int | None = None) -> list[list[int]]:
        """Token ids of so many texts: BOS and random ids, as long as WikiSplit lines are (real lengths where
        the data are there, else drawn from their distribution)."""
        n = n or self.n_texts
        rng = random.Random(0)
        lengths = _lengths(n, rng)
        return [
            [1, *(rng.randrange(3, SHAPES[self.shape].vocabulary) for _ in range(k - 1))] for k in lengths
        ]

    def model(self, dtype: str) -> LanguageModel:
        """The model, on the device, without a tokenizer."""
        shape = SHAPES[self.shape]
        config = LlamaConfig(
            hidden_size=shape.d,
            num_hidden_layers=shape.n_blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads or shape.heads,
            intermediate_size=shape.feed_forward,
            vocab_size=shape.vocabulary,
            max_position_embeddings=2048,
            dtype=dtype,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            with torch.device(self.device):
                model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        return wrap_model(model.eval().requires_grad_(False), None, self.shape)

    def saved_model(self, dtype: str) -> Path:
        """The same model as a folder, with a tokenizer that has a token for each number below a hundred."""
        folder = self.scratch / f"model-{self.shape}-{dtype}"
        if not folder.exists():
            self.model(dtype).model.save_pretrained(folder)
            numbers = {str(i): i for i in range(100)} | {"<unk>": 100}
            words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
            words.pre_tokenizer = pre_tokenizers.Whitespace()
            PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
        return folder

    def miss(self, line: str) -> None:
        """Say that a row could not be measured; the run then ends with exit code 1."""
        print(line, flush=True)
        self.missed.append(line)

    def allowed(self, row: Row) -> float:
        """How far the two sides of a row may differ, max|a - b| / max|b|."""
        if row.name.endswith("/any-processor"):
            return 1e-5
        named = (self.dtypes[0], row.name.rpartition("-")[2])
        # Those of the 70B model are measured in bfloat16 alone.
        if row.name.startswith("stream/70b") or (row.part in ("harvest", "evaluate") and "bfloat16" in named):
            # Greedy texts part for good where two tokens are as likely but for rounding.
            return 1.0 if row.name == "evaluate/generate" else 5e-2
        return TOLERANCES.get(row.name, 1e-4)

    @property
    def is_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def seconds(self, work: Callable[[], Any]) -> float:
        """Wall-clock seconds of one call, with all that it queued on a GPU."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def compare(self, sides: dict[str, Callable[[], Any]], repeats: int | None = None) -> dict[str, float]:
        """Median seconds of each side. The sides take turns, so that a machine that slows down slows all."""
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats or self.repeats):
            for name, work in sides.items():
                taken[name].append(self.seconds(work))
        return {name: statistics.median(all_of) for name, all_of in taken.items()}

    def _wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


def _lengths(n: int, rng: random.Random) -> list[int]:
    """Tokens of n texts with BOS; WikiSplit lines have about 1.35 tokens a word in Llama's vocabulary."""
    path = REAL_TEXTS / "wikisplit"
    files = [path / "contrans_wiki_split_input.txt"] if path.is_dir() else []
    if files:
        lines = files[0].read_text().splitlines()
        words = [len(line.split()) for line in lines if line.strip()][:n]
        if len(words) == n:
            return [max(2, round(1.35 * count) + 1) for count in words]
    # Mean and spread of those lines' lengths.
    return [min(90, max(8, round(rng.gauss(40, 12)))) for _ in range(n)]


@contextmanager
def looking(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `look` every so many seconds of the block, in a thread."""
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def max_error(ours: Iterable[Any], theirs: Iterable[Any]) -> float:
    """Worst max|a - b| / max|b| over pairs of arrays."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)
    ]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
