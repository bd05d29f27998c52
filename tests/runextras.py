"""More of what a run leaves behind, by hand: other benchmarks, searches, examples, tokens, analyses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.runfolder import CONCEPTS, write_run

Scores = Mapping[tuple[str, float], Mapping[str, float]]
"""(condition, strength) -> metric -> value"""

MC1 = {
    "base": 0.20,
    "vector": (0.26, 0.34, 0.30),
    "random": (0.20, 0.21, 0.19),
    "self-align": (0.27, 0.36, 0.33),
}
SYSTEMS = {"align-training": 0.37, "inst-align": 0.18, "proxy-tuning": 0.31}
SWEEP = (1.0, 2.0, 3.0)
TOXIC = {"base": 0.9, "vector": 0.3, "random": 0.88, "self-align": 0.2, "align-training": 0.05}
CHOSEN = {"vector": 1.5, "self-align": 1.0, "random": 1.5}
GROUPS = ("group one", "group two")
VILE = "vile words"
"""What every offensive text holds."""
COSTS = {
    "target": {"rows": 800, "forward_passes": 1234, "tokens": 56789, "seconds": 12.5},
    "proxy-tuning": {"rows": 200, "forward_passes": 600, "tokens": 7000, "seconds": 3.25},
}
PUBLISHED = {
    "source": "arXiv 0000.00000, Table 1",
    "remarks": "The strength is not told.",
    "values": {
        "all": {
            "truthfulqa": {"base": {"mc1": 0.179}, "vector": {"mc1": 0.365}, "proxy-tuning": {"mc1": 0.9}},
            "toxigen": {"vector": {"toxic_share": 0.341, "perplexity": 14.68}, "sum": {"toxic_share": 0.4}},
        }
    },
}


def score(value: float, n: int = 100, width: float = 0.05) -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width, "n": n}


def write_scores(folder: Path, benchmark: str, scores: Scores, **more: Any) -> Path:
    """`metrics.json` of one evaluation; `more` replaces or adds to its keys."""
    conditions = [
        {"condition": condition, "strength": strength,
         "metrics": {name: score(value) for name, value in metrics.items()},
         "p_vs_base": {}}
        for (condition, strength), metrics in scores.items()
    ]  # fmt: skip
    content = {
        "benchmark": benchmark, "model": "demo:target", "block": 4, "conditions": conditions, "leak": None,
        "notes": [], "costs": COSTS, **more,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def swept(planted: Mapping[str, Any], key: str, strengths: tuple[float, ...] = SWEEP) -> dict[Any, Any]:
    """Scores of `base` and of every condition over strengths, from `{condition: values}`."""
    scores: dict[Any, Any] = {("base", 0.0): {key: planted["base"]}}
    for condition, values in planted.items():
        if condition != "base":
            scores |= {(condition, at): {key: value} for at, value in zip(strengths, values, strict=True)}
    return scores


def write_truthfulqa(folder: Path, planted: Mapping[str, Any] = MC1) -> Path:
    """A sweep, beside three systems that are no vectors (strength 1)."""
    scores = swept(planted, "mc1") | {(name, 1.0): {"mc1": value} for name, value in SYSTEMS.items()}
    scores = {key: {**metrics, "mc2": metrics["mc1"] + 0.1} for key, metrics in scores.items()}
    return write_scores(folder, "truthfulqa", scores)


def write_perplexity(folder: Path) -> Path:
    """Perplexity 12 without steering, and 1 more at each unit of strength (0.1 under `random`)."""
    planted = {
        "base": 12.0,
        "vector": [12 + at for at in SWEEP],
        "self-align": [12 + 0.5 * at for at in SWEEP],
        "random": [12 + 0.1 * at for at in SWEEP],
    }
    return write_scores(folder, "perplexity", swept(planted, "perplexity"))


def write_toxigen(folder: Path) -> Path:
    """One chosen strength a condition, with the search behind it, and offensive continuations."""
    scores = {}
    for condition, value in TOXIC.items():
        at = 0.0 if condition == "base" else CHOSEN.get(condition, 1.0)
        scores[condition, at] = {
            "toxic_share": value, "empty_share": 0.01, "repetition": 0.02,
            **{f"{group}/toxic_share": value for group in GROUPS},
        }  # fmt: skip
    write_scores(folder, "toxigen", scores)
    strengths, toxic = (0.5, 1.0, 1.5), {"vector": (0.8, 0.6, 0.3), "self-align": (0.5, 0.2, 0.25)}
    costs = {"vector": (12.1, 12.5, 13.0), "self-align": (12.0, 12.2, 13.9)}
    write_scores(
        folder / "validation", "toxigen",
        swept({"base": 0.9, **toxic}, "validation_toxic_share", strengths),
    )  # fmt: skip
    write_scores(folder / "perplexity", "perplexity", swept({"base": 12.0, **costs}, "perplexity", strengths))
    candidates = [
        {"condition": name, "strength": at, "score": toxic[name][place], "perplexity": costs[name][place]}
        for name in toxic for place, at in enumerate(strengths)
    ]  # fmt: skip
    search = {"criterion": "toxic_share", "higher": False, "budget": 1.1, "base_perplexity": 12.0,
              "candidates": candidates, "chosen": CHOSEN}  # fmt: skip
    (folder / "search.json").write_text(json.dumps(search))
    rows = [
        {"item": f"evaluation/{group}/{index}", "concept": "kindness", "kind": "evaluation", "group": group,
         "condition": condition, "strength": strength, "block": 4,
         "prompt": f"Prompt {index} with {VILE} on {group}",
         "continuation": f"{VILE} {index} under {condition}", "toxicity": 0.75, "toxic": True}
        for (condition, strength) in scores for group in GROUPS for index in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    return folder


def write_examples(folder: Path, concepts: tuple[str, ...] = CONCEPTS, each: int = 3) -> None:
    """Continuations of `each` prompts a concept, unsteered and under two conditions at two strengths."""
    points = [("base", 0.0), ("vector", 1.0), ("vector", 2.0), ("self-align", 2.0)]
    rows = [
        {"concept": concept, "item": f"{concept}-{index}", "kind": "negative",
         "prompt": f"Scenario {index} of {concept}.", "condition": condition, "strength": strength,
         "continuation": f" {concept} {index} as {condition} at {strength:g} would say it."}
        for concept in concepts for index in range(each) for condition, strength in points
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")


def write_tokens(folder: Path, concepts: tuple[str, ...] = CONCEPTS) -> None:
    """Two tokens that rise and one that falls, for each concept at two strengths."""
    rows = [
        {"concept": concept, "condition": "vector", "strength": strength, "direction": direction,
         "token_id": 7, "token_text": text, "count": count, "n_prompts": 40}
        for concept in concepts for strength in (1.0, 2.0)
        for direction, text, count in (
            ("up", "\n", int(3 * strength)), ("up", f" {concept}", int(19 * strength)), ("down", "the", 11),
        )
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "tokens.parquet")


def write_analyses(folder: Path, concepts: tuple[str, ...] = CONCEPTS, rows: int = 20) -> None:
    """Projections of both sides at two blocks, and how alike three maps are."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for kind in ("states", "differences"):
        for side in ("source", "target"):
            points = [
                {"side": side, "model": f"demo:{side}", "block": block, "concept": concept,
                 "x": float(4 * index + rng.normal()), "y": float((index % 3) * 4 + rng.normal())}
                for block in (2, 4) for index, concept in enumerate(concepts) for _ in range(rows)
            ]  # fmt: skip
            pq.write_table(pa.Table.from_pylist(points), folder / f"{kind}-{side}.parquet")
    alike = [{"a": a, "b": b, "similarity": 1.0 - 0.3 * abs(i - j)}
             for i, a in enumerate(concepts[:3]) for j, b in enumerate(concepts[:3])]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(alike), folder / "map-similarity.parquet")


def write_whole_run(folder: Path, published: dict[str, Any] | None = PUBLISHED, **settings: Any) -> Path:
    """A run with four evaluations and everything that a report can show."""
    write_run(folder, **settings)
    concepts = settings.get("concepts", CONCEPTS)
    write_examples(folder / "evaluations/emotions", concepts)
    write_tokens(folder / "evaluations/emotions", concepts)
    write_truthfulqa(folder / "evaluations/truthfulqa")
    write_toxigen(folder / "evaluations/toxigen")
    write_perplexity(folder / "evaluations/perplexity")
    write_analyses(folder / "analyses", concepts)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    names = ("emotions", "truthfulqa", "toxigen", "perplexity")
    recipe["evaluations"] = {name: {"benchmark": name} for name in names}
    recipe["published"] = published
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    return folder


def write_runs(
    folder: Path, runs: Mapping[str, Mapping[str, Any]], planted: Mapping[str, Mapping[str, Any]], **top: Any
) -> Path:
    """A recipe of several runs, each with a TruthfulQA evaluation (`planted`: run -> condition -> values).

    `runs`: name -> settings of its recipe; `top`: further keys of the recipe of all.
    """
    recipe = {"name": "several", "description": "Several runs.", "runs": {name: {} for name in runs}, **top}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    for name, settings in runs.items():
        run = folder / "runs" / name
        write_truthfulqa(run / "evaluations/truthfulqa", planted[name])
        own = {
            "name": "several",
            "source": {"id": "demo:source"},
            "target": {"id": "demo:target"},
            **settings,
        }
        (run / "recipe.yaml").write_text(yaml.safe_dump(own, sort_keys=False, allow_unicode=True))
        (run / "run.json").write_text(json.dumps({"name": "several"}))
    return folder
