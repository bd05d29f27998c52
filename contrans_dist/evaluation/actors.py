"""The actors of an evaluation: a model that scores work units, and a classifier that judges what it wrote."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from contrans_dist.benchmarks import Benchmark, Judged, ScoredItem
from contrans_dist.config import ClusterSettings
from contrans_dist.console import listening
from contrans_dist.distributed.actors import Actors, actors_of
from contrans_dist.distributed.here import stays_here
from contrans_dist.distributed.in_process import InProcess
from contrans_dist.distributed.placement import place
from contrans_dist.distributed.pool import Outcome, Task, run_kept
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import OverflowedError
from contrans_dist.evaluation.baselines import TARGET, System
from contrans_dist.evaluation.parts import JUDGED, PARTS, cost_of, publish
from contrans_dist.evaluation.precision import settled_system
from contrans_dist.evaluation.sizes import Texts, operations_of
from contrans_dist.evaluation.steering import Steering
from contrans_dist.models import LanguageModel
from contrans_dist.models.classifier import load_classifier
from contrans_dist.models.placement import Placement
from contrans_dist.store.location import Location
from contrans_dist.store.tables import read_table


@dataclass(frozen=True)
class WorkUnit:
    """Items of one concept that one actor scores; small enough that losing one costs little."""

    index: int
    concept: str
    """Whose vectors are added while they are scored."""
    items: list[ScoredItem]
    system: str = TARGET

    @property
    def name(self) -> str:
        stem = "part" if self.system == TARGET else self.system
        return f"{stem}-{self.index:05d}.parquet"

    @property
    def size(self) -> int:
        return len(self.items)

    def trials(self, spec: "EvaluationSpec") -> int:
        """How often each item is scored."""
        steered = self.system == TARGET
        return spec.steering.trials(self.concept, spec.strengths) if steered else 1

    def on(self, actor: "SystemActor", spec: "EvaluationSpec") -> dict[str, float]:
        """Score the items and publish their rows; returns how many there are, and what they cost."""
        meter = actor.meter
        began, passes, tokens = time.monotonic(), meter.passes, meter.tokens
        if spec.system.name == TARGET:
            ids = [item.id for item in self.items]
            interventions = spec.steering.interventions(self.concept, spec.strengths, ids)
        else:
            interventions = [Intervention(spec.system.name, {}, 1.0)]
        table = self._scored(actor.lm, spec, interventions)
        if self.concept:
            at = table.schema.get_field_index("concept")
            table = table.set_column(at, "concept", pa.array([self.concept] * table.num_rows))
        cost = {
            "rows": table.num_rows,
            "forward_passes": meter.passes - passes,
            "tokens": meter.tokens - tokens,
            "seconds": time.monotonic() - began,
        }
        publish(spec.out / PARTS / self.name, table, spec.identity, cost)
        return cost

    def _scored(
        self, lm: LanguageModel, spec: "EvaluationSpec", interventions: Sequence[Intervention]
    ) -> pa.Table:
        """The items' rows; in trials without those of interventions under which logits overflow."""
        try:
            return spec.benchmark.score(lm, spec.system.instructed(self.items), interventions)
        except OverflowedError as error:
            if not spec.trials or (BASE.name, BASE.strength) in error.lost:
                raise
            left = [each for each in interventions if (each.name, each.strength) not in error.lost]
        return self._scored(lm, spec, left)


@dataclass(frozen=True)
class EvaluationSpec:
    """Everything an actor needs besides its items."""

    system: System
    benchmark: Benchmark
    steering: Steering
    strengths: tuple[float, ...]
    identity: dict[str, Any]
    out: Location
    trials: bool = False
    """Whether conditions and strengths are chosen between: one under which logits overflow is not scored."""


class Meter:
    """What a model is asked to do: forward passes and the tokens in them, its guides' included."""

    def __init__(self, lm: LanguageModel) -> None:
        self.passes = self.tokens = 0
        for model in (lm, *(lm.guides or ())):
            model.decoder.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        ids = named.get("inputs_embeds")[..., 0] if ids is None else ids  # type: ignore[index]
        self.passes += 1
        self.tokens += int(ids.numel())


class Work(Protocol):
    """What an actor that has loaded a system can be given; the result goes back to the driver."""

    @property
    def size(self) -> int:
        """How much it is, in the unit of its progress."""

    def on(self, actor: "SystemActor", shared: Any) -> Any: ...


class Told:
    """How much of its running work an actor has done, as the engine tells it."""

    def __init__(self) -> None:
        self.done = 0.0

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """While work of this size is done."""

        def told(share: float) -> None:
            self.done = share * size

        try:
            with listening(told):
                yield
        finally:
            self.done = 0.0


class SystemActor:
    """A loaded system, for whatever is asked of it."""

    def __init__(self, system: System, placement: Placement) -> None:
        self.lm = system.load(placement)
        self.meter = Meter(self.lm)

        self.told = Told()

    def run(self, work: Work, shared: Any = None) -> Any:
        with self.told.of(work.size):
            return work.on(self, shared)

    def progress(self) -> float:
        """How much of the running work is done."""
        return self.told.done


def run_on(
    system: System,
    cluster: ClusterSettings,
    tasks: Sequence[Task],
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
    on_progress: Callable[[float], None] | None = None,
    *,
    texts: Texts,
) -> Outcome:
    """Every task (its payload a `Work`) on actors that have loaded the system's models; see `pool.run_kept`.

    `texts`: all that is run. Raises UserError for a model that the cluster cannot hold.
    """
    system = settled_system(system, cluster)
    work = operations_of(system, texts)

    def start() -> Actors | InProcess:
        size, placement = place(system.model, cluster, head=True, beside=system.guides, operations=work)
        return actors_of(SystemActor, (system, placement), size)

    key = (system.models, cluster, stays_here(cluster, work))
    return run_kept(key, start, tasks, on_result, shared, on_progress)


class JudgeActor:
    """A loaded classifier that judges the texts of published parts."""

    def __init__(self, name: str) -> None:
        self.classifier = load_classifier(name)
        self.told = Told()

    def run(self, unit: WorkUnit, spec: EvaluationSpec) -> int:
        """Judge the published rows of a work unit and publish them; returns how many there are."""
        assert isinstance(spec.benchmark, Judged)
        table = read_table(spec.out / PARTS / unit.name)
        with self.told.of(unit.size):
            judged = spec.benchmark.judge(self.classifier, table)
        publish(spec.out / JUDGED / unit.name, judged, spec.identity, cost_of(table))
        return int(table.num_rows)

    def progress(self) -> float:
        """Items of the running work unit that are judged."""
        return self.told.done
