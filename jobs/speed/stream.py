"""Blocks streamed from the checkpoint against accelerate's disk offload, both held to one memory limit.

    python jobs/speed/stream.py --gigabytes 3 --limit-gigabytes 1.5

Each side runs in a process of its own inside a memory control group (v1 or v2, page cache counted), on a
checkpoint of random bfloat16 weights at least twice as large as the limit, none of which is cached.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    # At run time only where it is needed: each side is measured in a process that imports little.
    from speed.common import Bench, Row

VOCABULARY = 32_000
TOKENS_PER_TEXT = 32
"""All texts are as long, so that padding costs neither side anything."""


@dataclass(frozen=True)
class Side:
    """What one side did."""

    seconds: float
    """From nothing loaded to all rows, imports left out."""
    batches: int
    seconds_loading: float
    bytes_read: int
    """From the disk, by the process, imports left out."""
    peak_bytes: int
    """The most that the control group held, page cache included."""
    rss_bytes: int


@dataclass(frozen=True)
class Width:
    """How wide the blocks of a random Llama are."""

    d: int = 2048
    feed_forward: int = 5632
    heads: int = 16
    kv_heads: int = 16

    @property
    def kv(self) -> int:
        return self.d * self.kv_heads // self.heads

    @property
    def block_bytes(self) -> int:
        """Of one block, in bfloat16."""
        return 2 * (2 * self.d * (self.d + self.kv) + 3 * self.d * self.feed_forward + 2 * self.d)


TINY = Width(64, 128, 4, 4)


def rows(bench: "Bench") -> Iterator["Row"]:
    """Both rows come from one comparison; on a GPU also one of a 70B model's blocks."""
    try:
        with control_group(4 << 30):
            pass
    except OSError as error:
        print(f"stream/disk-offload, stream/bytes-read: left out, no memory control group ({error})")
    else:
        yield from _against_offload(bench)
    if bench.is_gpu:
        yield from _large(bench)


def _against_offload(bench: "Bench") -> Iterator["Row"]:
    from speed.common import Row

    folder = bench.scratch / "streamed"
    if bench.quick:
        write_checkpoint(folder, 0, TINY)
        found = compare(folder, 3 << 30, batches=3, their_batches=2)
    else:
        write_checkpoint(folder, 3 << 30)
        # What disk offload takes is a constant for each batch: it reads all weights again.
        found = compare(folder, 3 << 29, their_batches=12)
    size, limit = found["checkpoint_bytes"], found["limit_bytes"]
    yield Row(
        "stream",
        "stream/disk-offload",
        found["ratio"],
        found["ours"],
        found["theirs"],
        "seconds",
        found["max_error"],
        f"checkpoint of {size / 1e9:.2f} GB under {limit / 1e9:.2f} GB, bfloat16 on the CPU, "
        f"{found['batches']} batches of {found['tokens_per_batch']} tokens (theirs: "
        f"{found['their_batches_measured']}); our peak {found['ours_detail']['peak_bytes'] / 1e6:.0f} MB",
    )
    yield Row(
        "stream",
        "stream/bytes-read",
        found["bytes_read_ratio"],
        found["ours_detail"]["bytes_read"],
        size,
        "bytes",
        None,
        "read from the disk, over the checkpoint's size",
    )


def _large(bench: "Bench") -> Iterator["Row"]:
    """Blocks of a 70B model (or of the tiny one): from the page cache through the GPU, and quantised, each
    over the same blocks in the GPU's memory as they are."""
    import importlib.util

    from contrans_dist.engine.capture import capture_ids
    from contrans_dist.engine.capture.streamed import capture_streamed
    from contrans_dist.models import load_model
    from contrans_dist.models.streaming import open_streamed
    from speed.common import SHAPES, Row, max_error

    shape, folder = SHAPES["70b"], bench.scratch / "blocks-70b"
    width = Width(shape.d, shape.feed_forward, shape.heads, shape.kv_heads or shape.heads)
    size = write_checkpoint(folder, 0 if bench.quick else 8 << 30, TINY if bench.quick else width)
    ids = bench.texts()
    streamed = open_streamed(str(folder), dtype="bfloat16", device=bench.device)
    resident = load_model(str(folder), dtype="bfloat16", device=bench.device, head=False)
    tokens, n = sum(map(len, ids)), len(resident.blocks)

    def row(name: str, ours: Callable[[], Any], compared: bool) -> "Row":
        sides = {"ours": ours, "theirs": lambda: capture_ids(resident, ids, batch_tokens=16_384)}
        mine, peak = _at_peak(ours)
        all_there = sides["theirs"]()
        taken = bench.compare(sides, min(bench.repeats, 3))
        error = max_error(list(mine.values()), list(all_there.values()))
        return Row(
            "stream",
            f"stream/70b-{name}",
            taken["theirs"] / taken["ours"],
            tokens / taken["ours"] * n / shape.n_blocks,
            tokens / taken["theirs"] * n / shape.n_blocks,
            "tokens/s",
            error if compared else None,
            f"rates for {shape.n_blocks} blocks from {n} ({size / 1e9:.0f} GB), {tokens} tokens; theirs: the "
            f"same blocks in the GPU's memory, bfloat16; {peak}"
            + ("" if compared else f"; rows differ by {error:.1e}"),
        )

    yield row("from-host", lambda: capture_streamed(streamed, ids, batch_tokens=16_384), True)
    if importlib.util.find_spec("bitsandbytes") is None:
        print("stream/70b-nf4: left out, bitsandbytes is not installed")
        return
    small = load_model(str(folder), dtype="bfloat16", quantization="nf4", device=bench.device, head=False)
    yield row("nf4", lambda: capture_ids(small, ids, batch_tokens=16_384), False)


def _at_peak(work: Callable[[], Any]) -> tuple[Any, str]:
    """What `work` returns, and in words what it took of the GPU's memory beside what lay there before."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    result = work()
    allocated = torch.cuda.max_memory_allocated() - allocated
    reserved = torch.cuda.max_memory_reserved() - reserved
    return result, f"ours took {allocated / 1e9:.2f} GB of GPU memory, {reserved / 1e9:.2f} GB reserved"


def write_checkpoint(
    folder: Path, nbytes: int, width: Width | None = None, dtype: "torch.dtype | None" = None
) -> int:
    """A random Llama of about so many bytes, in files of a block each; how many bytes the files have."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    width = width or Width()
    d = width.d
    dtype = dtype or torch.bfloat16
    wider = dtype.itemsize // 2
    n = max(2, round((nbytes - 2 * wider * VOCABULARY * d) / (wider * width.block_bytes)))
    config = LlamaConfig(
        hidden_size=d,
        intermediate_size=width.feed_forward,
        num_hidden_layers=n,
        num_attention_heads=width.heads,
        num_key_value_heads=width.kv_heads,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        dtype=str(dtype).removeprefix("torch."),
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(dtype)

    where: dict[str, str] = {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    wide, tall = (width.feed_forward, d), (d, width.feed_forward)
    shapes = {f"self_attn.{part}_proj": (d, d) for part in "qo"}
    shapes |= {f"self_attn.{part}_proj": (width.kv, d) for part in "kv"}
    shapes |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": tall}
    norms = ("input_layernorm", "post_attention_layernorm")
    for k in range(n):
        tensors = {f"model.layers.{k}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        tensors |= {f"model.layers.{k}.{name}.weight": torch.ones(d, dtype=dtype) for name in norms}
        write(f"model-{k:05d}.safetensors", tensors)
    ends = {"model.embed_tokens.weight": random(VOCABULARY, d)}
    ends["model.norm.weight"] = torch.ones(d, dtype=dtype)
    write(f"model-{n:05d}.safetensors", ends)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _tokenizer().save_pretrained(folder)
    return total


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({str(i): i for i in range(100)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="0")


def forget_cached(folder: Path) -> None:
    """Take the checkpoint's files out of the page cache."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A fresh memory control group with this limit in bytes. Raises OSError where none can be made."""
    v1 = Path("/sys/fs/cgroup/memory")
    root = v1 if v1.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"contrans-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        name = "memory.limit_in_bytes" if root == v1 else "memory.max"
        (group / name).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def peak_of(group: Path) -> int:
    """The most bytes that the group held, page cache included."""
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next((int((group / name).read_text()) for name in names if (group / name).exists()), 0)


def run_side(side: str, folder: Path, limit: int, batches: int, batch_texts: int, out: Path) -> Side:
    """One side in a process of its own under the limit; its rows go to `out`. RuntimeError if it died."""
    forget_cached(folder)
    with control_group(limit) as group:
        command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--group", str(group)]
        command += ["--batches", str(batches), "--batch-texts", str(batch_texts), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{side}: {done.returncode}: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        return Side(**found, peak_bytes=peak_of(group))


def compare(
    folder: Path, limit: int, batches: int = 64, batch_texts: int = 1, their_batches: int | None = None
) -> dict[str, Any]:
    """Both sides on the checkpoint in `folder`: seconds, ratio, bytes read over its size, worst deviation.

    `their_batches`: run disk offload for so many batches only, and its time is taken to grow with them: each
    batch reads all weights again. The rows of these are compared.
    """
    import numpy as np

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    fewer = their_batches or batches
    with tempfile.TemporaryDirectory() as rows:
        ours = run_side("ours", folder, limit, batches, batch_texts, Path(rows) / "ours.npy")
        theirs = run_side("theirs", folder, limit, fewer, batch_texts, Path(rows) / "theirs.npy")
        a, b = np.load(Path(rows) / "ours.npy"), np.load(Path(rows) / "theirs.npy")
    loading = theirs.seconds_loading
    their_seconds = loading + (theirs.seconds - loading) * batches / fewer
    deviation = float(np.abs(a[:, : b.shape[1]] - b).max() / np.abs(b).max())
    return {
        "ratio": their_seconds / ours.seconds,
        "ours": ours.seconds,
        "theirs": their_seconds,
        "unit": "seconds",
        "max_error": deviation,
        "bytes_read_ratio": ours.bytes_read / size,
        "checkpoint_bytes": size,
        "limit_bytes": limit,
        "batches": batches,
        "their_batches_measured": fewer,
        "tokens_per_batch": batch_texts * TOKENS_PER_TEXT,
        "ours_detail": vars(ours),
        "theirs_detail": vars(theirs),
    }


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _ids(texts: int) -> list[list[int]]:
    import random

    rng = random.Random(0)
    return [[rng.randrange(VOCABULARY) for _ in range(TOKENS_PER_TEXT)] for _ in range(texts)]


def _side(side: str, folder: Path, batches: int, batch_texts: int, out: Path) -> None:
    """Inside the control group: capture at all blocks, print the figures."""
    import resource

    import numpy as np

    import contrans_dist.engine.capture.streamed as streamed
    from contrans_dist.engine.capture import capture_ids
    from contrans_dist.models import load_model
    from contrans_dist.models.streaming import open_streamed

    ids = _ids(batches * batch_texts)
    tokens = batch_texts * TOKENS_PER_TEXT
    n = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    before, started = _bytes_read(), time.perf_counter()
    if side == "ours":
        model = open_streamed(str(folder), dtype="bfloat16", device="cpu")
        loaded = time.perf_counter()
        rows = streamed.capture_streamed(model, ids, batch_tokens=tokens)
    else:
        places: dict[str, Any] = {f"layers.{k}": "disk" for k in range(n)}
        places |= {"embed_tokens": "cpu", "norm": "cpu", "rotary_emb": "cpu"}
        lm = load_model(str(folder), dtype="bfloat16", device=places, head=False)
        loaded = time.perf_counter()
        # Batch after batch through accelerate's hooks; nothing of ours is tried on the model first.
        rows = capture_ids(lm, ids, batch_tokens=tokens, share_prefixes=False)
    seconds = time.perf_counter() - started
    read = _bytes_read() - before
    np.save(out, np.stack([rows[k] for k in sorted(rows)]))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "seconds_loading": loaded - started, "batches": batches}
    print(json.dumps({**found, "bytes_read": read, "rss_bytes": rss}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the checkpoint")
    parser.add_argument("--limit-gigabytes", type=float, default=1.5, help="memory limit of both sides")
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument(
        "--batch-texts", type=int, default=1, help=f"texts of {TOKENS_PER_TEXT} tokens a batch"
    )
    parser.add_argument("--their-batches", type=int, help="run disk offload for so many only")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written, or is already")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (options.group / "cgroup.procs").write_text(str(os.getpid()))
        _side(options.side, options.folder, options.batches, options.batch_texts, options.out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "model"
        if not (folder / "config.json").exists():
            write_checkpoint(folder, int(options.gigabytes * 2**30))
        found = compare(
            folder,
            int(options.limit_gigabytes * 2**30),
            options.batches,
            options.batch_texts,
            options.their_batches,
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
