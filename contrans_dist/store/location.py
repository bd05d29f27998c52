"""Local paths and object stores behind one `Location`, with publishing that is all or nothing."""

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from contrans_dist.config.limits import JSON_BYTES, check_size
from contrans_dist.console import without_credentials
from contrans_dist.errors import PassingError, RunError, UnwritableError, UserError
from contrans_dist.store import object_stores as stores
from contrans_dist.store.addresses import above, joined, parse_address, show_address, whole_address
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.patience import brief, briefly, patiently
from contrans_dist.store.work_folders import staging, sweep_staged

_TEMPORARY = ".tmp-"
_STALE_SECONDS = 24 * 3600
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Location:
    """A file or folder, given as a local path or a URI (`s3://`, `gs://`, `file://`), or as one that can
    only be read (`https://`, `hf://datasets/...`).

    It is text alone, so that it travels to another process; each opens its own filesystem.
    """

    store: str = field(repr=False)
    """The bucket's URI, with credentials and options; empty for this machine."""
    path: str
    """The path inside `filesystem`: absolute, or of the bucket and what is in it."""

    @classmethod
    def parse(cls, text: "str | os.PathLike[str] | Location") -> "Location":
        """Raises UserError for what no filesystem understands, or a bucket that there is not; RunError where
        that cannot be found out."""
        if isinstance(text, Location):
            return text
        location = cls(*parse_address(os.fspath(text)))
        try:
            location.filesystem  # noqa: B018 - a bad URI is reported here, not in the middle of a run
        except PassingError as error:
            raise RunError(f"{error}; run the same command again when it does") from error
        return location

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._filesystem()

    def _filesystem(self, streaming: bool = False) -> fs.FileSystem:
        with stores.told(str(self), self.store):
            try:
                return stores.filesystem(self.store, streaming, brief())
            except ValueError as error:
                reason = " ".join(without_credentials(str(error)).split())
                raise UserError(
                    f"{self}: expected a path or an s3://, gs:// or file:// URI ({reason})"
                ) from error

    @property
    def uri(self) -> str:
        """For another process: with the credentials and options, so never to be shown."""
        return whole_address(self.store, self.path)

    @property
    def is_local(self) -> bool:
        return not self.store

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        return Location(self.store, above(self.path))

    def __truediv__(self, name: str) -> "Location":
        return Location(self.store, joined(self.path, name))

    def __str__(self) -> str:
        """For people, logs and manifests: without the credentials and options a URI may carry."""
        return show_address(self.store, self.path)

    # -- reading ---------------------------------------------------------------------------------

    @patiently
    def info(self) -> fs.FileInfo:
        """Raises UserError for what cannot be looked at, RunError for a store that does not answer."""
        with stores.told(str(self), self.store):
            return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        return self.info().type is not fs.FileType.NotFound

    @patiently
    def entries(self) -> list[fs.FileInfo]:
        """What lies directly inside, by one request; nothing in a file, or where nothing is."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        try:
            with stores.told(str(self), self.store):
                return list(self.filesystem.get_file_info(selector))
        except NotADirectoryError:  # an object store finds nothing there, and says no more
            return []

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted, temporary ones left out; none in a file."""
        return sorted(info.base_name for info in self.entries() if not info.base_name.startswith("."))

    @contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """Open for random access; in an object store each read is a request.

        Raises UserError when there is no such file, and while it is read RunError for a disk that fails,
        PassingError for a store: who reads is made `patiently`.
        """
        with self._opened() as stream:
            try:
                yield stream
            except OSError as error:
                raise (stores.failed_read(str(self), self.store, error) or error) from error

    @patiently
    def _opened(self) -> pa.NativeFile:
        # To open a pipe waits for whoever writes into it; a store in trouble is found out with less patience.
        kind = self.info().type
        if self.is_local and kind not in (fs.FileType.File, fs.FileType.NotFound):
            raise UserError(f"{self}: expected a file, this is a folder or no regular file")
        try:
            with stores.told(str(self), self.store):
                return self._filesystem(streaming=True).open_input_file(self.path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(f"{self}: no such file") from error

    def inside(self, name: str) -> "Location":
        """A file or folder directly in this folder, whose name some file gave. Raises UserError for a name
        that leads elsewhere, or that a terminal would not show as it is."""
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
            raise UserError(f"{self}: expected the name of a file in this folder, found {name!r}")
        return self / name

    @patiently
    def read_bytes(self, most: int | None = None) -> bytes:
        """Raises UserError for a file of more than `most` bytes, or one that is not there."""
        with stores.told(str(self), self.store), self.open() as stream:
            if most is not None:
                check_size(str(self), stream.size(), most)
            return bytes(stream.read())

    def read_json(self, most: int = JSON_BYTES) -> Any:
        """Raises UserError when the file is missing, too large, or no JSON in UTF-8."""
        return parse_json(self.read_bytes(most), str(self))

    # -- publishing ------------------------------------------------------------------------------

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield a local path to write; what is there when the block ends well appears whole.

        Locally the file is written beside its final name, synced and renamed. For an object store it is
        uploaded beside its final key and copied there by the store, at once. After an exception nothing
        appears under the final name. Raises UserError for a local place where no file can be, RunError for a
        disk that is full and a store that does not answer.
        """
        if self.is_local:
            self._check_place(Path(self.path).parent)
        place = nullcontext(Path(self.path).parent) if self.is_local else staging()
        with stores.written(str(self)), place as folder:
            temporary = folder / _temporary_name()
            try:
                yield temporary
                sync(temporary)
                if self.is_local:
                    os.replace(temporary, self.path)
                    sync(folder)
                else:
                    self._upload(temporary)
            finally:
                temporary.unlink(missing_ok=True)

    def _check_place(self, folder: Path) -> None:
        """Make the folder of a local file. Raises UserError where a file or a folder is in the way."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{error.strerror}: {error.filename}"
            raise UnwritableError(f"{self}: cannot be written ({why})") from error
        if os.path.isdir(self.path):
            raise UserError(f"{self}: expected a place for a file, there is a folder")

    @patiently
    def _upload(self, source: Path) -> None:
        """Not to the final key itself: a stream to a store that is let go publishes what it was given so far,
        after an exception as well, and knows no way to withdraw it."""
        if stores.reads_alone(self.store):
            raise UserError(f"{self}: can only be read; expected a path or an s3:// or gs:// URI")
        beside = self.parent / _temporary_name()
        self.info()  # a store in trouble is found out with less patience, before there are parts in it
        store = self._filesystem(streaming=True)
        try:
            with stores.told(str(self), self.store):
                with source.open("rb") as data, store.open_output_stream(beside.path) as stream:
                    shutil.copyfileobj(data, stream, _COPY_BYTES)
                store.move(beside.path, self.path)
            stores.taken(self.store)
        except BaseException:
            with suppress(Exception), briefly():
                self.filesystem.delete_file(beside.path)
            raise

    def write_bytes(self, data: bytes) -> None:
        """Publish `data` whole or not at all."""
        with self.staged() as path:
            path.write_bytes(data)

    def write_json(self, value: Any) -> None:
        """Publish `value` as indented JSON with a stable key order. NaN is refused: it is no JSON."""
        text = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False, allow_nan=False)
        self.write_bytes(text.encode() + b"\n")

    @patiently
    def delete(self) -> None:
        """Remove the file; one that is not there is no error."""
        with stores.told(str(self), self.store), suppress(FileNotFoundError, NotADirectoryError):
            self.filesystem.delete_file(self.path)

    @patiently
    def delete_folder(self) -> None:
        """Remove the folder and what is in it; one that is not there is no error."""
        with stores.told(str(self), self.store), suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    @patiently
    def sweep(self) -> None:
        """Remove temporary files that a killed process left in this folder over a day ago, and what such a
        one left on this machine on its way to a store."""
        oldest = time.time() - _STALE_SECONDS
        for entry in self.entries():
            made = entry.mtime.timestamp() if entry.mtime is not None else oldest
            if entry.base_name.startswith(_TEMPORARY) and entry.is_file and made < oldest:
                (self / entry.base_name).delete()
        if not self.is_local:
            sweep_staged()


def _temporary_name() -> str:
    """Short: file systems end at 255 bytes."""
    return f"{_TEMPORARY}{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def sync(path: Path) -> None:
    """fsync a file or a folder, so that a power cut cannot leave a name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
