"""What a run scores: the choice of blocks and strengths, each evaluation under every condition, other
systems, the judge, and the prompts that are read one by one."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from contrans_dist.benchmarks import Benchmark, Judged, load_benchmark
from contrans_dist.benchmarks.calls import Ids
from contrans_dist.benchmarks.contrast import ContrastBenchmark, ContrastEvaluation
from contrans_dist.config import BATCH_TOKENS, EvaluationSettings
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.engine.scoring.generation import BATCH_SIZE
from contrans_dist.evaluation.baselines import TARGET, System, in_turn
from contrans_dist.evaluation.block_candidates import target_blocks
from contrans_dist.evaluation.block_trials import contrast_strengths, few_strengths, tried_on
from contrans_dist.evaluation.conditions import condition_of, systems_of
from contrans_dist.evaluation.samples import NEW_TOKENS, probe_of
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.trials import budget_text, validation_of
from contrans_dist.evaluation.work_units import plan_units, scored_items
from contrans_dist.models import cut_to, encode_many, matched_depth, resolve_blocks
from contrans_dist.pipeline.inputs import captures
from contrans_dist.pipeline.plan.calls import Calls
from contrans_dist.pipeline.plan.costs import Cost, generated, scored
from contrans_dist.pipeline.plan.stages import PlannedRun, Stage
from contrans_dist.vectors.from_activations import contrast_rows

_ROW = np.ones(1, np.float32)
"""Stands for a vector: where it is added counts, not what."""


def evaluation_stages(run: PlannedRun) -> Iterator[Stage]:
    """Every stage in which a model is steered, or answers in another way."""
    n_blocks = run.model(run.recipe.target).n_blocks
    blocks = resolve_blocks(captures(run.recipe, "target", n_blocks)["contrast"].blocks, n_blocks)
    if run.recipe.blocks == "best":
        yield from _chosen(run, target_blocks(blocks, n_blocks))
    # That of matched depth where it is yet to be chosen.
    block = blocks[0] if len(blocks) == 1 else matched_depth(n_blocks)
    for name, settings in run.placed.evaluations.items():
        yield from _assessed(run, name, settings, block)


def _chosen(run: PlannedRun, blocks: Sequence[int]) -> Iterator[Stage]:
    """A choice among these blocks of the target, on validation items or on contrast prompts."""
    chosen_on, tried = run.placed.chosen_on, {f"?:{block}": block for block in blocks}
    if chosen_on is not None:
        chosen_on = tried_on(chosen_on)
        steered = _steering(run, chosen_on, tried)
        yield from _tried(run, "choose blocks", chosen_on, steered, few_strengths(chosen_on.strengths))
        return
    concepts, strengths = run.recipe.concepts, contrast_strengths(run.recipe)
    settings = ContrastEvaluation(
        texts="concepts.texts", strengths=strengths, conditions=(), seed=concepts.seed, limit=concepts.limit
    )
    capture = captures(run.recipe, "target", run.model(run.recipe.target).n_blocks)["contrast"]
    benchmark = ContrastBenchmark.of(settings, run.tables["contrast"], capture, settings.texts)
    if strengths:
        yield from _evaluated(
            run, "choose blocks", settings, _steering(run, settings, tried), benchmark=benchmark
        )


def _assessed(run: PlannedRun, name: str, settings: EvaluationSettings, block: int) -> Iterator[Stage]:
    """One evaluation, as `assess` goes about it."""
    recipe = run.recipe
    one_width = recipe.source is not None and run.model(recipe.source).d == run.model(recipe.target).d
    several = len(set(run.tables["contrast"].column("concept").to_pylist())) > 1
    vectors = [
        condition
        for condition in map(condition_of, settings.conditions)
        if not condition.no_vector
        and (one_width or not condition.same_width)
        and (several or not condition.several)
    ]
    steered = _steering(run, settings, {condition.name: block for condition in vectors})
    if settings.search is not None:
        tried = steered.only([condition.name for condition in vectors if condition.role != "control"])
        yield from _tried(run, f"strengths of {name}", settings, tried, settings.strengths)
        steered = replace(steered, chosen={condition.name: 1.0 for condition in vectors})
    yield from _evaluated(run, f"evaluate {name}", settings, steered, systems_of(recipe, settings))
    if vectors:
        yield from _probed(run, name, settings, steered, block)


def _steering(run: PlannedRun, settings: EvaluationSettings, blocks: Mapping[str, int]) -> Steering:
    """What is added where, by condition, without the vectors themselves."""
    contrast, corpus = run.tables["contrast"], run.tables.get("corpus")
    concepts = list(dict.fromkeys(contrast.column("concept").to_pylist()))
    rows = {concept: {name: {block: _ROW} for name, block in blocks.items()} for concept in concepts}
    steered = Steering(rows, seed=settings.seed)
    if settings.only_unseen:
        of_vectors, texts = run.recipe.concepts, np.array(contrast.column("text").to_pylist(), object)
        sides = [
            side
            for concept in concepts
            for side in contrast_rows(contrast, "concepts.texts", concept, of_vectors.seed, of_vectors.limit)
        ]
        steered = replace(
            steered,
            vector_texts=unit_hashes(texts[np.unique(np.concatenate(sides))]),
            map_texts=unit_hashes([] if corpus is None else corpus.column("text").to_pylist()),
        )
    return steered if settings.concepts is None else steered.about(settings.concepts)


def _tried(
    run: PlannedRun, title: str, settings: EvaluationSettings, steered: Steering, strengths: tuple[float, ...]
) -> Iterator[Stage]:
    """Conditions at strengths on validation items, and on the text of the budget, as `try_out` does."""
    yield from _evaluated(run, title, validation_of(settings, strengths), steered)
    text = budget_text(settings, strengths)
    if text is not None:
        yield from _evaluated(run, f"{title}, {text.benchmark}", text, steered)


def _evaluated(
    run: PlannedRun, title: str, settings: EvaluationSettings, steered: Steering,
    others: Sequence[System] = (), benchmark: Benchmark | None = None,
) -> Iterator[Stage]:  # fmt: skip
    """The target under every condition and strength, each other system, and what judges their texts."""
    benchmark = benchmark or load_benchmark(settings)
    items = scored_items(benchmark, settings, steered)
    stages: list[Stage] = []
    for system in in_turn(System(TARGET, run.recipe.target), others):
        models = [run.model(model) for model in system.models]
        calls = Calls(benchmark, models[0], run.placing.answerers(models).batch(benchmark.batch_tokens))
        units = plan_units(items, steered.concepts, system.name)
        cost = Cost()
        for unit in units:
            interventions = [Intervention(system.name)]
            if system.name == TARGET:
                ids = [item.id for item in unit.items]
                interventions = steered.interventions(unit.concept, settings.strengths, ids)
            cost += calls.cost(system.instructed(unit.items), interventions)
        stages.append(
            Stage(
                name=title if system.name == TARGET else f"{title}, {system.name}",
                models=models,
                texts=len(items),
                tokens=sum(map(len, calls.texts)),
                cost=cost,
                tasks=len(units),
                actors=run.placing.answerers(models, cost.together),
                sample=calls.texts,
            )
        )
    yield from stages
    if isinstance(benchmark, Judged):
        judge, written = run.judge(benchmark.classifier), sum((stage.cost for stage in stages), Cost())
        tokens = written.written * written.longest
        yield Stage(
            name=f"{title}, judge",
            models=[judge],
            texts=written.written,
            tokens=tokens,
            cost=Cost(Counter({(0, None): tokens})),
            tasks=sum(stage.tasks for stage in stages),
            actors=run.placing.judges(judge, written.longest),
            sample=[[0] * written.longest] * written.written,
        )


def _probed(
    run: PlannedRun, name: str, settings: EvaluationSettings, steered: Steering, block: int
) -> Iterator[Stage]:
    """`examples` and `token_changes`: a few prompts of each concept, unsteered and steered."""
    if not (settings.examples or settings.token_changes):
        return
    benchmark = load_benchmark(settings)
    items = scored_items(benchmark, settings, steered)
    model = run.model(run.recipe.target)
    most = run.placing.answerers([model]).batch(BATCH_TOKENS)
    probes = [probe_of(benchmark, settings, items, concept, "", 1.0, {}) for concept in steered.concepts]

    def ids(prompts: Sequence[str], new_tokens: int) -> list[Ids]:
        return [cut_to(model.lm, text, new_tokens) for text in encode_many(model.lm, prompts)]

    read = [BASE, Intervention("", {block: _ROW}, 1.0)]
    examples = [ids([item.prompt for item in probe.examples], NEW_TOKENS) for probe in probes]
    prompts = [ids(probe.prompts, 0) for probe in probes]
    for what, texts, costs in (
        ("examples", examples, [generated(some, 2, NEW_TOKENS, BATCH_SIZE) for some in examples]),
        (
            "tokens", prompts,
            [scored(model.lm, some, [1] * len(some), most, range(len(some))).under(read) for some in prompts],
        ),
    ):  # fmt: skip
        flat, cost = [text for some in texts for text in some], sum(costs, Cost())
        if flat:
            yield Stage(
                name=f"{what} of {name}",
                models=[model],
                texts=len(flat),
                tokens=sum(map(len, flat)),
                cost=cost,
                tasks=sum(map(bool, texts)),
                actors=run.placing.answerers([model], cost.together),
                sample=flat,
            )
