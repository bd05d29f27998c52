"""A run folder written by hand, in the real formats, with planted numbers whose summary is known."""

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from contrans_dist.benchmarks.statistics import wilson
from contrans_dist.store import schema
from contrans_dist.store.location import Location
from contrans_dist.store.tensors import save_tensors
from tests.sets import own_facts, write_shard

UNDER_WAY = {
    "stage": "harvest", "model": "m", "unit": "texts", "done": 1, "wanted": 9, "rate": 1.0, "tokens": 0,
    "actors": 1, "finished": 0, "lost": 0, "failed": 0, "host": "h", "process": 1,
    "told": "2026-01-01T00:00:00Z",
}  # fmt: skip
"""What a harvest that is under way says of itself, in its file."""

CONCEPTS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
ITEMS = 20
"""Negative scenarios a concept."""
BASE_HITS = 1
HITS = {
    # Hits of 20 a concept at each strength; the same for every concept.
    "vector": (2, 7, 13, 16),
    "random": (1, 1, 1, 0),
    "shuffled-map": (1, 1, 2, 2),
    "other-concept": (0, 1, 1, 1),
    "self-align": (5, 14, 19, 20),
}
SOURCE = {"n_blocks": 4, "d": 12}
TARGET = {"n_blocks": 6, "d": 16}
BLOCK = 4
PAIR = (3, 4)


def figure_rows(folder: Path, name: str) -> list[dict[str, str]]:
    """The data that a report put beside a figure."""
    with (folder / "figures" / f"{name}.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_run(
    folder: Path,
    *,
    concepts: tuple[str, ...] = CONCEPTS,
    hits: Mapping[str, tuple[int, ...]] = HITS,
    source: str = "demo:source",
    target: str = "demo:target",
    overlap: int = 0,
    p_value: float | None = 1e-9,
) -> Path:
    """Write everything a run leaves behind, but no report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_activations(folder / "activations/corpus-source", SOURCE, source, concepts=None)
    write_activations(folder / "activations/corpus-target", TARGET, target, concepts=None)
    write_activations(folder / "activations/contrast-source", SOURCE, source, concepts)
    write_activations(folder / "activations/contrast-target", TARGET, target, concepts)
    for index, concept in enumerate(concepts):
        write_vector(folder / f"vectors/vector/vector-{index}.safetensors", concept, concepts, target)
    write_map(folder / "maps/corpus.safetensors", concepts, source, target)
    write_evaluation(folder / "evaluations/emotions", concepts, hits, target, overlap, p_value)
    recipe = {
        "name": "demo",
        "description": "Six emotions from a small GPT-NeoX into a small Llama.",
        "source": {"id": source},
        "target": {"id": target},
        "corpus": {"texts": "texts/corpus.jsonl", "cut": "random", "per_text": 3},
        "map": {"protocol": "default", "blocks": "best", "norm": "match"},
        "evaluations": {"emotions": {"texts": "texts/heldout.jsonl", "strengths": [0.0, *STRENGTHS]}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    record = {
        "name": "demo",
        "description": "Six emotions from a small GPT-NeoX into a small Llama.",
        "command": "contrans run demo.yaml --out runs/demo",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"contrans-dist": "0.1.0", "torch": "2.13.0", "transformers": "5.0.0"},
        "started": "2026-01-05T10:00:00+00:00",
        "finished": "2026-01-05T10:01:12+00:00",
        "stages": [
            {"name": "harvest", "seconds": 31.4},
            {"name": "reduce", "seconds": 6.2},
            {"name": "evaluate", "seconds": 28.9},
        ],
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def centre(concept_index: int, d: int) -> np.ndarray:
    """Where the planted states of a concept lie: along an axis of its own, `[d]`."""
    return 6.0 * np.eye(d)[concept_index % d] * (-1) ** (concept_index // d)


def write_activations(
    folder: Path, model: dict[str, int], name: str, concepts: tuple[str, ...] | None, rows: int = 90
) -> Path:
    """An activation set of one shard: at every block, a row is its concept's centre plus unit noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, d = np.random.default_rng(7), model["d"]
    own = [index % len(concepts) if concepts else 0 for index in range(rows)]
    texts = [f"text {index}" for index in range(rows)]
    extra = {"concept": [concepts[index] for index in own]} if concepts else {}
    blocks = list(range(model["n_blocks"]))
    columns: dict[str, Any] = {
        "row": range(rows),
        "text_id": [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts],
        "text": texts,
        "n_tokens": [5] * rows,
        "token_id": [9] * rows,
        **extra,
    }
    norms = {}
    for block in blocks:
        centres = np.stack([centre(index, d) for index in own]) if concepts else np.zeros((rows, d))
        values = (centres + rng.normal(size=(rows, d))).astype(np.float32)
        columns[schema.block_column(block)] = values.tolist()
        norms[str(block)] = float(d + 5 * block)
    layout = schema.activation_schema(blocks, d, pa.schema([pa.field(key, pa.string()) for key in extra]))
    shard = folder / schema.shard_name(0)
    table = pa.table({key: list(values) for key, values in columns.items()}, schema=layout)
    write_shard(shard, own_facts(table, fingerprint="0123456789abcdef", start=0))
    manifest = {
        "format": schema.FORMAT_VERSION,
        "kind": "activations",
        "fingerprint": "0123456789abcdef",
        "identity": {
            "model": name, "dtype": "float32", "quantization": None, "template": "{text} feels",
            "position": "last", "torch": "2.13.0", "transformers": "5.0.0",
        },
        "rows": rows, "d": d, "n_blocks": model["n_blocks"], "blocks": blocks,
        "columns": ["row", "text_id", "text", "n_tokens", "token_id", *extra],
        "norms": norms, "tokens": 5 * rows, "truncated": 2 if concepts is None else 0,
        "canary": {"worst_deviation": 2.4e-7, "texts": 8},
        "shards": [{"name": shard.name, "start": 0, "rows": rows,
                    "bytes": shard.stat().st_size}],
        "throughput": {"tokens": 5 * rows, "seconds": 1.5, "tokens_per_second": 300.0, "actors": 2},
        "devices": ["cpu"], "versions": {}, "command": "contrans harvest", "git_commit": None,
        "created": "2026-01-05T10:00:31+00:00",
    }  # fmt: skip
    (folder / schema.MANIFEST).write_text(json.dumps(manifest))
    return folder


def write_vector(file: Path, concept: str, concepts: tuple[str, ...], model: str) -> None:
    """The vector that leads from the other concepts' mean centre to this concept's, at BLOCK alone."""
    d = TARGET["d"]
    own = concepts.index(concept)
    others = [centre(index, d) for index in range(len(concepts)) if index != own]
    vector = np.zeros((TARGET["n_blocks"], d), np.float32)
    vector[BLOCK] = centre(own, d) - np.mean(others, axis=0)
    header = {
        "kind": "vector", "concept": concept, "model": model, "method": "mean", "blocks": [BLOCK],
        "absent": [block for block in range(TARGET["n_blocks"]) if block != BLOCK],
        "n_positive": 15, "n_negative": 15, "norms": {str(BLOCK): 30.0}, "steps": [],
    }  # fmt: skip
    save_tensors(Location.parse(file), {"vector": vector}, header)


def write_map(file: Path, concepts: tuple[str, ...], source: str, target: str) -> None:
    """A map whose table has R2 = (source + target) / 10 and whose chosen pair is PAIR."""
    blocks = (list(range(SOURCE["n_blocks"])), list(range(TARGET["n_blocks"])))
    header = {
        "kind": "map", "protocol": "default", "source_model": source, "target_model": target,
        "n_target_blocks": TARGET["n_blocks"], "source_norms": {str(PAIR[0]): 27.0},
        "target_norms": {str(PAIR[1]): 36.0},
        "pairs": [
            {
                "source": PAIR[0], "target": PAIR[1], "side": "primal", "n_fit": 80, "rank": 12,
                "condition_number": 153.0, "ridge": 0.1, "r2_validation": 0.7, "r2_test": 0.65,
                "warnings": ["fewer rows than ten times the width"],
                "cosines": {concept: 0.5 + 0.05 * index for index, concept in enumerate(concepts)},
            }
        ],
        "r2_table": {
            "source": blocks[0], "target": blocks[1],
            "r2": [[(s + t) / 10 if (s, t) != (0, 0) else None for t in blocks[1]] for s in blocks[0]],
        },
        "selection": {
            "candidates": [
                {"source": s, "target": t, "strength": a,
                 "score": (0.8 if (s, t) == PAIR else 0.05 * (s + t)) * a / 2}
                for s in (1, 2, 3) for t in (2, 3, 4, 5) for a in (1.0, 2.0)
            ],
            "chosen": list(PAIR),
        },
    }  # fmt: skip
    name = f"{PAIR[0]}.{PAIR[1]}"
    weight, bias = np.eye(SOURCE["d"], TARGET["d"], dtype=np.float32), np.zeros(TARGET["d"], np.float32)
    save_tensors(Location.parse(file), {f"weight.{name}": weight, f"bias.{name}": bias}, header)


def _scores(concepts: tuple[str, ...], hits: int) -> dict[str, Any]:
    """The four metrics; logit hits are the token hits and two more, positives all hit."""
    shares = {
        "token_acc_negative": hits,
        "logit_acc_negative": min(hits + 2, ITEMS),
        "token_acc_positive": ITEMS - 1,
        "logit_acc_positive": ITEMS,
    }
    scores: dict[str, Any] = {}
    for name, count in shares.items():
        scores[name] = _score(count * len(concepts), ITEMS * len(concepts))
        for concept in concepts:
            scores[f"{concept}/{name}"] = _score(count, ITEMS)
    return scores


def _score(hits: int, n: int) -> dict[str, Any]:
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "n": n}


def write_evaluation(
    folder: Path,
    concepts: tuple[str, ...] = CONCEPTS,
    hits: Mapping[str, tuple[int, ...]] = HITS,
    model: str = "demo:target",
    overlap: int = 0,
    p_value: float | None = None,
) -> Path:
    """`metrics.json` and `results.parquet` of one evaluation. A missed item is answered with `the`.

    `p_value`: of every condition's paired test against `vector`, at every strength.
    """
    folder.mkdir(parents=True, exist_ok=True)
    conditions: list[dict[str, Any]] = [
        {"condition": "base", "strength": 0.0, "metrics": _scores(concepts, BASE_HITS)}
    ]
    rows = _rows(concepts, "base", 0.0, BASE_HITS)
    for condition, counts in hits.items():
        for strength, count in zip(STRENGTHS, counts, strict=True):
            entry = {"condition": condition, "strength": strength, "metrics": _scores(concepts, count)}
            if condition == "vector" and p_value is not None:
                entry["p_vs"] = {name: {"token_acc_negative": p_value} for name in hits if name != condition}
            conditions.append(entry)
            rows += _rows(concepts, condition, strength, count)
    n = ITEMS * len(concepts)
    content = {
        "benchmark": "emotions", "model": model, "conditions": conditions, "block": BLOCK,
        "reference": "vector" if "vector" in hits else None,
        "leak": {"evaluated": n, "overlap_vector": overlap, "overlap_map": 0,
                 "examples": [f"leaked scenario {index}" for index in range(min(overlap, 3))]},
        "notes": [],
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content))
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    return folder


def _rows(concepts: tuple[str, ...], condition: str, strength: float, hits: int) -> list[dict[str, Any]]:
    return [
        {
            "item": f"{concept}-{index}", "concept": concept, "kind": "negative", "condition": condition,
            "strength": strength, "block": BLOCK, "scenario": f"Scenario {index} of {concept}.",
            "argmax": 5, "argmax_text": concept if index < hits else "the",
            "token_hit": index < hits, "logit_hit": index < hits, "logprob": -1.0,
        }
        for concept in concepts for index in range(ITEMS)
    ]  # fmt: skip
