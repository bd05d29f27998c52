"""What a recipe will take: memory, disk and hours, from its texts and the models' configurations alone."""

import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from contrans_dist.capturing.streamed import MEMORY
from contrans_dist.config import CaptureSettings, ModelSettings, Recipe
from contrans_dist.evaluate import load_benchmark
from contrans_dist.harvesters import SLOTS
from contrans_dist.models import CPU_TOKENS, encode_many, resolve_blocks, split_name
from contrans_dist.models.facts import own_dtype
from contrans_dist.models.loading import DTYPES, Described, describe, hub_errors
from contrans_dist.models.placement import (
    Placement,
    choose_placement,
    fewest_gpus,
    gpu_counts,
    host_memory,
    needs,
)
from contrans_dist.prefixes.groups import common
from contrans_dist.preparation import RecipeTexts, captures
from contrans_dist.shards import piece_rows, rows_per_shard
from contrans_dist.texts import prompts

TOKENS_A_WORD = 1.35
"""Of English in the vocabularies of Llama and its like; for models whose tokenizer is not on this machine."""
_STORED = {"float32": 0.90, "bfloat16": 0.70, "float16": 0.75}
"""Bytes on disk for a raw float32 byte of activations, measured."""
_ROW_BYTES = 60
"""Of a row besides its text and activations."""
_HELD = 2 * SLOTS
"""Captured pieces in memory: of each shard that an actor has, once as captured and once as it is written."""
_USUAL_MEMORY = 480 << 20
_HEAD_TOKENS = 4096
"""Tokens of a batch in an evaluation."""


@dataclass(frozen=True)
class Nodes:
    """The cluster to plan for: so many nodes of one kind. Memory in bytes."""

    count: int
    cpus: float
    memory: int
    gpus: int = 0
    gpu_memory: int = 0

    @classmethod
    def here(cls) -> "Nodes":
        """This machine."""
        import torch

        gpus = torch.cuda.device_count()
        room = torch.cuda.get_device_properties(0).total_memory if gpus else 0
        return cls(1, float(os.cpu_count() or 1), host_memory(), gpus, room)


@dataclass(frozen=True)
class Actors:
    """What one actor of a stage takes, and how many fit. Bytes."""

    model: str
    use: str
    placement: str
    why: str
    weights: int
    activations: int
    memory: int
    """Of the node, by its process at the peak."""
    gpus: float
    count: int
    threads: int
    """Of each, where it runs on the CPU."""


@dataclass(frozen=True)
class Texts:
    """Texts as sequences of tokens, or of words where the tokenizer is not here."""

    pieces: list[list[Hashable]]
    scale: float = 1.0

    @property
    def tokens(self) -> int:
        return round(self.scale * sum(map(len, self.pieces)))

    @property
    def distinct(self) -> float:
        """Tokens left when what texts begin with in common is counted once."""
        ordered = sorted(self.pieces, key=lambda piece: list(map(str, piece)))
        total = 0
        before: list[Hashable] = []
        for piece in ordered:
            total, before = total + len(piece) - common(piece, before), piece
        return self.scale * total

    def distinct_by(self, rows: int) -> float:
        """The same where so many consecutive texts run together, and share nothing with others."""
        starts = range(0, len(self.pieces), rows)
        return sum(Texts(self.pieces[start : start + rows], self.scale).distinct for start in starts)


class Side:
    """One model of a recipe."""

    def __init__(self, model: ModelSettings) -> None:
        self.model = model
        self.config = describe(model.id, head=False, trust_remote_code=model.trust_remote_code)
        self.dtype = model.dtype or own_dtype(self.config.config, self.config.source)
        shape = self.config.config.get_text_config()
        self.n_blocks, self.d = shape.num_hidden_layers, shape.hidden_size
        self.tokenizer = self._tokenizer()

    def _tokenizer(self) -> Any:
        source, _ = split_name(self.model.id)
        if not (Path(source) / "tokenizer_config.json").exists():
            return None
        with hub_errors(self.model.id):
            return AutoTokenizer.from_pretrained(source, trust_remote_code=self.model.trust_remote_code)

    def texts(self, given: Sequence[str], chat: bool = False) -> Texts:
        """The texts as this model sees them."""
        if self.tokenizer is None:
            return Texts([["", *text.split()] for text in given], TOKENS_A_WORD)
        encoder: Any = SimpleNamespace(tokenizer=self.tokenizer, name=self.model.id)
        return Texts([list(ids) for ids in encode_many(encoder, list(given), chat)])

    def described(self, head: bool, highest: int) -> Described:
        return describe(
            self.model.id, head=head, highest_block=highest, trust_remote_code=self.model.trust_remote_code
        )


@dataclass
class Stage:
    """One pass of a model over texts."""

    name: str
    side: Side
    seen: Texts
    work: float
    """Tokens times blocks that run, common beginnings once."""
    actors: Actors
    disk: int = 0
    """Bytes of Parquet."""
    seconds: float = 0.0


def actor_memory() -> int:
    """Bytes of a process that has what an actor needs and no model: this one has it too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return _USUAL_MEMORY
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


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
        items = [item for item in items if getattr(item, "kind", None) in (None, *settings.kinds)]
        seen = side.texts([item.prompt for item in items])
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


def as_content(stages: list[Stage], nodes: Nodes, rate: str) -> dict[str, Any]:
    """The plan as plain values, with what limits it."""
    actors = {(stage.actors.model, stage.actors.use): stage.actors for stage in stages}
    return {
        "cluster": asdict(nodes),
        "actors": [asdict(each) for each in actors.values()],
        "stages": [
            {
                "name": stage.name,
                "model": stage.actors.model,
                "texts": len(stage.seen.pieces),
                "tokens": stage.seen.tokens,
                "disk": stage.disk,
                "seconds": round(stage.seconds, 3),
            }
            for stage in stages
        ],
        "disk": sum(stage.disk for stage in stages),
        "hours": sum(stage.seconds for stage in stages) / 3600,
        "rate": rate,
        "limits": limits(stages, nodes),
    }


def limits(stages: list[Stage], nodes: Nodes) -> list[str]:
    """What holds the run back, the longest stage first."""
    longest = max(stages, key=lambda stage: stage.seconds)
    total = sum(stage.seconds for stage in stages) or 1.0
    found = [f"time: {longest.name} takes {longest.seconds / total:.0%} of it"] if longest.seconds else []
    for stage in stages:
        actors = stage.actors
        if actors.placement == "stream":
            found.append(f"memory: {actors.model} is streamed: {actors.why}")
        elif actors.memory * actors.count > nodes.memory * nodes.count:
            found.append(
                f"memory: {actors.count} actors of {actors.model} take {actors.memory / 1e9:.1f} GB each, a "
                f"node has {nodes.memory / 1e9:.1f} GB"
            )
        elif actors.gpus and nodes.gpus % actors.gpus:
            found.append(
                f"GPUs: {actors.model} takes {actors.gpus:g} of a node's {nodes.gpus}; the rest stay idle"
            )
    return list(dict.fromkeys(found))
