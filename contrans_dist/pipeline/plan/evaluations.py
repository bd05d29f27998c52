"""What a run scores: the choice of blocks and strengths, each evaluation under every condition, other
systems, the judge, and the prompts that are read one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from contrans_dist.benchmarks import Benchmark, Completions, Judged, ScoredItem, load_benchmark
from contrans_dist.config import EvaluationSettings
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.engine.scoring import Intervention
from contrans_dist.engine.scoring.generation import BATCH_SIZE
from contrans_dist.evaluation.baselines import TARGET, System, in_turn
from contrans_dist.evaluation.block_search import candidates, few_strengths, harvested_blocks
from contrans_dist.evaluation.conditions import condition_of, systems_of
from contrans_dist.evaluation.samples import NEW_TOKENS, probe_of
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.trials import budget_text, validation_of
from contrans_dist.evaluation.work_units import plan_units, scored_items
from contrans_dist.mapping.map_header import BlockTable
from contrans_dist.models import cut_to, encode_many, matched_depth, resolve_blocks
from contrans_dist.pipeline.inputs import captures
from contrans_dist.pipeline.plan.costs import Classified, Cost, Generated, Scored
from contrans_dist.pipeline.plan.models import PlannedModel
from contrans_dist.pipeline.plan.run import HEAD_TOKENS, PlannedRun
from contrans_dist.pipeline.plan.stages import Stage
from contrans_dist.vectors.from_activations import concept_rows

_ROW = np.ones(1, np.float32)
"""Stands for a vector: where it is added counts, not what."""


def evaluation_stages(run: PlannedRun) -> list[Stage]:
    """Every stage in which a model is steered, or answers in another way."""
    stages = _choosing_blocks(run)
    for name, settings in run.placed.evaluations.items():
        stages += _assessed(run, name, settings)
    return stages


def _choosing_blocks(run: PlannedRun) -> list[Stage]:
    """`blocks: best`: every pair that comes into question, on validation items, at every second strength."""
    recipe = run.placed
    settings = recipe.chosen_on
    if recipe.blocks != "best" or settings is None:
        return []
    both: list[list[int]] = []
    for side, model in (
        ("source", recipe.map_source or recipe.source),
        ("target", recipe.map_target or recipe.target),
    ):
        n_blocks = run.model(model).n_blocks
        both.append(resolve_blocks(captures(recipe, side, n_blocks)[0].blocks, n_blocks))
    pairs = candidates(BlockTable.of(both[0], both[1], np.zeros((len(both[0]), len(both[1])))))
    steered = _steering(run, settings, {f"{source}:{target}": target for source, target in pairs})
    return _tried(run, "choose blocks", settings, steered, few_strengths(settings.strengths))


def _assessed(run: PlannedRun, name: str, settings: EvaluationSettings) -> list[Stage]:
    """One evaluation, as `assess` goes about it."""
    recipe, stages = run.recipe, []
    one_width = run.model(recipe.source).d == run.model(recipe.target).d
    vectors = [
        condition
        for condition in map(condition_of, settings.conditions)
        if not condition.no_vector and (one_width or not condition.same_width)
    ]
    block = _steered_block(run)
    steered = _steering(run, settings, {condition.name: block for condition in vectors})
    if settings.search is not None:
        tried = [condition.name for condition in vectors if condition.role != "control"]
        stages += _tried(run, f"strengths of {name}", settings, steered.only(tried), settings.strengths)
        steered = replace(steered, chosen={condition.name: 1.0 for condition in vectors})
    stages += _evaluated(run, f"evaluate {name}", settings, steered, systems_of(recipe, settings))
    return stages + (_probed(run, name, settings, steered, block) if vectors else [])


def _steered_block(run: PlannedRun) -> int:
    """The block that is steered; that of matched depth where it is yet to be chosen."""
    n_blocks = run.model(run.recipe.target).n_blocks
    spec = harvested_blocks(run.recipe, "target", n_blocks)
    return matched_depth(n_blocks) if spec == "all" else int(spec)


def _steering(run: PlannedRun, settings: EvaluationSettings, blocks: dict[str, int]) -> Steering:
    """What is added where, by condition, without the vectors themselves."""
    concepts = list(dict.fromkeys(run.contrast.column("concept").to_pylist()))
    rows = {concept: {name: {block: _ROW} for name, block in blocks.items()} for concept in concepts}
    steered = Steering(rows, seed=settings.seed)
    if settings.only_unseen:
        corpus = unit_hashes(run.corpus.column("text").to_pylist())
        steered = replace(steered, vector_texts=_seen(run, concepts), map_texts=corpus)
    return steered if settings.concepts is None else steered.about(settings.concepts)


@dataclass(frozen=True)
class _Contrast:
    """Contrast texts as they are read from an activation set."""

    table: pa.Table
    location: str = "concepts.texts"

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        return self.table.select(list(names))


def _seen(run: PlannedRun, concepts: Sequence[str]) -> np.ndarray:
    """Units of the texts behind the vectors."""
    settings, texts = run.recipe.concepts, run.contrast.column("text").to_pylist()
    contrast = cast(Any, _Contrast(run.contrast))
    rows = {
        row
        for concept in concepts
        for side in concept_rows(contrast, concept, settings.seed, settings.limit)
        for row in side
    }
    return unit_hashes(texts[row] for row in sorted(rows))


def _tried(
    run: PlannedRun, title: str, settings: EvaluationSettings, steered: Steering, strengths: tuple[float, ...]
) -> list[Stage]:
    """Conditions at strengths on validation items, and on the text of the budget, as `try_out` does."""
    stages = _evaluated(run, title, validation_of(settings, strengths), steered)
    text = budget_text(settings, strengths)
    return stages + (_evaluated(run, f"{title}, {text.benchmark}", text, steered) if text else [])


def _evaluated(
    run: PlannedRun, title: str, settings: EvaluationSettings, steered: Steering,
    others: Sequence[System] = (),
) -> list[Stage]:  # fmt: skip
    """The target under every condition and strength, each other system, and what judges their texts."""
    benchmark = load_benchmark(settings)
    items = scored_items(benchmark, settings, steered)
    stages: list[Stage] = []
    for system in in_turn(System(TARGET, run.recipe.target), others):
        models = [run.model(model) for model in system.models]
        scoring = Asked(benchmark, models[0], run.answerers(models).batch(HEAD_TOKENS))
        splits = plan_units(items, steered.concepts, system.name)
        costs: list[Cost] = []
        for split in splits:
            interventions = [Intervention(system.name)]
            if system.name == TARGET:
                ids = [item.id for item in split.items]
                interventions = steered.interventions(split.concept, settings.strengths, ids)
            costs += scoring.costs(system.instructed(split.items), interventions)
        name = title if system.name == TARGET else f"{title}, {system.name}"
        actors = run.answerers(models, costs)
        stages.append(Stage(name, models, len(items), scoring.tokens, costs, len(splits), actors))
    return stages + ([_judged(run, title, benchmark, stages)] if isinstance(benchmark, Judged) else [])


def _judged(run: PlannedRun, title: str, benchmark: Judged, stages: Sequence[Stage]) -> Stage:
    """The classifier on all that these stages write."""
    written = [cost for stage in stages for cost in stage.costs if isinstance(cost, Generated)]
    texts = sum(len(cost.ids) * cost.times for cost in written)
    longest = max((cost.new_tokens for cost in written), default=0)
    judge, cost = run.judge(benchmark.classifier), Classified(texts, longest)
    tasks = sum(stage.tasks for stage in stages)
    return Stage(f"{title}, judge", [judge], texts, cost.tokens, [cost], tasks, run.judges(judge, longest))


class Asked:
    """What a benchmark asks of one model; items that come again are cut into tokens once."""

    def __init__(self, benchmark: Benchmark, model: PlannedModel, most: int) -> None:
        """`most`: tokens of a batch."""
        self.benchmark, self.model, self.most = benchmark, model, most
        self._known: dict[tuple[str, int, bool], list[Scored | Generated]] = {}

    @property
    def tokens(self) -> int:
        """Of all that was asked, each item once."""
        shared = [costs for (*_, apart), costs in self._known.items() if not apart]
        return sum(len(text) for costs in shared for cost in costs for text in cost.ids)

    def costs(self, items: Sequence[ScoredItem], interventions: Sequence[Intervention]) -> list[Cost]:
        """Of the calls that `Benchmark.score` makes."""
        costs: list[Cost] = []
        for apart in (False, True):
            blocks = tuple(
                intervention.block for intervention in interventions if intervention.per_item == apart
            )
            for cost in self._once(items, apart) if blocks or not apart else ():
                if isinstance(cost, Scored) and blocks:
                    costs.append(replace(cost, blocks=blocks))
                elif isinstance(cost, Generated) and not apart:  # texts are written under all at once
                    costs.append(replace(cost, times=len(interventions)))
        return costs

    def _once(self, items: Sequence[ScoredItem], apart: bool) -> list[Scored | Generated]:
        """The same calls without an intervention."""
        key = items[0].id, len(items), apart
        if key not in self._known:
            lm = self.model.lm
            self._known[key] = [
                Generated(call.prompts, 1, call.max_new_tokens, call.batch_size)
                if isinstance(call, Completions)
                else Scored.of(lm, call.sequences, call.positions, (None,), apart, self.most)
                for call in self.benchmark.calls(lm, items, apart)
            ]
        return self._known[key]


def _probed(
    run: PlannedRun, name: str, settings: EvaluationSettings, steered: Steering, block: int
) -> list[Stage]:
    """`examples` and `token_changes`: a few prompts of each concept, unsteered and steered."""
    if not (settings.examples or settings.token_changes):
        return []
    items = scored_items(load_benchmark(settings), settings, steered)
    model = run.model(run.recipe.target)
    most = run.answerers([model]).batch(HEAD_TOKENS)

    def ids(prompts: list[str], new_tokens: int) -> list[list[int]]:
        return [cut_to(model.lm, text, new_tokens) for text in encode_many(model.lm, prompts)]

    examples: list[Generated | Scored] = []
    tokens: list[Generated | Scored] = []
    for concept in steered.concepts:
        probe = probe_of(settings, items, concept, "", 1.0, {})
        if probe.examples:
            prompts = ids([item.prompt for item in probe.examples], NEW_TOKENS)
            examples.append(Generated(prompts, 2, NEW_TOKENS, BATCH_SIZE))
        if probe.prompts:
            prompts = ids(probe.prompts, 0)
            tokens.append(Scored.of(model.lm, prompts, [1] * len(prompts), (None, block), False, most))
    stages = []
    for what, costs in (("examples", examples), ("tokens", tokens)):
        texts = [text for cost in costs for text in cost.ids]
        if texts:
            actors, count = run.answerers([model], costs), sum(map(len, texts))
            stages.append(Stage(f"{what} of {name}", [model], len(texts), count, costs, len(costs), actors))
    return stages
