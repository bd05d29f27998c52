"""The harvest driver: shards of texts over a pool of actors, exactly once on disk."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import torch

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.console import Progress
from contrans_dist.distributed.actors import on_a_node
from contrans_dist.distributed.cluster import Replicas, connected, first_line, replicas
from contrans_dist.distributed.placement import place
from contrans_dist.distributed.pool import Outcome, Task, run_tasks
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.actors import SLOTS, HarvestActor, SweepActor
from contrans_dist.harvest.quantization_check import quantization_check
from contrans_dist.harvest.shard_files import HarvestSpec, ShardReport, Unit
from contrans_dist.harvest.sweep import SweepReport, SweepTask, clean, plan_sweeps
from contrans_dist.harvest.underway import HarvestJob, Underway
from contrans_dist.models import model_facts
from contrans_dist.models.placement import Placement
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import QuantizationCheck, Throughput
from contrans_dist.store.results import plain

__all__ = ["HarvestJob", "harvest", "harvest_sets"]


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

    What is already there, whole and of the same fingerprint is kept; the rest is computed, also where texts
    were appended behind those that the folder's set is of. `source`: the file that the texts are of.
    `skip_bad`: texts that cannot be run are left out. Raises UserError when the folder holds a harvest under
    other settings (naming the fields), or of texts that do not begin these (naming the first row that
    differs), or a text cannot be run (naming it, when all others are done), RunError when shards failed.
    """
    job = HarvestJob(texts, Location.parse(out), capture or CaptureSettings(), source, skip_bad)
    return harvest_sets(model, [job], cluster)[0]


def harvest_sets(
    model: ModelSettings, jobs: Sequence[HarvestJob], cluster: ClusterSettings | None = None
) -> list[ActivationSet]:
    """Several activation sets of one model, for which each actor loads it once. As `harvest` otherwise."""
    cluster = cluster or ClusterSettings()
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    sets = [Underway.of(model, facts, job) for job in jobs]
    with connected(cluster.address), ExitStack() as claims:
        for underway in sets:
            underway.check_existing()
        unfinished = [underway for underway in sets if not underway.complete]
        for underway in unfinished:
            underway.hold(claims.enter_context(claimed(underway.spec.out, plain(underway.spec.identity))))
        if any(underway.missing for underway in unfinished):
            _compute_missing(model, unfinished, cluster)
        if model.quantization is not None:
            for underway in unfinished:
                underway.quantization = _checked(model, underway.spec, cluster)
        made: list[ActivationSet] = []
        wrong: list[UserError | RunError] = []
        for underway in sets:
            try:
                made.append(underway.finish(facts))
            except (UserError, RunError) as error:  # the other sets are whole all the same
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return made


def _checked(model: ModelSettings, spec: HarvestSpec, cluster: ClusterSettings) -> QuantizationCheck:
    """What was measured of the quantised model; why not, where the unquantised one could not be run."""
    try:
        check: QuantizationCheck = on_a_node(quantization_check, replicas(cluster), model, spec)
        return check
    except (RunError, UserError, MemoryError, torch.OutOfMemoryError) as error:
        return QuantizationCheck(texts=0, reason=f"not measured: {first_line(error)}")


def _compute_missing(model: ModelSettings, sets: list[Underway], cluster: ClusterSettings) -> None:
    """Make every missing shard of every set over one pool. Raises RunError when some failed for good."""
    began = time.monotonic()
    size, placement = place(
        model,
        cluster,
        head=False,
        highest_block=max(max(underway.spec.blocks) for underway in sets),
        batch_tokens=max(underway.spec.capture.batch_tokens for underway in sets),
    )
    # Texts travel with their shard: an actor's own arguments must not depend on a node that may be lost.
    owned = [(underway, unit) for underway in sets for unit in underway.units()]
    units = {unit.name: unit for _, unit in owned}
    owner = {unit.name: underway for underway, unit in owned}
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
            highest = max(max(underway.spec.blocks) for underway in sets)
            outcome = run_tasks(HarvestActor, (model, highest, placement), tasks, size, keep, slots=SLOTS)
    failures |= outcome.failures
    if failures:
        name, reason = next(iter(failures.items()))
        raise RunError(
            f"{sum(len(part.missing) for part in sets)} of {len(units)} shards failed ({name}: {reason}); "
            "run the same command again to try only these"
        )
    throughput = _throughput(list(fresh.values()), began, outcome, size, placement)
    for underway in sets:
        clean(underway.spec.out)
        tokens = sum(report.tokens for name, report in fresh.items() if owner[name] is underway)
        underway.throughput = Throughput(tokens=tokens, **throughput)


def _sweeps(sets: list[Underway], units: dict[str, Unit], actors: int) -> list[Task]:
    """The missing shards, each actor's share of them as one task."""
    planned = plan_sweeps([part for underway in sets for part in underway.parts], actors)
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
        max(work.ended for work in of_process) - min(work.began for work in of_process)
        for of_process in (
            [w for w in works if w.process == process] for process in {w.process for w in works}
        )
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
