"""The harvest driver: shards of texts over a pool of actors, exactly once on disk."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch
from pyarrow import fs

from contrans_dist import schema
from contrans_dist.actors import of_each, on_a_node
from contrans_dist.artifacts import ActivationSet
from contrans_dist.claims import Claim, claimed
from contrans_dist.cluster import Replicas, connected, first_line, replicas
from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings, differing
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvesters import SLOTS, HarvestActor, SweepActor
from contrans_dist.leftout import check_left_out
from contrans_dist.limits import CHUNKS, MANIFEST_BYTES, SHARDS, check_size
from contrans_dist.manifest import identity_of, manifest_of, warn
from contrans_dist.models import ModelFacts, model_facts, resolve_blocks
from contrans_dist.models.placement import Placement
from contrans_dist.placing import place
from contrans_dist.pool import Outcome, Task, run_tasks
from contrans_dist.progress import Progress, note
from contrans_dist.quantized import quantization_check
from contrans_dist.setmanifest import Manifest, OtherFormatError
from contrans_dist.shardfiles import (
    ROW_GROUP,
    HarvestSpec,
    Shard,
    ShardReport,
    Unit,
    check_shard,
    read_norms,
    shard_identity,
)
from contrans_dist.shards import plan_shards, rows_per_shard
from contrans_dist.storage import Location
from contrans_dist.streamed import SweepReport, SweepTask, clean, plan_sweeps
from contrans_dist.texts import prompts, template_fields, texts_hash


@dataclass(frozen=True)
class HarvestJob:
    """One activation set to be made: these texts, captured so, into that folder."""

    texts: pa.Table
    out: Location
    capture: CaptureSettings
    source: Location | None = None
    """The file that the texts are of, to name it in messages."""
    skip_bad: bool = False
    """Leave out texts that cannot be run."""


def harvest(
    model: ModelSettings,
    texts: pa.Table,
    out: "Location | str",
    capture: CaptureSettings | None = None,
    cluster: ClusterSettings | None = None,
    source: Location | None = None,
    skip_bad: bool = False,
) -> ActivationSet:
    """Harvest a model's residual stream on `texts` (a table of `texts.text_table`) into an activation set.

    What is already there, whole and of the same fingerprint is kept; the rest is computed. `source`: the file
    that the texts are of. `skip_bad`: texts that cannot be run are left out. Raises UserError when the folder
    holds a harvest under other settings (naming the fields) or a text cannot be run (naming it, when all
    others are done), RunError when shards failed.
    """
    job = HarvestJob(texts, Location.parse(out), capture or CaptureSettings(), source, skip_bad)
    return harvest_sets(model, [job], cluster)[0]


def harvest_sets(
    model: ModelSettings, jobs: Sequence[HarvestJob], cluster: ClusterSettings | None = None
) -> list[ActivationSet]:
    """Several activation sets of one model, for which each actor loads it once. As `harvest` otherwise."""
    cluster = cluster or ClusterSettings()
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    sets = [_Set.of(model, facts, job) for job in jobs]
    with connected(cluster.address), ExitStack() as claims:
        for each in sets:
            each.check_existing()
        unfinished = [each for each in sets if not each.complete]
        for each in unfinished:
            each.claim = claims.enter_context(claimed(each.spec.out, each.spec.identity))
            # It may have been written meanwhile.
            _refuse_other(each.spec, _identity_there(each.spec.out, _manifest_there(each.spec)))
        if any(each.missing for each in unfinished):
            _compute_missing(model, unfinished, cluster)
        if model.quantization is not None:
            for each in unfinished:
                each.quantization = _checked(model, each.spec, cluster)
        made: list[ActivationSet] = []
        wrong: list[UserError | RunError] = []
        for each in sets:
            try:
                made.append(each.finish(facts))
            except (UserError, RunError) as error:  # the other sets are whole all the same
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return made


def _checked(model: ModelSettings, spec: HarvestSpec, cluster: ClusterSettings) -> dict[str, Any]:
    """What was measured of the quantised model; why not, where the unquantised one could not be run."""
    try:
        return dict(on_a_node(quantization_check, replicas(cluster), model, spec))
    except (RunError, UserError, MemoryError, torch.OutOfMemoryError) as error:
        return {"texts": 0, "reason": f"not measured: {first_line(error)}"}


def prompts_of(facts: ModelFacts, job: HarvestJob) -> str:
    """Identity of the prompts as they are run: a chat template may write what no setting tells."""
    capture = job.capture
    rendered = facts.prompts(prompts(job.texts, capture.template), capture.chat, capture.chat_date)
    return texts_hash(rendered)


@dataclass
class _Set:
    """One activation set on its way: what is planned, what is there."""

    spec: HarvestSpec
    job: HarvestJob
    shards: list[Shard]
    manifest: dict[str, Any] | None
    chosen: tuple[int, ...]
    """The blocks that were asked for: the folder's set may hold more."""
    reports: dict[int, ShardReport] = field(default_factory=dict)
    throughput: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    """What was measured of the quantised model."""
    claim: Claim | None = None
    """On the folder; None where nothing is left to do."""

    @classmethod
    def of(cls, model: ModelSettings, facts: ModelFacts, job: HarvestJob) -> "_Set":
        if job.capture.template is not None:
            template_fields(job.capture.template)
        blocks = resolve_blocks(job.capture.blocks, facts.n_blocks)
        size = rows_per_shard(job.texts.num_rows, len(blocks), facts.d, job.capture.shard_size)
        check_size("--shard-size", -(-job.texts.num_rows // size), SHARDS, "shards")
        chunks = -(-size // ROW_GROUP) * (len(blocks) + job.texts.num_columns + 2)
        check_size("--shard-size", chunks, CHUNKS, "column chunks in a shard")
        identity = identity_of(model, facts, job.capture, blocks, size, job.texts, prompts_of(facts, job))
        spec = HarvestSpec(identity, job.capture, blocks, facts.d, job.out)
        _refuse_folders(spec.out)
        manifest = _manifest_there(spec)
        found = _identity_there(spec.out, manifest)
        if found is not None:
            spec = replace(spec, identity=holding_more(found, identity, job.capture.shard_size is None))
            spec = replace(spec, blocks=list(spec.identity["blocks"]))
        _refuse_other(spec, found)
        shards = plan_shards(job.texts.num_rows, spec.identity["shard_size"])
        return cls(spec, job, shards, manifest, chosen=tuple(blocks))

    @property
    def texts(self) -> pa.Table:
        return self.job.texts

    @property
    def complete(self) -> bool:
        return self.manifest is not None and not self.missing

    @property
    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.index not in self.reports]

    def units(self) -> list[Unit]:
        """The missing shards, with their texts."""
        return [Unit(self.spec, shard, self.texts.slice(shard.start, shard.rows)) for shard in self.missing]

    def check_existing(self) -> None:
        """Take in the shards that are there and sound, by their footers. In parallel: they may be many."""
        out = self.spec.out
        out.sweep()
        names = set(out.names())
        entries = {}
        if self.manifest is not None:
            model = Manifest.of(self.manifest, out / schema.MANIFEST)
            entries = {entry.name: entry for entry in model.shards}
        there = [shard for shard in self.shards if shard.name in names]
        results = of_each(check_shard, [(self.spec, shard, entries.get(shard.name)) for shard in there])
        for shard, result in zip(there, results, strict=True):
            if isinstance(result, str):
                note(f"{out / shard.name}: {result}; it is computed again")
            else:
                self.reports[shard.index] = result
        if self.complete:
            note(f"{out}: complete, {self.texts.num_rows:,} rows; nothing to do")
        elif self.reports:
            note(f"{out}: {len(self.reports)} of {len(self.shards)} shards are there; going on with the rest")

    def finish(self, facts: ModelFacts) -> ActivationSet:
        """Write the manifest, last of all: its being there means that the set is whole.

        Raises as `check_left_out`, when all that can be done is done.
        """
        written = self.complete and not self.throughput
        if not written:
            self._confirm()
        skipped = [each for shard in self.shards for each in self.reports[shard.index].skipped]
        check_left_out(self.spec.out, skipped, self.texts, self.job.source, self.job.skip_bad)
        if self.manifest is None or not written:
            reports = [self._with_norms(shard) for shard in self.shards]
            self.manifest = manifest_of(
                self.spec, facts, self.texts, reports, self.throughput, self.quantization
            )
            (self.spec.out / schema.MANIFEST).write_json(self.manifest)
            warn(self.manifest, self.spec.out)
        return ActivationSet(self.spec.out, self.manifest, self.chosen)

    def _confirm(self) -> None:
        """Take the shards as they are there now: another run of the same harvest may have written some too.

        Raises RunError where one is not this harvest's.
        """
        if self.claim is not None:
            self.claim.check()
        found = of_each(check_shard, [(self.spec, shard, None) for shard in self.shards])
        wrong = [(s.name, each) for s, each in zip(self.shards, found, strict=True) if isinstance(each, str)]
        if wrong:
            raise RunError(
                f"{self.spec.out}: {len(wrong)} of {len(self.shards)} shards are not as they were written "
                f"({': '.join(wrong[0])}); run the same command again to make only these"
            )
        for each in found:
            if each.footer != self.reports[each.index].footer:
                self.reports[each.index] = each

    def _with_norms(self, shard: Shard) -> ShardReport:
        report = self.reports[shard.index]
        return report if report.norms is not None else replace(report, norms=read_norms(self.spec, shard))


def _manifest_there(spec: HarvestSpec) -> dict[str, Any] | None:
    """The folder's manifest; None where there is none, or one that does not add up: it is written anew."""
    location = spec.out / schema.MANIFEST
    if not location.exists():
        return None
    try:
        content: dict[str, Any] = location.read_json(MANIFEST_BYTES)
        Manifest.of(content, location)
    except OtherFormatError:
        raise
    except UserError as error:
        note(f"{error}, which this is")
        return None
    return content


def _refuse_folders(out: Location) -> None:
    """Raise UserError where a folder has the name of a file of the set: only its owner can move it."""
    for info in out.entries():
        name = info.base_name
        if info.type is fs.FileType.Directory and (name == schema.MANIFEST or name.startswith("shard-")):
            raise UserError(f"{out / name}: expected a place for a file, there is a folder")


def _identity_there(out: Location, manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the rows in the folder were harvested as; None where there are none."""
    if manifest is not None:
        return manifest.get("identity")
    names = (name for name in out.names() if name.startswith("shard-"))
    identities = (shard_identity(out / name) for name in names)
    return next((identity for identity in identities if identity is not None), None)


def holding_more(found: dict[str, Any], asked: dict[str, Any], any_size: bool) -> dict[str, Any]:
    """What is asked for, as a set that is there holds it: with all of its blocks, if those that are asked for
    are among them, and cut into shards as it is, unless their size was asked for."""
    held, size = found.get("blocks"), found.get("shard_size")
    if not isinstance(held, list) or not set(asked["blocks"]) <= set(held):
        return asked
    taken = {**asked, "blocks": held}
    return {**taken, "shard_size": size} if any_size and isinstance(size, int) and size > 0 else taken


def _refuse_other(spec: HarvestSpec, found: dict[str, Any] | None) -> None:
    """Raise UserError when the folder holds rows harvested under another identity."""
    if found is not None and found != spec.identity:
        fields = "; ".join(differing(found, spec.identity))
        raise UserError(f"{spec.out}: holds a harvest under other settings ({fields}); choose another --out")


def _compute_missing(model: ModelSettings, sets: list[_Set], cluster: ClusterSettings) -> None:
    """Make every missing shard of every set over one pool. Raises RunError when some failed for good."""
    began = time.monotonic()
    size, placement = place(
        model,
        cluster,
        head=False,
        highest_block=max(max(each.spec.blocks) for each in sets),
        batch_tokens=max(each.spec.capture.batch_tokens for each in sets),
    )
    # Texts travel with their shard: an actor's own arguments must not depend on a node that may be lost.
    owned = [(each, unit) for each in sets for unit in each.units()]
    units = {unit.name: unit for _, unit in owned}
    owner = {unit.name: each for each, unit in owned}
    title = f"harvest {model.id.rstrip('/').rsplit('/', 1)[-1]}"
    fresh: dict[str, ShardReport] = {}
    failures: dict[str, str] = {}
    with Progress(title, sum(unit.shard.rows for unit in units.values()), "texts") as progress:

        def reached(besides: float = 0.0) -> None:
            done = sum(report.rows + len(report.skipped) for report in fresh.values())
            progress.reach(int(done + besides))

        def keep(task: Task, result: ShardReport | SweepReport) -> None:
            for line in result.notes:
                progress.note(line)
            reports = result.reports if isinstance(result, SweepReport) else {task.name: result}
            for name, report in reports.items():
                owner[name].reports[report.index] = report
                fresh[name] = report
            reached()
            if isinstance(result, SweepReport):
                failures.update(result.failures)

        if placement.kind == "stream":
            sweeps = _sweeps(sets, units, size.actors)
            outcome = run_tasks(SweepActor, (model,), sweeps, size, keep, on_progress=reached)
        else:
            tasks = [Task(name, unit, unit.rows["text"].nbytes) for name, unit in units.items()]
            highest = max(max(each.spec.blocks) for each in sets)
            outcome = run_tasks(HarvestActor, (model, highest, placement), tasks, size, keep, slots=SLOTS)
    failures |= outcome.failures
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(
            f"{sum(len(each.missing) for each in sets)} of {len(units)} shards failed ({name}: {reason}); "
            "run the same command again to try only these"
        )
    throughput = _throughput(list(fresh.values()), began, outcome, size, placement)
    for each in sets:
        clean(each.spec.out)
        own = sum(report.tokens for name, report in fresh.items() if owner[name] is each)
        each.throughput = {"tokens": own, **throughput}


def _sweeps(sets: list[_Set], units: dict[str, Unit], actors: int) -> list[Task]:
    """The missing shards, each actor's share of them as one task."""
    planned = plan_sweeps([(each.spec, each.shards) for each in sets], actors)
    return [
        Task(f"sweep {key}", SweepTask(key, [units[name] for name in units if name in names]))
        for key, names in planned.items()
        if names & set(units)
    ]


def _throughput(
    reports: list[ShardReport], began: float, outcome: Outcome, size: Replicas, placement: Placement
) -> dict[str, Any]:
    """What the manifest says of speed; the rate counts from when the first actor was up."""
    tokens, seconds = sum(report.tokens for report in reports), time.monotonic() - outcome.began
    works = [report.work for report in reports if report.work is not None]
    spans = [
        max(work.ended for work in own) - min(work.began for work in own)
        for own in ([w for w in works if w.process == process] for process in {w.process for w in works})
    ]
    capturing = sum(work.capturing for work in works)
    return {
        # Of all sets that were harvested together.
        "seconds": round(seconds, 3),
        "seconds_starting": round(outcome.began - began, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        # Summed over the actors; not capturing, an actor waits for a write or for its next shard.
        "seconds_capturing": round(capturing, 3),
        "seconds_waiting_for_writes": round(sum(spans) - capturing, 3),
        "actors": min(size.actors, len(reports)),
        "cpus_per_actor": size.cpus,
        "gpus_per_actor": size.gpus,
        "lost_actors": outcome.lost_actors,
        "placement": placement.kind,
        "placement_reason": placement.reason,
    }
