"""The residual streams of many batches between two blocks: in memory up to a budget, the rest on disk."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from contrans_dist.errors import RunError
from contrans_dist.store.location import sync

_WRITES_AHEAD = 2
"""States that may wait to be written: they are in memory beside the budget."""


class States:
    """What enters the next block, a tensor `[texts, tokens, d]` for each batch.

    A pass takes every state in order (`in_order`) and puts what becomes of it (`put`). Beyond `memory` bytes
    they lie in one raw file per pass, read ahead and written behind; the file of a pass is never written
    again, so that one that was kept (`save`) is whole whatever happens later.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        dtype: torch.dtype,
        memory: int,
        folder: Path,
        of_gpu: bool = False,
    ) -> None:
        self.shapes, self.dtype, self.folder = list(shapes), dtype, folder
        self.offsets = [0]
        for texts, tokens, d in self.shapes:
            self.offsets.append(self.offsets[-1] + texts * tokens * d * dtype.itemsize)
        sizes = [end - start for start, end in pairwise(self.offsets)]
        # What comes from a GPU lies in memory that PyTorch takes by powers of two, and keeps.
        taken = accumulate(1 << (size - 1).bit_length() if of_gpu else size for size in sizes)
        self.in_memory = sum(end <= memory for end in taken)
        self.held: dict[int, Tensor] = {}
        self.entering: Path | None = None
        self.leaving: Path | None = None
        self.kept: Path | None = None
        self.reader, self.writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.writes: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.shutdown(cancel_futures=True)
        self.writer.shutdown(cancel_futures=True)

    def _file(self, step: int) -> Path:
        return self.folder / f"states-{step:04d}.raw"

    def resume(self, step: int) -> None:
        """Go on from what was saved after `step`. Raises RunError where that file is not whole."""
        self.entering = self.kept = self._file(step)
        if not self.entering.is_file() or self.entering.stat().st_size != self.offsets[-1]:
            raise RunError(f"{self.entering}: not whole; delete the folder and run again")
        self.held = {i: self._read(self.entering, i) for i in range(self.in_memory)}

    def begin(self, step: int) -> None:
        """Start the pass of this number."""
        self.leaving = self._file(step)

    def in_order(self) -> Iterator[Tensor]:
        """The state of each batch in order; the next one on disk is read meanwhile."""
        coming: Future[Tensor] | None = None
        for i in range(len(self.shapes)):
            if i < self.in_memory:
                yield self.held[i]
                continue
            assert self.entering is not None
            state = coming.result() if coming else self._read(self.entering, i)
            coming = (
                self.reader.submit(self._read, self.entering, i + 1) if i + 1 < len(self.shapes) else None
            )
            yield state

    def put(self, i: int, state: Tensor) -> None:
        """The state of batch i after this pass; on the host."""
        if i < self.in_memory:
            self.held[i] = state
            return
        assert self.leaving is not None
        self._write_behind(self.leaving, i, state)

    def _write_behind(self, path: Path, i: int, state: Tensor) -> None:
        while len(self.writes) >= _WRITES_AHEAD:
            self.writes.popleft().result()
        self.writes.append(self.writer.submit(self._write, path, i, state))

    def end(self) -> None:
        """All states of this pass have been put."""
        while self.writes:
            self.writes.popleft().result()
        if self.entering is not None and self.entering != self.kept:
            self.entering.unlink(missing_ok=True)
        self.entering, self.leaving = self.leaving, None

    def save(self) -> None:
        """Make the file of the last pass whole and safe, so that `resume` can go on from there."""
        assert self.entering is not None
        for i in range(self.in_memory):
            self._write_behind(self.entering, i, self.held[i])
        while self.writes:
            self.writes.popleft().result()
        sync(self.entering)

    def release(self) -> None:
        """The last pass is saved, and recorded as such: the one saved before is no longer needed."""
        if self.kept is not None:
            self.kept.unlink(missing_ok=True)
        self.kept = self.entering

    def _read(self, path: Path, i: int) -> Tensor:
        start, end = self.offsets[i : i + 2]
        raw = torch.empty(end - start, dtype=torch.uint8)
        view = memoryview(raw.numpy())  # type: ignore[arg-type]
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while len(view):
                got = file.readinto(view)
                if not got:
                    raise RunError(f"{path}: ends too early")
                view = view[got:]
        return raw.view(self.dtype).view(self.shapes[i])

    def _write(self, path: Path, i: int, state: Tensor) -> None:
        if state.dtype != self.dtype or tuple(state.shape) != self.shapes[i]:
            raise RunError(f"batch {i}: {state.dtype} {tuple(state.shape)}, expected {self.dtype}")
        view = memoryview(state.contiguous().view(torch.uint8).view(-1).numpy())  # type: ignore[arg-type]
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
            file.seek(self.offsets[i])
            while len(view):
                view = view[file.write(view) :]
