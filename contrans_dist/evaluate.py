"""The evaluation driver: a benchmark over a pool of actors, resumable, with the leak check beside it."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist import schema
from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.emotions import EmotionBenchmark
from contrans_dist.cluster import connected
from contrans_dist.conditions import Steering
from contrans_dist.config import (
    ClusterSettings,
    EvaluationSettings,
    ModelSettings,
    differing,
    fingerprint,
)
from contrans_dist.errors import RunError, UserError
from contrans_dist.leak import leak_report, overlap
from contrans_dist.manifest import model_identity
from contrans_dist.models import load_model, model_facts
from contrans_dist.models.placement import Placement
from contrans_dist.placing import place
from contrans_dist.pool import Task, run_tasks
from contrans_dist.progress import Progress, note
from contrans_dist.provenance import command_line, git_commit, now, versions
from contrans_dist.storage import Location

RESULTS, METRICS, PARTS = "results.parquet", "metrics.json", "parts"
_ITEMS_PER_SPLIT = 48


@dataclass(frozen=True)
class Split:
    """A run of items of one concept; small enough that losing one costs little."""

    index: int
    concept: str
    items: list[Any]

    @property
    def name(self) -> str:
        return f"part-{self.index:05d}.parquet"


@dataclass(frozen=True)
class EvaluationSpec:
    """Everything an actor needs besides its items."""

    model: ModelSettings
    benchmark: Benchmark
    steering: Steering
    strengths: tuple[float, ...]
    identity: dict[str, Any]
    out: Location


class EvaluationActor:
    """A loaded target model that scores splits under every condition."""

    def __init__(self, model: ModelSettings, placement: Placement) -> None:
        self.lm = load_model(model.id, **model.model_dump(exclude={"id"}), device=placement.device_map)

    def ready(self) -> str:
        return str(self.lm.device)

    def run(self, split: Split, spec: EvaluationSpec) -> int:
        """Score a split and publish its rows; returns how many there are."""
        ids = [item.id for item in split.items]
        interventions = spec.steering.interventions(split.concept, spec.strengths, ids)
        table = spec.benchmark.score(self.lm, split.items, interventions)
        facts = {"fingerprint": fingerprint(spec.identity), "identity": spec.identity}
        table = table.replace_schema_metadata({schema.METADATA_KEY: json.dumps(facts)})
        with (spec.out / PARTS / split.name).staged() as path:
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        return int(table.num_rows)


def evaluate(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: "Location | str",
    cluster: ClusterSettings | None = None,
    replace: bool = False,
    title: str | None = None,
) -> dict[str, Any]:
    """Score a model on a benchmark under every condition of `steering`; returns the content of metrics.json.

    Splits that are there are kept. A folder that holds another evaluation is refused (UserError, naming the
    fields), or begun anew with `replace`. `title` heads the progress. Raises RunError when splits failed.
    """
    out, cluster = Location.parse(out), cluster or ClusterSettings()
    if cluster.placement == "stream":
        raise UserError("--placement stream: steering needs the whole model; expected auto or device-map")
    benchmark = load_benchmark(settings)
    items = _asked_for(benchmark.items(), settings, steering)
    if settings.only_unseen:
        items = _unseen(items, steering, settings.texts)
    spec = EvaluationSpec(
        model=model,
        benchmark=benchmark,
        steering=steering,
        strengths=settings.strengths,
        identity=_identity(model, settings, steering, items),
        out=out,
    )
    finished = _found(spec, replace)
    if finished is not None:
        note(f"{out}: complete; nothing to do")
        return finished
    splits = plan_splits(items)
    throughput = _score_missing(spec, splits, cluster, title or f"evaluate {benchmark.name}")
    table = pa.concat_tables([_read_part(out / PARTS / split.name) for split in splits])
    with (out / RESULTS).staged() as path:
        pq.write_table(table, path, compression="zstd")
    metrics = _metrics(spec, items, table, throughput)
    (out / METRICS).write_json(metrics)
    (out / PARTS).delete_folder()
    return metrics


def load_benchmark(settings: EvaluationSettings) -> Benchmark:
    """The benchmark that settings name, over every concept of its data."""
    return EmotionBenchmark.load(
        settings.texts,
        protocol=settings.protocol,
        template=settings.template,
        shots=settings.shots,
        per_concept=settings.per_concept,
        labels=settings.labels or None,
        seed=settings.seed,
    )


def _asked_for(items: Sequence[Any], settings: EvaluationSettings, steering: Steering) -> list[Any]:
    """Items of the steered concepts (of all when nothing is steered) and of the kinds asked for.

    The other concepts stay in the benchmark: they give the scenarios and the labels to tell apart.
    """
    known = {item.concept for item in items}
    missing = [concept for concept in steering.concepts if concept not in known]
    if missing:
        there = ", ".join(sorted(known))
        raise UserError(f"{settings.texts}: no scenarios of {missing[0]!r}; there are {there}")
    concepts = set(steering.concepts) or known
    return [
        item
        for item in items
        if item.concept in concepts and getattr(item, "kind", None) in (None, *settings.kinds)
    ]


def _unseen(items: list[Any], steering: Steering, where: str) -> list[Any]:
    seen = np.concatenate([steering.vector_texts, steering.map_texts])
    leaked = set(overlap([item.scenario for item in items], seen))
    kept = [item for item in items if item.scenario not in leaked]
    if not kept:
        raise UserError(
            f"{where}: only_unseen leaves nothing: every scenario was seen by the vectors or the map"
        )
    return kept


def plan_splits(items: Sequence[Any]) -> list[Split]:
    """Items cut into runs of one concept each: a pure function of the items."""
    splits: list[Split] = []
    for concept in dict.fromkeys(item.concept for item in items):
        own = [item for item in items if item.concept == concept]
        for start in range(0, len(own), _ITEMS_PER_SPLIT):
            splits.append(Split(len(splits), concept, own[start : start + _ITEMS_PER_SPLIT]))
    return splits


def _identity(
    model: ModelSettings, settings: EvaluationSettings, steering: Steering, items: Sequence[Any]
) -> dict[str, Any]:
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    asked = hashlib.sha256(repr(list(items)).encode()).hexdigest()
    return {
        "benchmark": settings.benchmark,
        "protocol": settings.protocol,
        **model_identity(model, facts),
        "items": asked,
        "labels": settings.labels,
        "steering": steering.digest(),
        "strengths": list(settings.strengths),
    }


def _found(spec: EvaluationSpec, replace: bool) -> dict[str, Any] | None:
    """The metrics that are already there. Refuses, or clears away, what another evaluation left."""
    metrics, parts = spec.out / METRICS, spec.out / PARTS
    identity: dict[str, Any] | None = None
    content: dict[str, Any] | None = None
    if metrics.exists():
        content = dict(metrics.read_json())
        identity = content.get("identity")
    elif names := parts.names():
        identity = next(filter(None, (_part_identity(parts / name) for name in names)), None)
    if identity is None or identity == spec.identity:
        return content
    if not replace:
        fields = "; ".join(differing(identity, spec.identity))
        raise UserError(f"{spec.out}: holds another evaluation ({fields}); choose another --out")
    note(f"{spec.out}: settings have changed; it is evaluated anew")
    metrics.delete()
    parts.delete_folder()
    return None


def _part_identity(location: Location) -> dict[str, Any] | None:
    try:
        metadata = _read_part(location).schema.metadata or {}
        return dict(json.loads(metadata[schema.METADATA_KEY])["identity"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def _read_part(location: Location) -> pa.Table:
    with location.open() as source:
        return pq.read_table(source, page_checksum_verification=True)


def _score_missing(
    spec: EvaluationSpec, splits: list[Split], cluster: ClusterSettings, title: str
) -> dict[str, Any]:
    there = {name for name in (spec.out / PARTS).names() if _part_identity(spec.out / PARTS / name)}
    missing = [split for split in splits if split.name not in there]
    if there and missing:
        note(f"{spec.out}: {len(splits) - len(missing)} of {len(splits)} splits are there; going on")
    if not missing:
        return {}
    started = time.monotonic()
    scored = 0
    items_of = {split.name: len(split.items) for split in missing}
    with connected(cluster.address), Progress(title, sum(items_of.values()), "items") as progress:

        def keep(task: Task, rows: int) -> None:
            nonlocal scored
            scored += rows
            progress.advance(items_of[task.name])

        size, placement = place(spec.model, cluster, head=True)
        tasks = [Task(split.name, split) for split in missing]
        outcome = run_tasks(EvaluationActor, (spec.model, placement), tasks, size, keep, shared=spec)
    if outcome.failures:
        name, reason = next(iter(outcome.failures.items()))
        raise RunError(
            f"{spec.out}: {len(outcome.failures)} of {len(splits)} splits failed ({name}: {reason}); "
            "run the same command again to try only these"
        )
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 3), "rows": scored, "rows_per_second": round(scored / seconds, 1)}


def _metrics(
    spec: EvaluationSpec, items: Sequence[Any], table: pa.Table, throughput: dict[str, Any]
) -> dict[str, Any]:
    return {
        "benchmark": spec.benchmark.name,
        "model": spec.model.id,
        "protocol": spec.identity["protocol"],
        "block": spec.steering.blocks[0] if len(spec.steering.blocks) == 1 else None,
        "blocks": spec.steering.blocks,
        "strengths": list(spec.strengths),
        **spec.benchmark.summarise(table),
        "leak": leak_report(
            [item.scenario for item in items], spec.steering.vector_texts, spec.steering.map_texts
        ),
        "throughput": throughput,
        "identity": spec.identity,
        "fingerprint": fingerprint(spec.identity),
        "versions": versions(),
        "command": command_line(),
        "git_commit": git_commit(),
        "created": now(),
    }
