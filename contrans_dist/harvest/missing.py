"""What is missing of activation sets, made over one pool of actors."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.console import Progress
from contrans_dist.distributed.cluster import Replicas
from contrans_dist.distributed.here import operations
from contrans_dist.distributed.placement import place
from contrans_dist.distributed.pool import Outcome, Task, run_tasks
from contrans_dist.distributed.watch import watched
from contrans_dist.distributed.workers import MAX_ATTEMPTS
from contrans_dist.errors import RunError
from contrans_dist.harvest.actors import HarvestActor, SweepActor, slots_of
from contrans_dist.harvest.fatal import Part, Suspect, fatal_texts
from contrans_dist.harvest.line import LineActor
from contrans_dist.harvest.planned_set import PlannedSet
from contrans_dist.harvest.runnable import FATAL
from contrans_dist.harvest.shards import MadeShards, ShardTask, rows_words
from contrans_dist.harvest.sweep import SweepTask, clean, plan_sweeps
from contrans_dist.harvest.throughput import throughput_of
from contrans_dist.models.placement import Placement
from contrans_dist.store.manifest import Throughput


def compute_missing(model: ModelSettings, sets: list[PlannedSet], cluster: ClusterSettings) -> None:
    """Make every missing shard of every set over one pool. Raises RunError when some failed for good."""
    began = time.monotonic()
    pool = _Pool.of(model, sets, cluster)
    owners = {shard.address: planned_set for planned_set in sets for shard in planned_set.missing}
    made = MadeShards()
    outcome = _made(pool, owners, tasks_of(sets, pool.sweeps), made)
    again = _without_fatal(pool, sets, outcome)
    if again:
        later = _made(pool, owners, again, made)
        for task in again:
            del outcome.failures[task.name]
        outcome.failures |= later.failures
        outcome.lost_actors += later.lost_actors
    failures = made.failures | outcome.failures
    if failures:
        raise _failed(sets, len(owners), failures)
    throughput = throughput_of(made, began, outcome, pool.size, pool.placement)
    for planned_set in sets:
        clean(planned_set.out)
        of_set = [report for address, report in made.reports.items() if owners[address] is planned_set]
        tokens = sum(report.facts.tokens for report in of_set)
        planned_set.throughput = Throughput(tokens=tokens, **throughput)


@dataclass(frozen=True)
class _Pool:
    """The actors of a harvest: of what kind, how many, and what each gets."""

    model: ModelSettings
    highest: int
    """The last block that is needed."""
    size: Replicas
    placement: Placement

    @classmethod
    def of(cls, model: ModelSettings, sets: list[PlannedSet], cluster: ClusterSettings) -> "_Pool":
        """For all that is missing of these sets."""
        highest = max(max(planned_set.spec.blocks) for planned_set in sets)
        batch_tokens = max(planned_set.spec.capture.batch_tokens for planned_set in sets)
        work = math.inf if model.quantization else sum(map(_operations, sets))
        size, placement = place(
            model, cluster, head=False, highest_block=highest, batch_tokens=batch_tokens, operations=work
        )
        return cls(model, highest, size, placement)

    @property
    def sweeps(self) -> int | None:
        """Over which the shards are shared out; None where each is a task by itself."""
        return self.size.actors if self.placement.kind == "stream" else None

    def run(
        self,
        tasks: Sequence[Task],
        keep: Callable[[Task, MadeShards], None],
        on_progress: Callable[[float], None] | None = None,
        one_by_one: bool = False,
    ) -> Outcome:
        """Every task; `one_by_one`: an actor has one at a time."""
        model, placement, size = self.model, self.placement, self.size
        actor: Any
        arguments: tuple[Any, ...]
        if placement.kind == "stream":
            return run_tasks(SweepActor, (model,), tasks, size, keep, on_progress=on_progress, alike=False)
        if placement.kind == "pipeline":
            actor, arguments, slots = LineActor, (model, placement.stages, size), len(placement.stages) + 1
        else:
            actor, arguments = HarvestActor, (model, self.highest, placement)
            slots = slots_of(placement, size.gpus)
        slots = 1 if one_by_one else slots
        return run_tasks(actor, arguments, tasks, size, keep, slots=slots, on_progress=on_progress)

    def dies(self, trials: Sequence[Task], lived: Callable[[], None]) -> list[bool | None]:
        """Whether an actor dies at each of these, and not at what another is at: that may end its node. None
        where it failed otherwise. `lived` is called as one is through."""

        def tried(pool: _Pool, trials: Sequence[Task]) -> Outcome:
            # A sweep that hangs is found out only where its actor is asked how far it is.
            return pool.run(trials, lambda _task, _result: lived(), lambda _done: None, one_by_one=True)

        left = list(trials)
        if self.size.actors > 1:
            failures = tried(self, [replace(trial, attempts=1) for trial in trials]).failures
            left = [trial for trial in trials if trial.name in failures]
        outcome = tried(replace(self, size=replace(self.size, actors=1, follows=False)), left)
        unseen = outcome.failures.keys() - outcome.deaths
        return [None if trial.name in unseen else trial.name in outcome.deaths for trial in trials]


def _made(pool: _Pool, owners: Mapping[str, PlannedSet], tasks: Sequence[Task], made: MadeShards) -> Outcome:
    """Run tasks, and take the shards that they make into their sets, which are told by their addresses, and
    into `made`."""
    texts = sum(task.payload.texts for task in tasks)
    title = f"harvest {pool.model.id.rstrip('/').rsplit('/', 1)[-1]}"
    folders = list({planned_set.out: None for planned_set in owners.values()})
    with (
        Progress(title, texts, "texts") as progress,
        watched("harvest", pool.model.id, progress, folders) as watch,
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

        return pool.run(tasks, keep, besides)


def _without_fatal(pool: _Pool, sets: list[PlannedSet], outcome: Outcome) -> list[Task]:
    """The tasks that were given up as actors died, to be done without the texts at which they do, where such
    were found; also those that other tasks' texts took along."""
    tasks = {task.name: task for task in tasks_of(sets, pool.sweeps) if task.name in outcome.deaths}
    folders = [planned_set.out for planned_set in sets]

    def die(parts: Sequence[Part]) -> list[bool | None]:
        trials = []
        for suspect, places in parts:
            part = tasks[suspect.task].payload.part(places)
            trials.append(Task(part.words, part, part.size, 1 if len(places) > 1 else MAX_ATTEMPTS))
        with (
            Progress("texts that kill", len(trials), "trials") as progress,
            watched("trials", pool.model.id, progress, folders, logged=False),
        ):
            return pool.dies(trials, lambda: progress.advance(1))

    working = [planned_set.out for planned_set in sets if planned_set.reports]
    suspects = {
        name: [Suspect(name, places, folder) for folder, places in task.payload.by_set()]
        for name, task in tasks.items()
    }
    found = fatal_texts([*chain.from_iterable(suspects.values())], die, working) if suspects else {}
    again = []
    for name, task in tasks.items() if any(found.values()) else ():
        if all(suspect in found for suspect in suspects[name]):
            places = [place for suspect in suspects[name] for place in found[suspect]]
            payload = task.payload.without(places, f"{FATAL} each time ({outcome.failures[name]})")
            again.append(replace(task, payload=payload))
    return again


def _failed(sets: list[PlannedSet], wanted: int, failures: dict[str, str]) -> RunError:
    """How many shards are missing, and why the first is, with its rows: one of its texts may be to blame."""
    left = {shard.address: shard for planned_set in sets for shard in planned_set.missing}
    name, reason = next(iter(failures.items()))
    shard = left.get(name)
    rows = f", {rows_words(range(shard.start, shard.start + shard.rows))}" if shard else ""
    return RunError(
        f"{len(left)} of {wanted} shards failed ({name}{rows}: {reason}); run the same command again to try "
        "only these"
    )


def _operations(planned_set: PlannedSet) -> float:
    """Of floating point, for all that is missing of a set."""
    characters = sum(planned_set.rows_of(shard)["text"].nbytes for shard in planned_set.missing)
    return operations(planned_set.request.facts.parameters, characters)


def tasks_of(sets: Sequence[PlannedSet], sweeps: int | None) -> list[Task]:
    """The missing shards: each by itself, or shared out over so many sweeps.

    Texts travel with their shard: an actor's own arguments must not depend on a node that may be lost.
    """
    work = {
        shard.address: ShardTask(shard, planned_set.rows_of(shard))
        for planned_set in sets
        for shard in planned_set.missing
    }
    if sweeps is None:
        return [Task(name, task, task.size) for name, task in work.items()]
    shares = plan_sweeps([shard for planned_set in sets for shard in planned_set.shards], sweeps)
    swept = [(key, [work[address] for address in work if address in share]) for key, share in shares.items()]
    return [Task(f"sweep {key}", SweepTask(key, tasks)) for key, tasks in swept if tasks]
