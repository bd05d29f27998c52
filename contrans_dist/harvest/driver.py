"""The harvest driver: shards of texts over a pool of actors, exactly once on disk."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import pyarrow as pa
import torch

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.console import Progress
from contrans_dist.distributed.cluster import Replicas, connected, replicas
from contrans_dist.distributed.in_process import operations
from contrans_dist.distributed.placement import place
from contrans_dist.distributed.pool import Outcome, Task, run_tasks
from contrans_dist.distributed.precision import settled
from contrans_dist.distributed.tasks import on_a_node
from contrans_dist.distributed.watch import watched
from contrans_dist.errors import RunError, UserError, first_line
from contrans_dist.harvest.actors import HarvestActor, SweepActor, slots_of
from contrans_dist.harvest.line import LineActor
from contrans_dist.harvest.planned_set import PlannedSet, identity_in
from contrans_dist.harvest.quantization_check import quantization_check
from contrans_dist.harvest.request import HarvestJob, Request
from contrans_dist.harvest.shards import HarvestSpec, MadeShards, Timing
from contrans_dist.harvest.sweep import SweepTask, clean, plan_sweeps
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
    """Harvest a model's residual stream on texts into an activation set.

    What is already there, whole and of the same fingerprint is kept; the rest is computed, also where texts
    were appended behind those that the folder's set is of.

    Args:
        model: Which model, and how it is loaded.
        texts: A table of `texts.text_table`.
        out: The set's folder.
        capture: What is taken of each text.
        cluster: Where it runs.
        source: The file that the texts are of, to name it in messages.
        skip_bad: Leave out texts that cannot be run.

    Raises:
        UserError: When the folder holds a harvest under other settings (naming the fields), or of texts that
            do not begin these (naming the first row that differs), or a text cannot be run (naming it, when
            all others are done).
        RunError: When shards failed.
    """
    job = HarvestJob(texts, Location.parse(out), capture or CaptureSettings(), source, skip_bad)
    return harvest_sets(model, [job], cluster)[0]


def harvest_sets(
    model: ModelSettings, jobs: Sequence[HarvestJob], cluster: ClusterSettings | None = None
) -> list[ActivationSet]:
    """Several activation sets of one model, for which each actor loads it once. As `harvest` otherwise."""
    cluster = cluster or ClusterSettings()
    there = (plain(held) for job in jobs if (held := identity_in(job.out)) is not None)
    model = settled(model, cluster, lambda: next(there, None))
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    sets = [PlannedSet.of(Request.of(model, facts, job)) for job in jobs]
    with connected(cluster.address), ExitStack() as claims:
        for planned_set in sets:
            planned_set.take_in()
        unfinished = [planned_set for planned_set in sets if not planned_set.complete]
        for planned_set in unfinished:
            identity = plain(planned_set.spec.identity)
            planned_set.hold(claims.enter_context(claimed(planned_set.out, identity)))
        if any(planned_set.missing for planned_set in unfinished):
            _compute_missing(model, unfinished, cluster)
        if model.quantization is not None:
            for planned_set in unfinished:
                planned_set.quantization = _checked(model, planned_set.spec, cluster)
        finished: list[ActivationSet] = []
        wrong: list[UserError | RunError] = []
        for planned_set in sets:
            try:
                finished.append(planned_set.finish())
            except (UserError, RunError) as error:  # the other sets are whole all the same
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return finished


def _checked(model: ModelSettings, spec: HarvestSpec, cluster: ClusterSettings) -> QuantizationCheck:
    """What was measured of the quantised model; why not, where the unquantised one could not be run."""
    try:
        check: QuantizationCheck = on_a_node(quantization_check, replicas(cluster), model, spec)
        return check
    except (RunError, UserError, MemoryError, torch.OutOfMemoryError) as error:
        return QuantizationCheck(texts=0, reason=f"not measured: {first_line(error)}")


def _compute_missing(model: ModelSettings, sets: list[PlannedSet], cluster: ClusterSettings) -> None:
    """Make every missing shard of every set over one pool. Raises RunError when some failed for good."""
    began = time.monotonic()
    highest = max(max(planned_set.spec.blocks) for planned_set in sets)
    batch_tokens = max(planned_set.spec.capture.batch_tokens for planned_set in sets)
    texts = sum(shard.rows for planned_set in sets for shard in planned_set.missing)
    work = math.inf if model.quantization else sum(map(_operations, sets))
    size, placement = place(
        model, cluster, head=False, highest_block=highest, batch_tokens=batch_tokens, operations=work
    )
    tasks = _tasks(sets, size.actors if placement.kind == "stream" else None)
    owners = {shard.address: planned_set for planned_set in sets for shard in planned_set.missing}
    title = f"harvest {model.id.rstrip('/').rsplit('/', 1)[-1]}"
    made = MadeShards()
    folders = [planned_set.out for planned_set in sets]
    with (
        Progress(title, texts, "texts") as progress,
        watched("harvest", model.id, progress, folders) as watch,
    ):

        def besides(more: float) -> None:
            progress.under_way(more, texts)

        def keep(_task: Task, result: MadeShards) -> None:
            for line in result.notes:
                progress.note(line)
            for address, report in result.reports.items():
                owners[address].take(address, report)
            made.reports.update(result.reports)
            made.failures.update(result.failures)
            reports = result.reports.values()
            watch.computed(sum(report.facts.tokens for report in reports))
            progress.finish(sum(report.entry.rows + len(report.facts.skipped) for report in reports), texts)

        if placement.kind == "stream":
            outcome = run_tasks(SweepActor, (model,), tasks, size, keep, on_progress=besides, alike=False)
        elif placement.kind == "pipeline":
            line, slots = (model, placement.stages, size), len(placement.stages) + 1
            outcome = run_tasks(LineActor, line, tasks, size, keep, slots=slots, on_progress=besides)
        else:
            outcome = run_tasks(
                HarvestActor,
                (model, highest, placement),
                tasks,
                size,
                keep,
                slots=slots_of(placement, size.gpus),
                on_progress=besides,
            )
    failures = made.failures | outcome.failures
    if failures:
        raise _failed(sets, len(owners), failures)
    throughput = _throughput(made, began, outcome, size, placement)
    for planned_set in sets:
        clean(planned_set.out)
        of_set = [report for address, report in made.reports.items() if owners[address] is planned_set]
        tokens = sum(report.facts.tokens for report in of_set)
        planned_set.throughput = Throughput(tokens=tokens, **throughput)


def _failed(sets: list[PlannedSet], wanted: int, failures: dict[str, str]) -> RunError:
    """How many shards are missing, and why the first is, with its rows: one of its texts may be to blame."""
    left = {shard.address: shard for planned_set in sets for shard in planned_set.missing}
    name, reason = next(iter(failures.items()))
    shard = left.get(name)
    rows = f", rows {shard.start:,} to {shard.start + shard.rows - 1:,}" if shard else ""
    return RunError(
        f"{len(left)} of {wanted} shards failed ({name}{rows}: {reason}); run the same command again to try "
        "only these"
    )


def _operations(planned_set: PlannedSet) -> float:
    """Of floating point, for all that is missing of a set."""
    characters = sum(planned_set.rows_of(shard)["text"].nbytes for shard in planned_set.missing)
    return operations(planned_set.request.facts.parameters, characters)


def _tasks(sets: list[PlannedSet], sweeps: int | None) -> list[Task]:
    """The missing shards: each by itself, or shared out over so many sweeps.

    Texts travel with their shard: an actor's own arguments must not depend on a node that may be lost.
    """
    work = {
        shard.address: (shard, planned_set.rows_of(shard))
        for planned_set in sets
        for shard in planned_set.missing
    }
    if sweeps is None:
        return [Task(name, (shard, rows), rows["text"].nbytes) for name, (shard, rows) in work.items()]
    shares = plan_sweeps([shard for planned_set in sets for shard in planned_set.shards], sweeps)
    return [
        Task(f"sweep {key}", SweepTask(key, [work[address] for address in work if address in share]))
        for key, share in shares.items()
        if share & set(work)
    ]


def _throughput(
    made: MadeShards, began: float, outcome: Outcome, size: Replicas, placement: Placement
) -> dict[str, Any]:
    """What the manifests of all sets say of speed."""
    seconds = time.monotonic() - outcome.began
    tokens = sum(report.facts.tokens for report in made.reports.values())
    timings = [report.timing for report in made.reports.values() if report.timing is not None]
    capturing = sum(map(_covered, _by_process(timings)))
    return {
        "seconds": round(seconds, 3),
        "seconds_starting": round(outcome.began - began, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_capturing": round(capturing, 3),
        "seconds_waiting_for_writes": round(_at_work(timings) - capturing, 3),
        "actors": min(size.actors, len(made.reports)),
        "cpus_per_actor": size.cpus,
        "gpus_per_actor": size.gpus,
        "lost_actors": outcome.lost_actors,
        "placement": placement.kind,
        "placement_reason": placement.reason,
    }


def _at_work(timings: Iterable[Timing]) -> float:
    """Seconds from each process' first shard to its last, summed: it has several at a time."""
    spans = _by_process(timings)
    return sum(max(timing.ended for timing in span) - min(timing.began for timing in span) for span in spans)


def _covered(timings: Sequence[Timing]) -> float:
    """Seconds in which a process' model had work: devices have that of several shards before them at once."""
    seconds, until = 0.0, -math.inf
    for began, ended in sorted(span for timing in timings for span in timing.captured):
        seconds += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return seconds


def _by_process(timings: Iterable[Timing]) -> list[list[Timing]]:
    by_process = groupby(sorted(timings, key=lambda timing: timing.process), lambda timing: timing.process)
    return [list(of_process) for _, of_process in by_process]
