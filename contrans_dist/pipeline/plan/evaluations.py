"""What a run scores: the choice of blocks and strengths, each evaluation under every condition, other
systems, the judge, and the prompts that are read one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from contrans_dist.benchmarks import Judged
from contrans_dist.benchmarks.registry import load_benchmark
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
from contrans_dist.evaluation.work_units import plan_splits, scored_items
from contrans_dist.mapping.map_header import BlockTable
from contrans_dist.models import cut_to, matched_depth, resolve_blocks
from contrans_dist.pipeline.inputs import captures
from contrans_dist.pipeline.plan.asked import Asking
from contrans_dist.pipeline.plan.calls import Call, Classified, Generated, Scored
from contrans_dist.pipeline.plan.frame import HEAD_TOKENS, Frame
from contrans_dist.pipeline.plan.parts import Stage
from contrans_dist.vectors.from_activations import concept_rows

_ROW = np.ones(1, np.float32)
"""Stands for a vector: where it is added counts, not what."""


def evaluation_stages(frame: Frame) -> list[Stage]:
    """Every stage in which a model is steered, or answers in another way."""
    stages = _choosing_blocks(frame)
    for name, settings in frame.placed.evaluations.items():
        stages += _assessed(frame, name, settings)
    return stages


def _choosing_blocks(frame: Frame) -> list[Stage]:
    """`blocks: best`: every pair that comes into question, on validation items, at every second strength."""
    recipe = frame.placed
    settings = recipe.chosen_on
    if recipe.blocks != "best" or settings is None:
        return []
    both: list[list[int]] = []
    for on, model in (
        ("source", recipe.map_source or recipe.source),
        ("target", recipe.map_target or recipe.target),
    ):
        n_blocks = frame.side(model).n_blocks
        both.append(resolve_blocks(captures(recipe, on, n_blocks)[0].blocks, n_blocks))
    pairs = candidates(BlockTable.of(both[0], both[1], np.zeros((len(both[0]), len(both[1])))))
    steered = _steering(frame, settings, {f"{source}:{target}": target for source, target in pairs})
    return _tried(frame, "choose blocks", settings, steered, few_strengths(settings.strengths))


def _assessed(frame: Frame, name: str, settings: EvaluationSettings) -> list[Stage]:
    """One evaluation, as `assess` goes about it."""
    recipe, stages = frame.recipe, []
    one_width = frame.side(recipe.source).d == frame.side(recipe.target).d
    entries = [entry for entry in map(condition_of, settings.conditions) if not entry.no_vector]
    entries = [entry for entry in entries if one_width or not entry.same_width]
    vectors = [entry.name for entry in entries]
    steered = _steering(frame, settings, dict.fromkeys(vectors, _steered_block(frame)))
    if settings.search is not None:
        own = [entry.name for entry in entries if entry.role != "control"]
        stages += _tried(frame, f"strengths of {name}", settings, steered.only(own), settings.strengths)
        steered = replace(steered, chosen=dict.fromkeys(vectors, 1.0))
    stages += _evaluated(frame, f"evaluate {name}", settings, steered, systems_of(recipe, settings))
    if vectors:
        stages += _probed(frame, name, settings, steered)
    return stages


def _steered_block(frame: Frame) -> int:
    """The block that is steered; that of matched depth where it is yet to be chosen."""
    n_blocks = frame.side(frame.recipe.target).n_blocks
    spec = harvested_blocks(frame.recipe, "target", n_blocks)
    return matched_depth(n_blocks) if spec == "all" else int(spec)


def _steering(frame: Frame, settings: EvaluationSettings, blocks: dict[str, int]) -> Steering:
    """What is added where, by condition, without the vectors themselves."""
    concepts = list(dict.fromkeys(frame.contrast.column("concept").to_pylist()))
    rows = {concept: {name: {block: _ROW} for name, block in blocks.items()} for concept in concepts}
    steered = Steering(rows, seed=settings.seed)
    if settings.only_unseen:
        steered = replace(steered, vector_texts=_seen(frame, concepts), map_texts=_seen_by_map(frame))
    return steered if settings.concepts is None else steered.about(settings.concepts)


@dataclass(frozen=True)
class _Table:
    """Texts as they are read from an activation set."""

    table: pa.Table
    location: str = "concepts.texts"

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        return self.table.select(list(names))


def _seen(frame: Frame, concepts: Sequence[str]) -> np.ndarray:
    """Units of the texts behind the vectors."""
    settings, texts = frame.recipe.concepts, frame.contrast.column("text").to_pylist()
    rows = [
        concept_rows(cast(Any, _Table(frame.contrast)), concept, settings.seed, settings.limit)
        for concept in concepts
    ]
    return unit_hashes(texts[row] for both in rows for part in both for row in part)


def _seen_by_map(frame: Frame) -> np.ndarray:
    return unit_hashes(frame.corpus.column("text").to_pylist())


def _tried(
    frame: Frame, title: str, settings: EvaluationSettings, steered: Steering, strengths: tuple[float, ...]
) -> list[Stage]:
    """Conditions at strengths on validation items, and on the text of the budget, as `try_out` does."""
    stages = _evaluated(frame, title, validation_of(settings, strengths), steered)
    text = budget_text(settings, strengths)
    return stages + (_evaluated(frame, f"{title}, perplexity", text, steered) if text is not None else [])


def _evaluated(
    frame: Frame,
    title: str,
    settings: EvaluationSettings,
    steered: Steering,
    others: Sequence[System] = (),
) -> list[Stage]:
    """The target under every condition and strength, each other system, and what judges their texts."""
    benchmark = load_benchmark(settings)
    items = scored_items(benchmark, settings, steered)
    stages, texts, tasks, new = [], 0, 0, 0
    target = System(TARGET, frame.recipe.target)
    for system in in_turn(target, others):
        sides = [frame.side(model) for model in system.models]
        most = frame.answerers(sides).batch(HEAD_TOKENS)
        asking = Asking(benchmark, sides[0], most)
        splits = plan_splits(items, steered.concepts, system.name)
        calls: list[Call] = []
        for split in splits:
            interventions = [Intervention(system.name)]
            if system.name == TARGET:
                ids = [item.id for item in split.items]
                interventions = steered.interventions(split.concept, settings.strengths, ids)
            calls += asking.of(system.asked(split.items), interventions)
        name = title if system.name == TARGET else f"{title}, {system.name}"
        actors = frame.answerers(sides, calls)
        stages.append(Stage(name, sides, len(items), asking.tokens, calls, len(splits), actors))
        generated = [call for call in calls if isinstance(call, Generated)]
        texts += sum(len(call.ids) * call.times for call in generated)
        tasks += len(splits)
        new = max([new, *(call.new_tokens for call in generated)])
    if isinstance(benchmark, Judged):
        judge = frame.models.judge(benchmark.classifier)
        judged = Classified(texts, new)
        actors = frame.judges(judge, new)
        stages.append(Stage(f"{title}, judge", [judge], texts, judged.tokens, [judged], tasks, actors))
    return stages


def _probed(frame: Frame, name: str, settings: EvaluationSettings, steered: Steering) -> list[Stage]:
    """`examples` and `token_changes`: a few prompts of each concept, unsteered and steered."""
    if not (settings.examples or settings.token_changes):
        return []
    items = scored_items(load_benchmark(settings), settings, steered)
    side, block = frame.side(frame.recipe.target), _steered_block(frame)
    most = frame.answerers([side]).batch(HEAD_TOKENS)
    calls: dict[str, list[Generated | Scored]] = {"examples": [], "tokens": []}
    for concept in steered.concepts:
        probe = probe_of(settings, items, concept, "", 1.0, {})
        examples, prompts = side.ids([item.prompt for item in probe.examples]), side.ids(probe.prompts)
        if examples:
            ids = [cut_to(side.lm, each, NEW_TOKENS) for each in examples]
            calls["examples"].append(Generated.of(ids, 2, NEW_TOKENS, BATCH_SIZE))
        if prompts:
            ids = [cut_to(side.lm, each, 0) for each in prompts]
            calls["tokens"].append(Scored.of(side.lm, ids, [1] * len(ids), (None, block), False, most))
    stages: list[Stage] = []
    for what, found in calls.items():
        texts = [ids for call in found for ids in call.ids]
        if texts:
            tokens, actors = sum(map(len, texts)), frame.answerers([side], found)
            stages.append(Stage(f"{what} of {name}", [side], len(texts), tokens, found, len(found), actors))
    return stages
