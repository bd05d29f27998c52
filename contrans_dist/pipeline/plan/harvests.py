"""The harvests of a run: every model whose states it takes, on the texts that it takes them of."""

from collections.abc import Iterator

from contrans_dist.config import CaptureSettings
from contrans_dist.data.templates import prompts
from contrans_dist.engine.capture.batches import prepare, truncate
from contrans_dist.harvest.actors import SLOTS
from contrans_dist.harvest.compute import canary_rows, piece_rows, plan_shards, rows_per_shard
from contrans_dist.models import resolve_blocks
from contrans_dist.pipeline.inputs import READS, Harvested, captures, harvested, identity_of
from contrans_dist.pipeline.plan.calls import Captured
from contrans_dist.pipeline.plan.frame import Frame
from contrans_dist.pipeline.plan.parts import Actors, Stage
from contrans_dist.pipeline.plan.sides import Side

_STORED = {"float32": 0.90, "bfloat16": 0.70, "float16": 0.75}
"""Bytes on disk for a raw float32 byte of activations, measured."""
_ROW_BYTES = 60
"""Of a row besides its text and activations."""
_HELD = 2 * SLOTS
"""Captured pieces in memory: of each shard that an actor has, once as captured and once as it is written."""


def harvest_stages(frame: Frame) -> list[Stage]:
    """A stage for each activation set; those of one model are made by the same actors."""
    return [stage for each in harvested(frame.recipe) for stage in _of_model(frame, each)]


def _of_model(frame: Frame, each: Harvested) -> Iterator[Stage]:
    side, reads = frame.side(each.model), each.reads
    both = dict(zip(READS, captures(frame.recipe, each.side, side.n_blocks), strict=True))
    tables = {"corpus": frame.corpus, "contrast": frame.contrast}
    blocks = resolve_blocks(both["corpus"].blocks, side.n_blocks)
    ids = {}
    for what in reads:
        capture = both[what]
        texts = prompts(tables[what], capture.template)
        ids[what] = truncate(side.lm, side.ids(texts, capture.chat, capture.chat_date), capture.max_tokens)[0]
    piece = min(_rows(max(map(len, ids.values())), blocks, side), piece_rows(len(blocks), side.d))
    held = _HELD * piece * len(blocks) * side.d * 4
    actors = frame.harvesters(
        side, max(blocks), held, sum(len(text) for texts in ids.values() for text in texts)
    )
    for what in reads:
        stage = _stage(f"harvest {what}-{each.name}", side, ids[what], blocks, both[what], actors)
        stage.disk += sum(len(text.encode()) for text in tables[what].column("text").to_pylist())
        stage.key = identity_of(each.model, both[what], tables[what])
        yield stage


def _rows(texts: int, blocks: list[int], side: Side) -> int:
    return rows_per_shard(texts, len(blocks), side.d, None)


def _stage(
    name: str, side: Side, ids: list[list[int]], blocks: list[int], capture: CaptureSettings, actors: Actors
) -> Stage:
    """Piece by piece of each shard, and the rows of each shard that are run once more alone."""
    prepared = prepare(side.lm, ids, capture.position)
    most = actors.batch(capture.batch_tokens)
    shards = plan_shards(len(ids), _rows(len(ids), blocks, side))
    size = piece_rows(len(blocks), side.d)

    def call(rows: range | list[int], alone: bool = False) -> Captured:
        texts, wanted = [prepared.ids[row] for row in rows], [prepared.tokens[row] for row in rows]
        return Captured.of(side.lm, texts, wanted, prepared.mean or alone, max(blocks), 1 if alone else most)

    calls = []
    for shard in shards:
        end = shard.start + shard.rows
        calls += [call(range(start, min(start + size, end))) for start in range(shard.start, end, size)]
        calls.append(call([shard.start + row for row in canary_rows(min(size, shard.rows))], alone=True))
    values = len(ids) * len(blocks) * side.d * 4
    return Stage(
        name=name,
        sides=[side],
        texts=len(ids),
        tokens=sum(prepared.lengths),
        calls=calls,
        tasks=len(shards),
        actors=actors,
        disk=round(values * _STORED[side.dtype]) + _ROW_BYTES * len(ids),
    )
