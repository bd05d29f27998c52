"""The stages of a recipe that run a model."""

import math
from pathlib import Path
from typing import Any

from contrans_dist.capturing.streamed import MEMORY
from contrans_dist.catalogue import load_benchmark
from contrans_dist.config import CaptureSettings, Recipe
from contrans_dist.harvesters import SLOTS
from contrans_dist.models import CPU_TOKENS, resolve_blocks
from contrans_dist.models.loading import DTYPES, Described
from contrans_dist.models.placement import Placement, choose_placement, fewest_gpus, gpu_counts, needs
from contrans_dist.plan.parts import Actors, Nodes, Side, Stage, Texts
from contrans_dist.preparation import RecipeTexts, captures
from contrans_dist.recipe import runs_of
from contrans_dist.shards import piece_rows, rows_per_shard
from contrans_dist.texts import prompts

_STORED = {"float32": 0.90, "bfloat16": 0.70, "float16": 0.75}
"""Bytes on disk for a raw float32 byte of activations, measured."""
_ROW_BYTES = 60
"""Of a row besides its text and activations."""
_HELD = 2 * SLOTS
"""Captured pieces in memory: of each shard that an actor has, once as captured and once as it is written."""
_HEAD_TOKENS = 4096
"""Tokens of a batch in an evaluation."""


def plan_runs(recipe: Recipe, folder: Path, nodes: Nodes, base_memory: int) -> list[Stage]:
    """`plan_recipe` over every run of a recipe; harvests that runs share are there once.

    `folder`: a place for bundled texts.
    """
    shared: set[tuple[str, str, int]] = set()
    found = []
    for one in runs_of(recipe).values():
        for stage in plan_recipe(one, RecipeTexts(one, folder), nodes, base_memory):
            key = (stage.name.rpartition("-")[0], stage.side.model.id, len(stage.seen.pieces))
            if stage.name.startswith("harvest") and key in shared:
                continue
            shared.add(key)
            found.append(stage)
    return found


def plan_recipe(recipe: Recipe, texts: RecipeTexts, nodes: Nodes, base_memory: int) -> list[Stage]:
    """The stages of a recipe that run a model, without their seconds.

    `base_memory`: bytes of an actor's process before it loads anything. Raises UserError for texts or models
    that are not there, and for a model that the nodes cannot hold.
    """
    corpus, contrast = texts.corpus(), texts.contrast()
    stages = []
    for name, model in (("source", recipe.source), ("target", recipe.target)):
        side = Side(model)
        both = captures(recipe, name, side.n_blocks)
        blocks = resolve_blocks(both[0].blocks, side.n_blocks)
        described = side.described(False, max(blocks))
        rows = _together(max(corpus.num_rows, contrast.num_rows), blocks, side)
        held = rows * len(blocks) * side.d * 4
        tables = (corpus, contrast)
        texts_seen = [
            side.texts(prompts(table, capture.template), capture.chat)
            for table, capture in zip(tables, both, strict=True)
        ]
        tokens = sum(seen.tokens for seen in texts_seen)
        actors = _actors(recipe, side, described, "harvest", nodes, base_memory + _HELD * held, tokens)
        for what, table, capture, seen in zip(("corpus", "contrast"), tables, both, texts_seen, strict=True):
            stage = _harvest_stage(f"harvest {what}-{name}", side, seen, blocks, capture, actors)
            stage.disk += sum(len(text.encode()) for text in table.column("text").to_pylist())
            stages.append(stage)
    return stages + _evaluations(recipe, texts, side, nodes, base_memory)


def _together(texts: int, blocks: list[int], side: Side) -> int:
    """Rows that an actor captures at a time."""
    return min(rows_per_shard(texts, len(blocks), side.d, None), piece_rows(len(blocks), side.d))


def _harvest_stage(
    name: str, side: Side, seen: Texts, blocks: list[int], capture: CaptureSettings, actors: Actors
) -> Stage:
    together = _together(len(seen.pieces), blocks, side)
    tokens = seen.tokens if capture.position == "mean" else seen.distinct_by(together)
    values = len(seen.pieces) * len(blocks) * side.d * 4
    return Stage(
        name=name,
        side=side,
        seen=seen,
        work=tokens * (max(blocks) + 1),
        actors=actors,
        disk=round(values * _STORED[side.dtype]) + _ROW_BYTES * len(seen.pieces),
    )


def _evaluations(
    recipe: Recipe, texts: RecipeTexts, side: Side, nodes: Nodes, base_memory: int
) -> list[Stage]:
    """Every item under the base, and under each condition at each strength from the steered block on."""
    described = side.described(True, side.n_blocks - 1)
    actors = _actors(recipe, side, described, "evaluate", nodes, base_memory)
    stages = []
    for name, settings in recipe.evaluations.items():
        items = load_benchmark(texts.placed(settings)).items()
        kinds = getattr(settings, "kinds", ())
        items = [item for item in items if not kinds or getattr(item, "kind", None) in (None, *kinds)]
        seen = side.texts([getattr(item, "prompt", item.scenario) for item in items])
        steered = _steered_block(recipe, side.n_blocks)
        above, strengths = side.n_blocks - steered, sum(s != 0 for s in settings.strengths)
        shared = [condition for condition in settings.conditions if condition != "random"]
        work = seen.distinct * (side.n_blocks + above * len(shared) * strengths)
        if "random" in settings.conditions:
            # Each item has a direction of its own, so nothing is shared.
            work += seen.tokens * (steered + above * strengths)
        stages.append(Stage(f"evaluate {name}", side, seen, work, actors))
    return stages


def _steered_block(recipe: Recipe, n_blocks: int) -> int:
    _, mark, target = recipe.map.blocks.partition(":")
    return int(target) if mark and target.isdigit() else 3 * n_blocks // 4


def _actors(
    recipe: Recipe,
    side: Side,
    described: Described,
    use: str,
    nodes: Nodes,
    base_memory: int,
    streamed_tokens: int = 0,
) -> Actors:
    """The fewest GPUs that hold the model, as far as a node has them, and the actors that then fit.

    `streamed_tokens`: those whose states a streamed model keeps.
    """
    head, settings = use == "evaluate", side.model
    tokens = _HEAD_TOKENS if head else recipe.batch_tokens
    gpus, placement = _placed(recipe, side, described, nodes, head, tokens)
    need = needs(
        described, side.dtype, settings.quantization, tokens if gpus else min(tokens, CPU_TOKENS), head
    )
    memory = base_memory
    if placement.kind == "stream":
        states = min(MEMORY, streamed_tokens * side.d * DTYPES[side.dtype].itemsize)
        memory += max(need.embedding, 2 * need.largest_block) + need.activations + states
    elif not gpus:
        memory += need.total
    by_node = int(nodes.gpus // gpus) if gpus else _by_cores(recipe, nodes)
    fit = nodes.count * max(1, min(by_node, int(nodes.memory // memory) or 1))
    count = min(recipe.cluster.actors or fit, fit) if gpus else recipe.cluster.actors or fit
    return Actors(
        model=settings.id,
        use=use,
        placement=placement.kind,
        why=placement.reason,
        weights=need.weights,
        activations=need.activations,
        memory=memory,
        gpus=gpus,
        count=count,
        threads=max(1, int(nodes.cpus * nodes.count // count)),
    )


def _placed(
    recipe: Recipe, side: Side, described: Described, nodes: Nodes, head: bool, tokens: int
) -> tuple[float, Placement]:
    """(GPUs of an actor, placement), as the run itself will choose them."""

    def choose(gpus: float) -> Placement:
        memories: dict[Any, int] = dict.fromkeys(range(math.ceil(gpus)), nodes.gpu_memory)
        return choose_placement(
            side.model.id,
            **side.model.model_dump(exclude={"id"}),
            highest_block=described.highest,
            head=head,
            asked="auto" if head else recipe.cluster.placement,
            memories=memories | {"cpu": nodes.memory},
            batch_tokens=tokens,
            share=min(gpus, 1.0) if gpus else 1.0 / _by_cores(recipe, nodes),
        )

    return fewest_gpus(gpu_counts(recipe.cluster.gpus_per_actor, nodes.gpus), choose, side.model.id, head)


def _by_cores(recipe: Recipe, nodes: Nodes) -> int:
    """Actors without GPUs that a node's cores have room for."""
    cluster = recipe.cluster
    shared = max(1, nodes.cpus * nodes.count // cluster.actors) if cluster.actors else nodes.cpus
    return max(1, int(nodes.cpus // (cluster.cpus_per_actor or min(shared, nodes.cpus))))
