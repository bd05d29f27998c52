"""The evaluation driver: a benchmark over pools of actors, resumable, with the leak check beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from itertools import product
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.benchmarks import Benchmark, Judged, ScoredItem
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings, fingerprint
from contrans_dist.console import Progress, note
from contrans_dist.data.contamination import leak_report
from contrans_dist.distributed.cluster import connected
from contrans_dist.distributed.pool import Outcome, Task, run_tasks
from contrans_dist.distributed.watch import watched
from contrans_dist.engine.scoring import BASE
from contrans_dist.errors import RunError, UserError
from contrans_dist.evaluation.actors import EvaluationSpec, JudgeActor, WorkUnit, run_on
from contrans_dist.evaluation.baselines import TARGET, System, in_turn
from contrans_dist.evaluation.conditions import reference_of
from contrans_dist.evaluation.parts import JUDGED, PARTS, cleared, cost_of, delete_parts, finished, missing
from contrans_dist.evaluation.precision import settled_system
from contrans_dist.evaluation.sizes import judges, texts_of
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.work_units import joined, plan_units, scored_items
from contrans_dist.models import model_facts
from contrans_dist.models.facts import model_identity
from contrans_dist.store.claims import Claim, claimed
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import made_by, versions
from contrans_dist.store.results import METRICS, MetricsFile, write_file
from contrans_dist.store.tables import RESULTS, read_table, write_table


def evaluate(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: "Location | str",
    cluster: ClusterSettings | None = None,
    replace: bool = False,
    title: str | None = None,
    others: Sequence[System] = (),
    trials: bool = False,
) -> MetricsFile:
    """Score a model on a benchmark under every condition of `steering`.

    Args:
        model: The target.
        settings: What is scored, at which strengths.
        steering: What is added where.
        out: The evaluation's folder; parts of an unfinished one that are there are kept.
        cluster: Where it runs.
        replace: Begin anew in a folder that holds another evaluation.
        title: Heads its progress.
        others: Conditions that are no vectors, each scored by actors that load what it takes.
        trials: Whether conditions and strengths are chosen between: progress is counted in them, and one
            under which the logits overflow is left out.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: For data that are missing or wrong; for a folder that holds another evaluation, naming the
            fields, without `replace`; for one where another is at work.
        RunError: When parts failed.
        OverflowedError: For a strength at which the model's logits are no numbers.
    """
    cluster = cluster or ClusterSettings()
    return scored(prepared(model, settings, steering, out, cluster, replace, others), cluster, title, trials)


@dataclass(frozen=True)
class ReadyEvaluation:
    """An evaluation whose input is read and found good, and nothing scored of it yet."""

    spec: EvaluationSpec
    items: list[ScoredItem]
    others: Sequence[System]
    finished: MetricsFile | None
    """The content of metrics.json, where all is done already."""
    replace: bool = False
    """Whether another evaluation in the folder makes way for it."""


def prepared(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: "Location | str",
    cluster: ClusterSettings,
    replace: bool = False,
    others: Sequence[System] = (),
) -> ReadyEvaluation:
    """What `evaluate` does first, for which no Ray is needed. Raises the UserErrors of `evaluate`."""
    out = Location.parse(out)
    if cluster.placement in ("stream", "pipeline"):
        raise UserError(
            f"--placement {cluster.placement}: steering needs the whole model; expected auto or device-map"
        )
    benchmark = load_benchmark(settings)
    items = scored_items(benchmark, settings, steering)
    target = settled_system(System(TARGET, model), cluster, out)
    others = [settled_system(system, cluster, out) for system in others]
    spec = EvaluationSpec(
        system=target,
        benchmark=benchmark,
        steering=steering,
        strengths=settings.strengths,
        identity=_identity(benchmark, settings, steering, items, [target, *others]),
        out=out,
    )
    return ReadyEvaluation(spec, items, others, finished(spec.out, spec.identity, replace), replace)


def scored(
    ready: ReadyEvaluation, cluster: ClusterSettings, title: str | None = None, trials: bool = False
) -> MetricsFile:
    """The rest of `evaluate`. Raises as that does while it runs, and UserError where another evaluation is at
    work in the folder."""
    out, identity, found = ready.spec.out, ready.spec.identity, ready.finished
    if found is None:
        with claimed(out, identity) as claim:
            # Looked at once more: others may have been at work since.
            found = cleared(out, identity, ready.replace)
            if found is None:
                return _scored(ready, cluster, title, trials, claim)
    note(f"{out}: complete; nothing to do")
    return found


def _scored(
    ready: ReadyEvaluation, cluster: ClusterSettings, title: str | None, trials: bool, claim: Claim
) -> MetricsFile:
    spec, items, target = changed(ready.spec, trials=trials), ready.items, ready.spec.system
    out, benchmark, steering = spec.out, spec.benchmark, spec.steering
    units: list[WorkUnit] = []
    head = title or f"evaluate {benchmark.name}"
    with connected(cluster.address):
        for system in in_turn(target, ready.others):
            of_system = plan_units(items, steering.concepts, system.name)
            named = head if system is target else f"{head}, {system.name}"
            on_system = partial(
                run_on, system, cluster, shared=changed(spec, system=system), texts=texts_of(spec, of_system)
            )
            counted = max((unit.trials(spec) for unit in of_system), default=0) if trials else None
            _make_missing(spec, claim, PARTS, of_system, named, on_system, counted)
            units += of_system
        if isinstance(benchmark, Judged):
            judge = benchmark.classifier

            def on_judges(
                tasks: list[Task],
                on_result: Callable[[Task, Any], None],
                on_progress: Callable[[float], None],
            ) -> Outcome:
                size = judges(judge, cluster, texts_of(spec, units))
                return run_tasks(JudgeActor, (judge,), tasks, size, on_result, spec, on_progress=on_progress)

            _make_missing(spec, claim, JUDGED, units, f"judge by {judge}", on_judges)
    folder = out / (JUDGED if isinstance(benchmark, Judged) else PARTS)
    tables = {unit.name: read_table(folder / unit.name) for unit in units}
    table = joined(units, tables, steering.concepts)
    if spec.trials:
        table = _in_all_parts(table, spec, head)
    claim.check()
    write_table(out / RESULTS, table, {"evaluation": fingerprint(spec.identity)})
    metrics = _metrics(spec, items, table, _costs(units, tables))
    write_file(out / METRICS, metrics)
    if not claim.shared():  # else the last one removes them
        delete_parts(out)
    return metrics


def _identity(
    benchmark: Benchmark,
    settings: EvaluationSettings,
    steering: Steering,
    items: Sequence[ScoredItem],
    systems: Sequence[System],
) -> dict[str, Any]:
    """What the numbers depend on: the target's model, all that is scored, what is added, every other system.

    And the leak check: the texts that vectors and map have seen.
    """
    identities = [[_model(model, benchmark, items) for model in system.models] for system in systems]
    of_benchmark = settings.model_dump(mode="json", exclude=set(EvaluationSettings.model_fields))
    # Places of files say nothing; the items that came from them are in `items`.
    of_benchmark = {name: value for name, value in of_benchmark.items() if name not in settings.files}
    return {
        "benchmark": settings.benchmark,
        **of_benchmark,
        **benchmark.identity(),
        **identities[0][0],
        "items": content_hash(list(items)),
        "steering": steering.digest(),
        "seen": content_hash([steering.vector_texts, steering.map_texts]),
        "strengths": list(settings.strengths),
        "systems": {
            system.name: {"models": models, "instruction": system.instruction}
            for system, models in zip(systems[1:], identities[1:], strict=True)
        },
    }


def _model(model: ModelSettings, benchmark: Benchmark, items: Sequence[ScoredItem]) -> dict[str, Any]:
    """What a model's numbers depend on, and what the benchmark has to say of it."""
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    return {**model_identity(model, facts), **benchmark.model_identity(facts.reads, items, model.id)}


class _Run(Protocol):
    """How work units are run."""

    def __call__(
        self,
        tasks: list[Task],
        on_result: Callable[[Task, Any], None],
        on_progress: Callable[[float], None],
    ) -> Outcome: ...


def _make_missing(
    spec: EvaluationSpec,
    claim: Claim,
    folder: str,
    units: Sequence[WorkUnit],
    title: str,
    run: "_Run",
    trials: int | None = None,
) -> None:
    """Run every unit that has no part in a folder; `trials`: by which progress is counted, where these are
    what is chosen between. Raises RunError when one failed, or the claim on the folder is gone."""
    names = missing(spec.out / folder, [unit.name for unit in units], spec.identity)
    tasks = [Task(unit.name, unit, len(unit.items)) for unit in units if unit.name in names]
    if not tasks:
        return
    total = sum(task.payload.size for task in tasks)
    stage, model = ("judge" if folder == JUDGED else "evaluate"), spec.identity["model"]
    with (
        Progress(title, *((trials, "trials") if trials else (total, "items"))) as progress,
        watched(stage, model, progress, [spec.out]) as watch,
    ):

        def keep(task: Task, result: Any) -> None:
            claim.look()
            progress.finish(task.payload.size, total)
            watch.computed(result["tokens"] if isinstance(result, dict) else 0)

        outcome = run(
            tasks,
            on_result=keep,
            on_progress=lambda besides: progress.under_way(besides, total),
        )
    if outcome.failures:
        name, reason = next(iter(outcome.failures.items()))
        raise RunError(
            f"{spec.out}: {len(outcome.failures)} of {len(units)} parts failed ({name}: {reason}); "
            "run the same command again to try only these"
        )


def _in_all_parts(table: pa.Table, spec: EvaluationSpec, title: str) -> pa.Table:
    """The rows of trials without those of conditions and strengths that some part has none of: their logits
    overflow there, and what is left of them is no score."""
    counts = table.group_by(["condition", "strength"]).aggregate([([], "count_all")]).to_pylist()
    rows = {(trial["condition"], trial["strength"]): trial["count_all"] for trial in counts}
    names = dict.fromkeys(name for given in spec.steering.rows.values() for name in given)
    for name, strength in product(names, filter(None, spec.strengths)):
        if rows.get((name, strength), 0) < rows[BASE.name, BASE.strength]:
            note(f"{title}: {name} at strength {strength:g} is left out: the model's logits overflow")
            table = table.filter((pc.field("condition") != name) | (pc.field("strength") != strength))
    return table


def _costs(units: Sequence[WorkUnit], tables: dict[str, pa.Table]) -> dict[str, dict[str, float]]:
    """What each system cost, over all actors: rows, forward passes, tokens in them, seconds."""
    costs: dict[str, dict[str, float]] = {}
    for unit in units:
        total = costs.setdefault(unit.system, {})
        for name, value in cost_of(tables[unit.name]).items():
            total[name] = round(total.get(name, 0) + value, 3)
    return costs


def _metrics(
    spec: EvaluationSpec, items: Sequence[ScoredItem], table: pa.Table, costs: dict[str, dict[str, float]]
) -> MetricsFile:
    blocks = spec.steering.blocks
    scenarios = [item.scenario for item in items]
    steered = pc.unique(table.filter(pc.field("strength") != 0).column("condition")).to_pylist()
    content = {
        "benchmark": spec.benchmark.name,
        "model": spec.identity["model"],
        "protocol": spec.identity.get("protocol", "default"),
        "block": blocks[0] if len(blocks) == 1 else None,
        "blocks": blocks,
        "strengths": list(spec.strengths),
        **spec.benchmark.summarise(table, reference_of(steered) or "vector"),
        "leak": leak_report(
            scenarios,
            spec.steering.vector_texts,
            spec.steering.map_texts,
            spec.steering.texts_known,
            spec.steering.map_texts_known,
        ),
        "costs": costs,
        "rows": dict(Counter(table.column("condition").to_pylist())),
        "identity": spec.identity,
        "fingerprint": fingerprint(spec.identity),
        "versions": versions(),
        **made_by(),
    }
    return MetricsFile.model_validate(content)
