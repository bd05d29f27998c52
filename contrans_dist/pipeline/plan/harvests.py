"""The harvests of a run: every model whose states it takes, on the texts that it takes them of."""

from collections.abc import Iterator

from contrans_dist.engine.capture.batches import prepare
from contrans_dist.harvest.compute import piece_rows
from contrans_dist.harvest.disk import stored_bytes
from contrans_dist.harvest.runnable import canary_rows, token_ids
from contrans_dist.harvest.shards import row_ranges, rows_per_shard
from contrans_dist.models import resolve_blocks
from contrans_dist.pipeline.inputs import captures, harvest_key, harvested
from contrans_dist.pipeline.plan.costs import Cost, captured
from contrans_dist.pipeline.plan.stages import PlannedRun, Stage

_ROW_BYTES = 60
"""Of a row besides its text and activations."""


def harvest_stages(run: PlannedRun) -> Iterator[Stage]:
    """A stage for each activation set; those of one model are made by the same actors."""
    tables = run.tables
    for harvest in harvested(run.recipe):
        model = run.model(harvest.model)
        settings = captures(run.recipe, harvest.side, model.n_blocks)
        blocks = resolve_blocks(settings["contrast"].blocks, model.n_blocks)
        prepared = {
            what: prepare(
                model.lm, token_ids(model.lm, tables[what], settings[what])[0], settings[what].position
            )
            for what in harvest.reads
        }
        # A piece is captured before it is written: its rows at every block, float32.
        piece, row_bytes = piece_rows(len(blocks), model.d), len(blocks) * model.d * 4
        longest = max(len(texts.ids) for texts in prepared.values())
        rows = min(rows_per_shard(longest, len(blocks), model.d, None), piece)
        tokens = sum(sum(texts.lengths) for texts in prepared.values())
        batch_tokens = run.recipe.batch_tokens
        held = 2 * rows * row_bytes  # once as captured, and once as they are written
        actors = run.placing.harvesters(model, max(blocks), batch_tokens, held, tokens)
        most = actors.batch(batch_tokens)
        for what, texts in prepared.items():
            ids, own_from, n_texts = texts.ids, texts.tokens, len(texts.ids)
            shards = row_ranges(0, n_texts, rows_per_shard(n_texts, len(blocks), model.d, None))
            cost = Cost()
            for shard in shards:
                for rows_together in row_ranges(shard.start, shard.stop, piece):
                    part = slice(rows_together.start, rows_together.stop)
                    cost += captured(model.lm, ids[part], own_from[part], not texts.mean, max(blocks), most)
                for row in canary_rows(min(piece, len(shard))):  # run once more alone
                    alone = slice(shard.start + row, shard.start + row + 1)
                    cost += captured(model.lm, ids[alone], own_from[alone], False, max(blocks), 1)
            text_bytes = sum(len(text.encode()) for text in tables[what].column("text").to_pylist())
            position = settings[what].position
            stored = stored_bytes(n_texts, len(blocks), model.d, model.dtype, position)
            yield Stage(
                name=f"harvest {what}-{harvest.name}",
                models=[model],
                texts=n_texts,
                tokens=sum(texts.lengths),
                cost=cost,
                tasks=len(shards),
                actors=actors,
                sample=ids,
                key=harvest_key(harvest.model, settings[what], tables[what]),
                disk=stored + _ROW_BYTES * n_texts + text_bytes,
            )
