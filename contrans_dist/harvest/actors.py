"""The actors of a harvest: a resident model that makes shards one by one, a streamed one that makes many at
a time."""

import logging
from collections.abc import Callable

from contrans_dist.config import ModelSettings
from contrans_dist.console import listening
from contrans_dist.errors import RunError
from contrans_dist.harvest.compute import InTurn, compute_shard, try_texts
from contrans_dist.harvest.shards import MadeShards, Shard, ShardTask
from contrans_dist.harvest.sweep import SweepTask, run_sweep, try_sweep
from contrans_dist.models import LanguageModel
from contrans_dist.models.placed import load_placed
from contrans_dist.models.placement import Placement
from contrans_dist.models.streaming import open_streamed


def slots_of(placement: Placement, gpus: float) -> int:
    """Shards that a resident model's actor has at a time on so many GPUs: beside one that is written, one for
    each GPU that the model lies over, and at least two, so that one is queued while another is computed. On a
    CPU one is written while the model computes the other."""
    over = {place for place in (placement.device_map or {}).values() if isinstance(place, int)}
    return max(len(over), 2) + 1 if gpus else 2


class Notes(logging.Handler):
    """Warnings of this process, to be taken along with a result: what an actor prints reaches nobody."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("contrans_dist").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def end(self) -> None:
        logging.getLogger("contrans_dist").removeHandler(self)

    def taken(self) -> tuple[str, ...]:
        """Those since the last call."""
        lines, self.lines = self.lines, []
        return tuple(lines)


def check_dtype(lm: LanguageModel, shard: Shard) -> None:
    """RunError where the weights here have another precision than the manifest will name, or are computed
    with in another."""
    identity = shard.spec.identity
    said = {"dtype": identity.dtype, "compute-dtype": identity.compute_dtype}
    here = {"dtype": lm.weights_dtype or lm.dtype, "compute-dtype": lm.dtype}
    for option, dtype in here.items():
        name = str(dtype).removeprefix("torch.")
        if said[option] != name:
            raise RunError(
                f"{lm.name}: it runs in {name} here, and in {said[option]} by the files of the machine that "
                f"started the harvest; say by --{option} in which it is to be run"
            )


class HarvestActor:
    """A loaded model on one node that turns shards into files."""

    def __init__(self, model: ModelSettings, highest_block: int, placement: Placement | None = None) -> None:
        self.lm = load_placed(model, placement, highest_block=highest_block, head=False)
        self.in_turn = InTurn()
        self.through: dict[str, float] = {}
        self.notes = Notes()

    def run(self, task: ShardTask) -> MadeShards:
        """Make a shard, or try some of its texts."""
        shard = task.shard
        check_dtype(self.lm, shard)
        if task.trial:
            try_texts(self.lm, shard, task.rows, self.in_turn)
            return MadeShards()

        def told(share: float) -> None:
            self.through[shard.address] = share * shard.rows

        try:
            with listening(told):
                report = compute_shard(self.lm, shard, task.rows, self.in_turn, task.fatal)
        finally:
            self.through.pop(shard.address, None)
        return MadeShards({shard.address: report}, notes=self.notes.taken())

    def progress(self) -> float:
        """Texts of the running shards that are captured."""
        return sum(list(self.through.values()))

    def end(self) -> None:
        """In the driver's process an actor is not the last thing that there is."""
        self.notes.end()


class SweepActor:
    """A model that is never whole in memory, on one node."""

    def __init__(self, model: ModelSettings) -> None:
        self.model = open_streamed(**model.model_dump(exclude={"id", "quantization"}), name=model.id)
        self.through = 0.0
        self.notes = Notes()
        self.made: dict[str, MadeShards] = {}

    def run(self, task: SweepTask) -> MadeShards:
        """Make the shards of a sweep. One that could not be reached for a moment may be given its sweep again
        while it is at it, and is through when it comes to that: it does one thing at a time."""
        if task.trial:
            try_sweep(self.model, task, told=self._told(task))
            return MadeShards()
        if task.key not in self.made:
            self.made[task.key] = self._made(task)
        return self.made[task.key]

    def _made(self, task: SweepTask) -> MadeShards:
        for part in task.shards:
            check_dtype(self.model.lm, part.shard)
        made = run_sweep(self.model, task, told=self._told(task))
        made.notes = self.notes.taken()
        return made

    def _told(self, task: SweepTask) -> Callable[[int], None]:
        """Takes down how far a sweep is that begins now."""
        blocks = 1 + max(max(part.shard.spec.blocks) for part in task.shards)

        def told(k: int) -> None:
            self.through = task.texts * (k + 1) / blocks

        self.through = 0.0
        return told

    def progress(self) -> float:
        """Texts of the running sweep, each counted by the share of the blocks that it is through."""
        return self.through

    def end(self) -> None:
        """As of `HarvestActor`."""
        self.notes.end()
