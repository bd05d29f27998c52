"""The harvests of a run: every model whose states it takes, on the texts that it takes them of."""

from collections.abc import Iterator

from contrans_dist.config import CaptureSettings
from contrans_dist.data.templates import prompts
from contrans_dist.engine.capture.batches import prepare, truncate
from contrans_dist.harvest.actors import SLOTS
from contrans_dist.harvest.compute import piece_rows
from contrans_dist.harvest.runnable import canary_rows
from contrans_dist.harvest.shards import row_ranges, rows_per_shard
from contrans_dist.models import encode_many, resolve_blocks
from contrans_dist.pipeline.inputs import READS, Harvested, captures, harvest_key, harvested
from contrans_dist.pipeline.plan.costs import Captured, Ids
from contrans_dist.pipeline.plan.models import PlannedModel
from contrans_dist.pipeline.plan.run import PlannedRun
from contrans_dist.pipeline.plan.stages import Actors, Stage

_STORED = {"float32": 0.90, "bfloat16": 0.70, "float16": 0.75}
"""Bytes on disk for a raw float32 byte of activations, measured."""
_ROW_BYTES = 60
"""Of a row besides its text and activations."""
_HELD = 2 * SLOTS
"""Captured pieces in memory: of each shard that an actor has, once as captured and once as it is written."""


def harvest_stages(run: PlannedRun) -> list[Stage]:
    """A stage for each activation set; those of one model are made by the same actors."""
    return [stage for each in harvested(run.recipe) for stage in _of_model(run, each)]


def _of_model(run: PlannedRun, harvest: Harvested) -> Iterator[Stage]:
    model = run.model(harvest.model)
    settings = dict(zip(READS, captures(run.recipe, harvest.side, model.n_blocks), strict=True))
    tables = {"corpus": run.corpus, "contrast": run.contrast}
    blocks = resolve_blocks(settings["corpus"].blocks, model.n_blocks)
    ids: dict[str, list[Ids]] = {}
    for what in harvest.reads:
        capture = settings[what]
        texts = prompts(tables[what], capture.template)
        encoded = encode_many(model.lm, texts, capture.chat, capture.chat_date)
        ids[what] = truncate(model.lm, encoded, capture.max_tokens)[0]
    longest = max(map(len, ids.values()))
    piece = min(rows_per_shard(longest, len(blocks), model.d, None), piece_rows(len(blocks), model.d))
    held = _HELD * piece * len(blocks) * model.d * 4
    tokens = sum(len(text) for texts in ids.values() for text in texts)
    actors = run.harvesters(model, max(blocks), held, tokens)
    for what in harvest.reads:
        name = f"harvest {what}-{harvest.name}"
        stage = _stage(name, model, ids[what], blocks, settings[what], actors)
        stage.disk += sum(len(text.encode()) for text in tables[what].column("text").to_pylist())
        stage.key = harvest_key(harvest.model, settings[what], tables[what])
        yield stage


def _stage(
    name: str, model: PlannedModel, ids: list[Ids], blocks: list[int], capture: CaptureSettings,
    actors: Actors,
) -> Stage:  # fmt: skip
    """Piece by piece of each shard, and the rows of each shard that are run once more alone."""
    prepared = prepare(model.lm, ids, capture.position)
    most = actors.batch(capture.batch_tokens)
    shards = row_ranges(0, len(ids), rows_per_shard(len(ids), len(blocks), model.d, None))
    size = piece_rows(len(blocks), model.d)

    def cost(rows: range | list[int], share: bool, most: int) -> Captured:
        texts, wanted = [prepared.ids[row] for row in rows], [prepared.tokens[row] for row in rows]
        return Captured.of(model.lm, texts, wanted, share, max(blocks), most)

    costs = []
    for shard in shards:
        for piece in row_ranges(shard.start, shard.stop, size):
            costs.append(cost(piece, not prepared.mean, most))
        costs.append(cost([shard[row] for row in canary_rows(min(size, len(shard)))], False, 1))
    values = len(ids) * len(blocks) * model.d * 4
    return Stage(
        name=name,
        models=[model],
        texts=len(ids),
        tokens=sum(prepared.lengths),
        costs=costs,
        tasks=len(shards),
        actors=actors,
        disk=round(values * _STORED[model.dtype]) + _ROW_BYTES * len(ids),
    )
