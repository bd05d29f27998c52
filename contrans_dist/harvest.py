"""The harvest driver: shards of texts over a pool of actors, exactly once on disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from contrans_dist import schema
from contrans_dist.artifacts import ActivationSet
from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings, differing
from contrans_dist.errors import RunError, UserError
from contrans_dist.manifest import identity_of, manifest_of, warn
from contrans_dist.models import ModelFacts, load_model, model_facts, resolve_blocks
from contrans_dist.pool import Task, connected, replicas, run_tasks
from contrans_dist.progress import Progress, note
from contrans_dist.shards import (
    HarvestSpec,
    Shard,
    ShardReport,
    check_shard,
    compute_shard,
    plan_shards,
    rows_per_shard,
    shard_identity,
)
from contrans_dist.storage import Location
from contrans_dist.texts import template_fields


@dataclass(frozen=True)
class HarvestJob:
    """One activation set to be made: these texts, captured so, into that folder."""

    texts: pa.Table
    out: Location
    capture: CaptureSettings


class HarvestActor:
    """A loaded model on one node that turns shards into files."""

    def __init__(self, model: ModelSettings, highest_block: int) -> None:
        self.lm = load_model(
            model.id,
            dtype=model.dtype,
            quantization=model.quantization,
            highest_block=highest_block,
            head=False,
            trust_remote_code=model.trust_remote_code,
        )

    def ready(self) -> str:
        return str(self.lm.device)

    def run(self, payload: tuple[HarvestSpec, Shard, pa.Table]) -> ShardReport:
        spec, shard, rows = payload
        return compute_shard(self.lm, rows, spec, shard)


def harvest(
    model: ModelSettings,
    texts: pa.Table,
    out: "Location | str",
    capture: CaptureSettings | None = None,
    cluster: ClusterSettings | None = None,
) -> ActivationSet:
    """Harvest a model's residual stream on `texts` (a table of `texts.text_table`) into an activation set.

    What is already there, whole and of the same fingerprint is kept; the rest is computed. Raises UserError
    when the folder holds a harvest under other settings (naming the fields), RunError when shards failed.
    """
    job = HarvestJob(texts, Location.parse(out), capture or CaptureSettings())
    return harvest_sets(model, [job], cluster)[0]


def harvest_sets(
    model: ModelSettings, jobs: Sequence[HarvestJob], cluster: ClusterSettings | None = None
) -> list[ActivationSet]:
    """Several activation sets of one model, for which each actor loads it once. As `harvest` otherwise."""
    cluster = cluster or ClusterSettings()
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    sets = [_Set.of(model, facts, job) for job in jobs]
    with connected(cluster.address):
        for each in sets:
            each.check_existing()
        unfinished = [each for each in sets if not each.complete]
        if unfinished:
            _compute_missing(model, unfinished, cluster)
    return [each.finish(facts) for each in sets]


@dataclass
class _Set:
    """One activation set on its way: what is planned, what is there."""

    spec: HarvestSpec
    texts: pa.Table
    shards: list[Shard]
    manifest: dict[str, Any] | None
    reports: dict[int, ShardReport] = field(default_factory=dict)
    throughput: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModelSettings, facts: ModelFacts, job: HarvestJob) -> "_Set":
        if job.capture.template is not None:
            template_fields(job.capture.template)
        blocks = resolve_blocks(job.capture.blocks, facts.n_blocks)
        size = rows_per_shard(job.texts.num_rows, len(blocks), facts.d, job.capture.shard_size)
        identity = identity_of(model, facts, job.capture, blocks, size, job.texts)
        spec = HarvestSpec(identity, job.capture, blocks, facts.d, job.out)
        manifest = _manifest_there(spec)
        _refuse_other(spec, manifest)
        return cls(spec, job.texts, plan_shards(job.texts.num_rows, size), manifest)

    @property
    def complete(self) -> bool:
        return self.manifest is not None and not self.missing

    @property
    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.index not in self.reports]

    def check_existing(self) -> None:
        """Take in the shards that are there and sound. Checked in parallel: they may be many."""
        out = self.spec.out
        out.sweep()
        names = set(out.names())
        sums = {entry["name"]: entry["sha256"] for entry in self.manifest["shards"]} if self.manifest else {}
        there = [shard for shard in self.shards if shard.name in names]
        check = ray.remote(check_shard)
        references = [check.remote(self.spec, shard, sums.get(shard.name)) for shard in there]
        for shard, result in zip(there, ray.get(references), strict=True):
            if isinstance(result, str):
                note(f"{out / shard.name}: {result}; it is computed again")
            else:
                self.reports[shard.index] = result
        if self.complete:
            note(f"{out}: complete, {self.texts.num_rows:,} rows; nothing to do")
        elif self.reports:
            note(f"{out}: {len(self.reports)} of {len(self.shards)} shards are there; going on with the rest")

    def finish(self, facts: ModelFacts) -> ActivationSet:
        """Write the manifest, last of all: its being there means that the set is whole."""
        if self.manifest is None or not self.complete or self.throughput:
            reports = [self.reports[shard.index] for shard in self.shards]
            self.manifest = manifest_of(self.spec, facts, self.texts, reports, self.throughput)
            (self.spec.out / schema.MANIFEST).write_json(self.manifest)
            warn(self.manifest, self.spec.out)
        return ActivationSet(self.spec.out, self.manifest)


def _manifest_there(spec: HarvestSpec) -> dict[str, Any] | None:
    location = spec.out / schema.MANIFEST
    return dict(location.read_json()) if location.exists() else None


def _refuse_other(spec: HarvestSpec, manifest: dict[str, Any] | None) -> None:
    """Raise UserError when the folder holds rows harvested under another identity."""
    if manifest is not None:
        found = manifest.get("identity")
    else:
        names = (name for name in spec.out.names() if name.startswith("shard-"))
        identities = (shard_identity(spec.out / name) for name in names)
        found = next((identity for identity in identities if identity is not None), None)
    if found is not None and found != spec.identity:
        fields = "; ".join(differing(found, spec.identity))
        raise UserError(f"{spec.out}: holds a harvest under other settings ({fields}); choose another --out")


def _compute_missing(model: ModelSettings, sets: list[_Set], cluster: ClusterSettings) -> None:
    """Run every missing shard of every set over one pool. Raises RunError when some failed for good."""
    size = replicas(cluster)
    # Texts travel with their shard: an actor's own arguments must not depend on a node that may be lost.
    tasks = {
        f"{each.spec.out}/{shard.name}": (each, shard, each.texts.slice(shard.start, shard.rows))
        for each in sets
        for shard in each.missing
    }
    title = f"harvest {model.id.rstrip('/').rsplit('/', 1)[-1]}"
    started, fresh = time.monotonic(), dict.fromkeys((each.spec.out for each in sets), 0)
    with Progress(title, sum(shard.rows for _, shard, _ in tasks.values()), "texts") as progress:

        def keep(task: Task, report: ShardReport) -> None:
            each = tasks[task.name][0]
            each.reports[report.index] = report
            fresh[each.spec.out] += report.tokens
            progress.advance(report.rows)

        payloads = [Task(name, (each.spec, shard, rows)) for name, (each, shard, rows) in tasks.items()]
        highest = max(max(each.spec.blocks) for each in sets)
        outcome = run_tasks(HarvestActor, (model, highest), payloads, size, keep)
    if outcome.failures:
        name, reason = next(iter(outcome.failures.items()))
        raise RunError(
            f"{len(outcome.failures)} of {len(tasks)} shards failed ({name}: {reason}); "
            "run the same command again to try only these"
        )
    seconds = time.monotonic() - started
    for each in sets:
        each.throughput = {
            "tokens": fresh[each.spec.out],
            "seconds": round(seconds, 3),
            "tokens_per_second": round(sum(fresh.values()) / seconds, 1),
            "actors": min(size.actors, len(tasks)),
            "cpus_per_actor": size.cpus,
            "gpus_per_actor": size.gpus,
            "lost_actors": outcome.lost_actors,
        }
