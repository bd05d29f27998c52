"""A checkpoint's tensors, each read from its file when it is asked for, and counted."""

import mmap
import os
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from contrans_dist.errors import RunError
from contrans_dist.models.devices import host_memory
from contrans_dist.models.weight_files import header

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_OWN_PAGES = 1 << 20
_PER_READ = 64 << 20
"""Bytes asked for at once: systems read at most 2 GB a call."""


class Stored:
    """A tensor that is still on disk. Indexing reads it, which is all that transformers asks of it."""

    def __init__(self, checkpoint: "Checkpoint", path: str, dtype: torch.dtype, shape: list[int], at: int):
        self.checkpoint, self.path, self.dtype, self.at = checkpoint, path, dtype, at
        self.shape = torch.Size(shape)

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self.checkpoint.read(self).view(self.dtype).view(self.shape)[index]
        rounded_to = self.checkpoint.rounded_to
        wider = (
            rounded_to is not None and self.is_floating_point() and self.dtype.itemsize > rounded_to.itemsize
        )
        return tensor.to(rounded_to) if wider else tensor


class Checkpoint:
    """The tensors of a model's safetensors files, by name.

    They are read into memory of their own, not mapped: reading is several times as fast as faulting pages in,
    and what is read stays, however little memory is left for the page cache. Files that fit into what is free
    stay in the page cache as well, for the next sweep, of this process or of another.
    """

    def __init__(self, files: Sequence[Path], rounded_to: torch.dtype | None = None) -> None:
        """`rounded_to`: a precision that wider tensors are rounded to when they are read.

        Raises UserError for a file that is no safetensors file, or not whole.
        """
        self.rounded_to = rounded_to
        self.tensors: dict[str, Stored] = {}
        self.bytes_read = 0
        self._lock = threading.Lock()
        for path in files:
            self._list(path)
        self._cached = self.nbytes <= host_memory()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def _list(self, path: Path) -> None:
        entries = header(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        for name, entry in entries.items():
            if entry["dtype"] not in _DTYPES:
                raise RunError(f"{path}: {name} is of type {entry['dtype']}, which is not understood")
            start = 8 + length + entry["data_offsets"][0]
            self.tensors[name] = Stored(self, str(path), _DTYPES[entry["dtype"]], entry["shape"], start)

    def read(self, stored: Stored) -> torch.Tensor:
        """The bytes of one tensor, uint8. Several threads may read at once. Raises RunError if they end."""
        raw = _room(stored.nbytes)
        view = memoryview(raw.numpy())  # type: ignore[arg-type]
        done = 0
        with open(stored.path, "rb", buffering=0) as file:
            # Whole tensors are asked for: what the kernel would read ahead of them may be dropped unused.
            _advise(file, 0, 0, "POSIX_FADV_RANDOM")
            file.seek(stored.at)
            while done < len(view):
                got = file.readinto(view[done : done + _PER_READ])
                if not got:
                    raise RunError(
                        f"{stored.path}: ends {len(view) - done} bytes too early; download it again"
                    )
                done += got
            if not self._cached:
                # It would push out what is used, and be gone itself when it is read again.
                _advise(file, stored.at, len(view), "POSIX_FADV_DONTNEED")
        with self._lock:
            self.bytes_read += len(view)
        return raw


def _advise(file: FileIO, start: int, length: int, advice: str) -> None:
    """What the kernel may do with a part of a file; only some systems can be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, length, getattr(os, advice))


def _room(nbytes: int) -> torch.Tensor:
    """Memory that is given back when it is freed: the allocator would keep what many threads took."""
    if nbytes < _OWN_PAGES:
        return torch.empty(nbytes, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=torch.uint8)
