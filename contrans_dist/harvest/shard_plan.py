"""A shard as it is made by going through a model block by block: its batches, and its rows put together."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

from contrans_dist.engine.capture import deviation
from contrans_dist.engine.capture.streamed import Batch, Plan, Rows, plan_capture
from contrans_dist.harvest.runnable import Runnable, SpoiltError, canary_rows
from contrans_dist.harvest.shard_files import publish_shard
from contrans_dist.harvest.shards import Shard, ShardReport
from contrans_dist.models import LanguageModel


@dataclass(frozen=True)
class ShardPlan:
    """A shard's texts as they are run, and where its rows lie among those of other shards."""

    shard: Shard
    place: int
    runnable: Runnable
    texts: Plan
    sample: list[int]
    """Texts that are also run alone, as the canary; their rows follow the others."""
    alone: Plan

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        shard: Shard,
        rows: pa.Table,
        place: int = 0,
        fatal: Mapping[int, str] = MappingProxyType({}),
    ) -> "ShardPlan":
        settings, blocks = shard.spec.capture, shard.spec.blocks
        runnable = Runnable.of(lm, rows, settings, fatal)
        sample = canary_rows(len(runnable.ids)) if runnable.ids else []

        def plan(ids: list[list[int]], batch_tokens: int, place: int) -> Plan:
            return plan_capture(lm, ids, blocks, settings.position, batch_tokens, place)

        texts = plan(runnable.ids, settings.batch_tokens, place)
        alone = plan([runnable.ids[text] for text in sample], 1, place + len(runnable.ids))
        return cls(shard, place, runnable, texts, sample, alone)

    @property
    def batches(self) -> list[Batch]:
        """All that is run."""
        return [*self.texts.batches, *self.alone.batches]

    @property
    def end(self) -> int:
        """One past the place of its last row."""
        return self.place + len(self.runnable.ids) + len(self.sample)

    def publish(self, rows_of: Mapping[int, Rows], device: str) -> ShardReport:
        """Write the shard. Raises SpoiltError where half of its rows or more hold NaN or infinity."""
        blocks, rows_end = self.shard.spec.blocks, self.place + len(self.runnable.ids)
        captured = self.texts.activations({k: rows_of[k][self.place : rows_end] for k in blocks})
        alone = {k: rows_of[k][rows_end : self.end] for k in blocks}
        worst = deviation(alone, {k: captured[k][self.sample] for k in alone})
        try:
            return publish_shard(self.shard, self.runnable, [captured], worst, device)
        except SpoiltError as error:
            kept, runnable = self.runnable.without_spoilt(error)
            return publish_shard(self.shard, runnable, [captured.take(kept)], worst, device)
