"""The evaluation driver: a benchmark over pools of actors, resumable, with the leak check beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from functools import partial
from itertools import product
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.benchmarks import Judged, ScoredItem
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings, fingerprint
from contrans_dist.console import Progress, note
from contrans_dist.data.contamination import leak_report
from contrans_dist.distributed.cluster import connected
from contrans_dist.distributed.pool import Outcome, Task, run_tasks
from contrans_dist.distributed.watch import watched
from contrans_dist.engine.scoring import BASE
from contrans_dist.errors import RunError
from contrans_dist.evaluation.actors import EvaluationSpec, JudgeActor, WorkUnit, run_on
from contrans_dist.evaluation.baselines import System, in_turn
from contrans_dist.evaluation.conditions import reference_of
from contrans_dist.evaluation.parts import JUDGED, PARTS, cleared, cost_of, delete_parts, missing
from contrans_dist.evaluation.ready import ReadyEvaluation, prepared
from contrans_dist.evaluation.sizes import judges, texts_of
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.work_units import joined, plan_units
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
