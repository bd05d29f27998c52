"""A run of a model's blocks that stays in memory, one of several that hand states on to one another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from contrans_dist.engine.capture.streamed import Batch, Rows, in_halves
from contrans_dist.models.crossing import OnHost
from contrans_dist.models.streaming import StreamedModel


class Stage:
    """Blocks `first` to `last` of a model, with their weights.

    The first stage also holds the input embeddings; the others get what the one before returns. Raises
    RunError for missing weights or a damaged file.
    """

    def __init__(self, model: StreamedModel, first: int, last: int) -> None:
        self.model, self.first, self.last = model, first, last
        if first:
            model.forget_embedding()
        self._blocks = [model.load(k) for k in range(first, last + 1)]
        with model.running(first, self._blocks[:1]) as run:
            model.check_block(run)

    def run(
        self, batches: Sequence[Batch], rows: Mapping[int, Rows], entering: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Every batch through these blocks, as `sweep` would take it through them.

        Args:
            batches: As `plan_capture` gives them.
            rows: Takes the rows `[n, d]` of each wanted block; those of other stages are left as they are.
            entering: What enters the first block, `[texts, tokens, d]` for each batch; None in the first
                stage.

        Returns:
            What leaves the last block, on the host.

        Raises:
            RunError: For a text that alone does not fit into memory.
        """
        flying: list[list[OnHost]] = []
        part: Batch | None = None
        gathered: list[Tensor] = []

        def seen(k: int, hidden: Tensor) -> None:
            if part is not None and k in part.blocks:
                gathered.append(part.gather(hidden))

        def through(batch: Batch, state: Tensor | None, some: slice) -> list[Tensor]:
            """What leaves for some texts of a batch, and behind it their rows at each wanted block."""
            nonlocal part, gathered
            part, gathered = _some_of(batch, some), []
            entering = self.model.embedded(part.ids.long()) if state is None else state[some]
            return [run(entering), *gathered]

        # Once for all batches: when it ends, the host waits for the device.
        with self.model.running(self.first, self._blocks, seen) as run:
            for i, batch in enumerate(batches):
                of_batch = partial(through, batch, None if entering is None else entering[i])
                made = in_halves(self.model.lm, of_batch, slice(0, len(batch.rows)), batch.ids.shape[1])
                flying.append([OnHost(tensor) for tensor in made])
        for batch, (_, *values) in zip(batches, flying, strict=True):
            wanted = [k for k in range(self.first, self.last + 1) if k in batch.blocks]
            for k, of_block in zip(wanted, values, strict=True):
                rows[k][batch.rows] = of_block.tensor().float().numpy()
        return [state.tensor() for state, *_ in flying]


def _some_of(batch: Batch, some: slice) -> Batch:
    return replace(batch, ids=batch.ids[some], tokens=batch.tokens[some], rows=batch.rows[some])
