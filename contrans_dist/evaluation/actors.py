"""The actors of an evaluation: a model that scores splits, and a classifier that judges what it wrote."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist.benchmarks import Benchmark, Judged
from contrans_dist.config import ClusterSettings, fingerprint
from contrans_dist.distributed.actors import Actors
from contrans_dist.distributed.placement import place
from contrans_dist.distributed.pool import Outcome, Task, run_kept
from contrans_dist.engine.scoring import Intervention
from contrans_dist.errors import UserError
from contrans_dist.evaluation.baselines import TARGET, System
from contrans_dist.evaluation.steering import Steering
from contrans_dist.models import LanguageModel
from contrans_dist.models.classifier import load_classifier
from contrans_dist.models.placement import Placement
from contrans_dist.store import schema
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location

PARTS, JUDGED = "parts", "judged"


@dataclass(frozen=True)
class Split:
    """A run of items of one concept; small enough that losing one costs little."""

    index: int
    concept: str
    """Whose vectors are added while they are scored."""
    items: list[Any]
    system: str = TARGET

    @property
    def name(self) -> str:
        stem = "part" if self.system == TARGET else self.system
        return f"{stem}-{self.index:05d}.parquet"

    def on(self, actor: "SystemActor", spec: "EvaluationSpec") -> dict[str, float]:
        """Score the items and publish their rows; returns how many there are, and what they cost."""
        meter = actor.meter
        began, passes, tokens = time.monotonic(), meter.passes, meter.tokens
        if spec.system.name == TARGET:
            ids = [item.id for item in self.items]
            interventions = spec.steering.interventions(self.concept, spec.strengths, ids)
        else:
            interventions = [Intervention(spec.system.name, {}, 1.0)]
        table = spec.benchmark.score(actor.lm, spec.system.asked(self.items), interventions)
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


@dataclass(frozen=True)
class EvaluationSpec:
    """Everything an actor needs besides its items."""

    system: System
    benchmark: Benchmark
    steering: Steering
    strengths: tuple[float, ...]
    identity: dict[str, Any]
    out: Location


class Meter:
    """What a model is asked to do: forward passes and the tokens in them, its guides' included."""

    def __init__(self, lm: LanguageModel) -> None:
        self.passes = self.tokens = 0
        for each in (lm, *(lm.guides or ())):
            each.decoder.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        ids = named.get("inputs_embeds")[..., 0] if ids is None else ids  # type: ignore[index]
        self.passes += 1
        self.tokens += int(ids.numel())


class Work(Protocol):
    """What an actor that has loaded a system can be given; the result goes back to the driver."""

    def on(self, actor: "SystemActor", shared: Any) -> Any: ...


class SystemActor:
    """A loaded system, for whatever is asked of it."""

    def __init__(self, system: System, placement: Placement) -> None:
        self.lm = system.load(placement)
        self.meter = Meter(self.lm)

    def ready(self) -> str:
        return str(self.lm.device)

    def run(self, work: Work, shared: Any = None) -> Any:
        return work.on(self, shared)


def run_on(
    system: System,
    cluster: ClusterSettings,
    tasks: Sequence[Task],
    on_result: Callable[[Task, Any], None],
    shared: Any = None,
) -> Outcome:
    """Every task (its payload a `Work`) on actors that have loaded the system's models; see `pool.run_kept`.

    Raises UserError for a model that the cluster cannot hold.
    """

    def start() -> Actors:
        size, placement = place(system.model, cluster, head=True, beside=system.guides)
        return Actors(SystemActor, (system, placement), size)

    return run_kept((system.models, cluster), start, tasks, on_result, shared)


class JudgeActor:
    """A loaded classifier that judges the texts of published parts."""

    def __init__(self, name: str) -> None:
        self.classifier = load_classifier(name)

    def ready(self) -> str:
        return str(self.classifier.model.device)

    def run(self, split: Split, spec: EvaluationSpec) -> int:
        """Judge the published rows of a split and publish them; returns how many there are."""
        assert isinstance(spec.benchmark, Judged)
        table = read_part(spec.out / PARTS / split.name)
        judged = spec.benchmark.judge(self.classifier, table)
        publish(spec.out / JUDGED / split.name, judged, spec.identity, cost_of(table))
        return int(table.num_rows)


def publish(location: Location, table: pa.Table, identity: dict[str, Any], cost: dict[str, float]) -> None:
    """Write a part with the identity of its evaluation, and its cost, in the schema's metadata."""
    facts = {"fingerprint": fingerprint(identity), "identity": identity, "cost": cost}
    table = table.replace_schema_metadata({schema.METADATA_KEY: json.dumps(facts)})
    with location.staged() as path:
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_part(location: Location) -> pa.Table:
    """A published part, or another table with our facts. Raises UserError for one that is damaged."""
    try:
        with location.open() as source:
            return pq.read_table(source, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if not location.is_local and isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{location}: the file is damaged ({reason}); remove it to make it again") from error


def facts_of(table: pa.Table) -> dict[str, Any]:
    """The metadata that `publish` wrote; empty for a table without."""
    metadata = table.schema.metadata or {}
    try:
        facts = parse_json(metadata.get(schema.METADATA_KEY, b"{}"), "facts")
    except UserError:
        return {}
    return facts if isinstance(facts, dict) else {}


def cost_of(table: pa.Table) -> dict[str, float]:
    """What a part cost: `rows`, `forward_passes`, `tokens`, `seconds`."""
    return dict(facts_of(table).get("cost") or {})
