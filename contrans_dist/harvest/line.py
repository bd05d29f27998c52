"""A model that lies over several nodes: a line of actors, each with a run of its blocks, which hand the
states of one shard after another down the line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrans_dist.config import ModelSettings
from contrans_dist.distributed.actors import followers, handed_down
from contrans_dist.distributed.cluster import Replicas
from contrans_dist.engine.capture.stage import Stage
from contrans_dist.engine.capture.streamed import Batch
from contrans_dist.harvest.actors import Notes, check_dtype
from contrans_dist.harvest.compute import InTurn
from contrans_dist.harvest.shard_plan import ShardPlan
from contrans_dist.harvest.shards import MadeShards, Shard, ShardTask
from contrans_dist.models.streaming import open_streamed

Blocks = tuple[int, int]
"""The first and the last of a run of blocks."""


class StageActor:
    """A run of a model's blocks on one node."""

    def __init__(self, model: ModelSettings, blocks: Blocks) -> None:
        streamed = open_streamed(**model.model_dump(exclude={"id", "quantization"}), name=model.id)
        self.stage = Stage(streamed, *blocks)
        self.in_turn = InTurn()

    def wanted(self, batches: Sequence[Batch]) -> dict[int, NDArray[np.float32]]:
        """Room for the rows of batches at the blocks of this stage."""
        n = sum(len(batch.rows) for batch in batches)
        of_stage = range(self.stage.first, self.stage.last + 1)
        blocks = sorted({k for batch in batches for k in batch.blocks if k in of_stage})
        return {k: np.zeros((n, self.stage.model.lm.d), np.float32) for k in blocks}

    def run(
        self, batches: Sequence[Batch], entering: Sequence[NDArray[Any]] | None = None
    ) -> tuple[list[NDArray[Any]], dict[int, NDArray[np.float32]]]:
        """(states that leave, rows by block) of batches; states as bytes, which travel without a copy."""
        rows, dtype = self.wanted(batches), self.stage.model.lm.dtype
        states = None if entering is None else [_tensor(state, dtype) for state in entering]
        leaving, _ = self.in_turn(lambda: self.stage.run(batches, rows, states))
        return [_bytes(state) for state in leaving], rows


class LineActor(StageActor):
    """The first of a line, which makes shards with the others."""

    def __init__(self, model: ModelSettings, stages: Sequence[Blocks], size: Replicas) -> None:
        super().__init__(model, stages[0])
        self.others = followers(StageActor, [(model, blocks) for blocks in stages[1:]], size)
        self.through: dict[str, float] = {}
        self.notes = Notes()

    def run(self, task: ShardTask) -> MadeShards:  # type: ignore[override]
        """Make a shard, or try some of its texts."""
        shard = task.shard
        check_dtype(self.stage.model.lm, shard)
        plan = ShardPlan.of(self.stage.model.lm, shard, task.rows, fatal=task.fatal)
        try:
            made = self._rows(shard, plan.batches)
            if task.trial:
                return MadeShards()
            # Where no text of the shard can be run, no stage has rows.
            none = np.empty((0, shard.spec.d), np.float32)
            rows_of = dict.fromkeys(shard.spec.blocks, none) | made
            report = plan.publish(rows_of, str(self.stage.model.device))
        finally:
            self.through.pop(shard.address, None)
        return MadeShards({shard.address: report}, notes=self.notes.taken())

    def _rows(self, shard: Shard, batches: Sequence[Batch]) -> dict[int, NDArray[np.float32]]:
        """The rows of every wanted block, from all stages."""
        states, rows = super().run(batches)
        for done, of_stage in enumerate(handed_down(self.others, batches, states), start=1):
            self.through[shard.address] = shard.rows * done / (1 + len(self.others))
            rows |= of_stage
        return rows

    def progress(self) -> float:
        """Texts of the running shards, each counted by the share of the line that they are through."""
        return sum(list(self.through.values()))

    def end(self) -> None:
        self.notes.end()


def _bytes(state: Tensor) -> NDArray[Any]:
    """A state on the host as `[texts, tokens, d * itemsize]` bytes."""
    return np.asarray(state.contiguous().view(torch.uint8).numpy())


def _tensor(state: NDArray[Any], dtype: torch.dtype) -> Tensor:
    # What came from another process can only be read.
    return torch.tensor(state).view(dtype)
