"""A run of a model's blocks that stays in memory, one of several that hand states on to one another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from contrans_dist.engine.capture.streamed import Batch, RowSink
from contrans_dist.errors import RunError
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
        self, batches: Sequence[Batch], rows: Mapping[int, RowSink], entering: Sequence[Tensor] | None = None
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
        leaving: list[OnHost] = []
        gathered: list[dict[int, OnHost]] = []
        for i, batch in enumerate(batches):
            state = None if entering is None else entering[i]
            output, captured = self._fitting(batch, state)
            leaving.append(OnHost(output))
            gathered.append({k: OnHost(values) for k, values in captured.items()})
        for batch, of_batch in zip(batches, gathered, strict=True):
            for k, values in of_batch.items():
                rows[k][batch.rows] = values.tensor().float().numpy()
        return [state.tensor() for state in leaving]

    def _fitting(self, batch: Batch, state: Tensor | None) -> tuple[Tensor, dict[int, Tensor]]:
        """What leaves for a batch, and its rows by block; in halves where a GPU has not the memory."""
        lm, texts = self.model.lm, len(batch.rows)
        if lm.fits is None or batch.ids.numel() <= lm.fits or texts == 1:
            try:
                return self._through(batch, state)
            except torch.OutOfMemoryError as error:
                if texts == 1:
                    tokens = batch.ids.shape[1]
                    raise RunError(f"a text of {tokens} tokens alone does not fit into memory") from error
            lm.did_not_fit(batch.ids.numel())
        halves = [slice(0, texts // 2), slice(texts // 2, None)]
        outputs, rows = zip(
            *(self._fitting(_part(batch, half), None if state is None else state[half]) for half in halves),
            strict=True,
        )
        return torch.cat(outputs), {k: torch.cat([part[k] for part in rows]) for k in rows[0]}

    def _through(self, batch: Batch, state: Tensor | None) -> tuple[Tensor, dict[int, Tensor]]:
        rows: dict[int, Tensor] = {}

        def seen(k: int, hidden: Tensor) -> None:
            if k in batch.blocks:
                rows[k] = batch.gather(hidden)

        if state is None:
            state = self.model.embedded(batch.ids.long())
        with self.model.running(self.first, self._blocks, seen) as run:
            return run(state), rows


def _part(batch: Batch, half: slice) -> Batch:
    return replace(batch, ids=batch.ids[half], tokens=batch.tokens[half], rows=batch.rows[half])
