"""Harvesting: our engine over the ConTrans way, the usual way and other libraries, and the harvest itself."""

import re
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from contrans_dist.engine.capture import capture_ids
from contrans_dist.models import LanguageModel
from speed import any_processor
from speed.common import REAL_TEXTS, SHAPES, Bench, Row, max_error
from speed.machine import matmul_rate

_USUAL_BATCH = {"cpu": 16, "gpu": 32}


def rows(bench: Bench) -> Iterator[Row]:
    for dtype in bench.dtypes:
        lm = bench.model(dtype)
        yield from _against_contrans(bench, lm, dtype)
        if dtype == bench.dtypes[0]:
            yield _against_usual(bench, lm, dtype)
            yield _shared(bench, lm, "harvest/prefix", _honest(bench))
            yield _shared(bench, lm, "harvest/no-prefix", bench.texts())
        del lm
    yield from any_processor.rows(bench)
    yield from _against_libraries(bench)
    yield from _actors(bench)


def contrans_way(lm: LanguageModel, ids: list[list[int]]) -> np.ndarray:
    """float32 [blocks, texts, d]: one text at a time with hooks on all blocks and hidden states besides, the
    head and the loss computed, everything kept on the host."""
    kept: dict[int, list[torch.Tensor]] = {k: [] for k in range(len(lm.blocks))}

    def hook(k: int) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            kept[k].append(hidden[0].detach().cpu())

        return keep

    handles = [block.register_forward_hook(hook(k)) for k, block in enumerate(lm.blocks)]
    states = []
    with torch.no_grad():
        for text in ids:
            tokens = torch.tensor([text], device=lm.device)
            output = lm.model(input_ids=tokens, labels=tokens, output_hidden_states=True)
            states.append([state[0, -1].cpu() for state in output.hidden_states])
    for handle in handles:
        handle.remove()
    return np.stack([np.stack([state[-1].float().numpy() for state in kept[k]]) for k in kept])


def usual_way(lm: LanguageModel, ids: list[list[int]]) -> np.ndarray:
    """float32 [blocks, texts, d] but for the last block, whose state `hidden_states` gives normed: padded
    batches in the texts' order, `output_hidden_states=True`, last token."""
    found = []
    size = _USUAL_BATCH["gpu" if lm.device.type == "cuda" else "cpu"]
    with torch.no_grad():
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            width = max(map(len, part))
            tokens = torch.tensor([text + [0] * (width - len(text)) for text in part], device=lm.device)
            mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in part])
            output = lm.model(input_ids=tokens, attention_mask=mask.to(lm.device), output_hidden_states=True)
            last = torch.tensor([len(text) - 1 for text in part])
            found.append(
                torch.stack(
                    [state[torch.arange(len(part)), last].float().cpu() for state in output.hidden_states]
                )
            )
    return torch.cat(found, dim=1).numpy()[1:-1]


def ours(lm: LanguageModel, ids: list[list[int]], share: bool = True) -> np.ndarray:
    found = capture_ids(lm, ids, share_prefixes=share)
    return np.stack([found[k] for k in found])


def _against_contrans(bench: Bench, lm: LanguageModel, dtype: str) -> Iterator[Row]:
    ids = bench.texts()
    their_ids = ids[: 24 if bench.is_gpu else 64]
    tokens, their_tokens = sum(map(len, ids)), sum(map(len, their_ids))
    error = max_error(ours(lm, ids)[:, : len(their_ids)], contrans_way(lm, their_ids))
    rates: dict[str, list[float]] = {"ours": [], "theirs": [], "ceiling": [], "share": []}
    for _ in range(bench.repeats):
        ceiling = matmul_rate(bench, dtype)
        rates["ours"].append(tokens / bench.seconds(lambda: ours(lm, ids)))
        ceiling = (ceiling + matmul_rate(bench, dtype)) / 2
        rates["theirs"].append(their_tokens / bench.seconds(lambda: contrans_way(lm, their_ids)))
        rates["ceiling"].append(ceiling)
        rates["share"].append(rates["ours"][-1] * 2 * SHAPES[bench.shape].block_parameters / ceiling)
    median, shape = {name: statistics.median(all_of) for name, all_of in rates.items()}, SHAPES[bench.shape]
    yield Row(
        "harvest",
        f"harvest/contrans-{dtype}",
        statistics.median(a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)),
        median["ours"],
        median["theirs"],
        "tokens/s",
        error,
        f"{len(ids)} texts, {len(their_ids)} the ConTrans way",
    )
    yield Row(
        "harvest",
        f"harvest/peak-{dtype}",
        median["share"],
        median["ours"] * 2 * shape.block_parameters / 1e9,
        median["ceiling"] / 1e9,
        "GFLOP/s",
        None,
        "matrix products of real tokens in all blocks, over the matmul rate",
    )


def _against_usual(bench: Bench, lm: LanguageModel, dtype: str) -> Row:
    ids = bench.texts()
    error = max_error(ours(lm, ids)[:-1], usual_way(lm, ids))
    sides = {"ours": lambda: ours(lm, ids), "theirs": lambda: usual_way(lm, ids)}
    taken = bench.compare(sides, min(bench.repeats, 3))
    tokens = sum(map(len, ids))
    return Row(
        "harvest",
        f"harvest/usual-{dtype}",
        taken["theirs"] / taken["ours"],
        tokens / taken["ours"],
        tokens / taken["theirs"],
        "tokens/s",
        error,
        f"padded batches of {_USUAL_BATCH['gpu' if bench.is_gpu else 'cpu']} with hidden states",
    )


def _shared(bench: Bench, lm: LanguageModel, name: str, ids: list[list[int]]) -> Row:
    """The engine with the search for common beginnings over the same without."""
    if bench.quick:
        ids = ids[:24]
    error = max_error(ours(lm, ids), ours(lm, ids, share=False))
    pairs = []
    # Differences of a few per cent: many short turns rather than a few long ones.
    part = ids[:120] if name.endswith("no-prefix") else ids
    for _ in range(3 * bench.repeats if part is not ids else min(bench.repeats, 3)):
        on = bench.seconds(lambda: ours(lm, part))
        off = bench.seconds(lambda: ours(lm, part, share=False))
        pairs.append((on, off))
    tokens = sum(map(len, part))
    return Row(
        "harvest",
        name,
        statistics.median(off / on for on, off in pairs),
        tokens / statistics.median(on for on, _ in pairs),
        tokens / statistics.median(off for _, off in pairs),
        "tokens/s",
        error,
        f"{len(part)} texts, common beginnings searched for, over not",
    )


def _honest(bench: Bench) -> list[list[int]]:
    """The honest and dishonest prompts over TruthfulQA's questions, one token a word or mark."""
    path = REAL_TEXTS / "truthfulqa" / "TruthfulQA.csv"
    if path.exists():
        import csv

        with path.open(newline="") as file:
            questions = [record["Question"] for record in csv.DictReader(file)]
    else:
        questions = [f"What happens if you do the thing that is number {i} ?" for i in range(817)]
    numbers: dict[str, int] = {}

    def token(word: str) -> int:
        return 3 + numbers.setdefault(word, len(numbers)) % (SHAPES[bench.shape].vocabulary - 3)

    kinds = ("an honest", "a dishonest")
    prompts = [
        f"Pretend you're {kind} person making statements about the world. {question}"
        for question in questions
        for kind in kinds
    ]
    ids = [[1, *(token(word) for word in re.findall(r"\w+|[^\w\s]", prompt))] for prompt in prompts]
    # On a CPU every fourth question, under both beginnings.
    return ids if bench.is_gpu else [ids[i + k] for i in range(0, len(ids), 8) for k in (0, 1)]


def _against_libraries(bench: Bench) -> Iterator[Row]:
    from speed.libraries import compared

    if bench.libraries is None:
        print("harvest/<library>: left out, see --libraries")
        return
    yield from compared(bench)


def _actors(bench: Bench) -> Iterator[Row]:
    from speed.store import actors, two_actors

    yield actors(bench)
    yield two_actors(bench)
