"""Local paths and object stores behind one `Location`, with publishing that is all or nothing."""

import json
import math
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from contrans_dist.errors import UserError
from contrans_dist.limits import JSON_BYTES, check_size

_TEMPORARY = ".tmp-"
_STALE_SECONDS = 24 * 3600
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Location:
    """A file or folder, given as a local path or a URI (`s3://`, `gs://`, `file://`).

    Only the text is kept, so a location travels to another process; each opens its own filesystem.
    """

    uri: str

    @classmethod
    def parse(cls, text: "str | os.PathLike[str] | Location") -> "Location":
        """Raises UserError for a URI whose scheme or form no filesystem understands."""
        if isinstance(text, Location):
            return text
        raw = os.fspath(text)
        location = cls(raw if "://" in raw else os.path.abspath(os.path.expanduser(raw)))
        location._resolved  # noqa: B018 - a bad URI is reported here, not in the middle of a run
        return location

    @cached_property
    def _resolved(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), self.uri
        try:
            filesystem, path = fs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise UserError(f"{self}: expected a path or an s3://, gs:// or file:// URI ({error})") from error
        return filesystem, path

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._resolved[0]

    @property
    def path(self) -> str:
        """The path inside `filesystem`."""
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        head, query = self._split()
        return Location(head.rstrip("/").rsplit("/", 1)[0] + query)

    def _split(self) -> tuple[str, str]:
        head, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return head, mark + query

    def __truediv__(self, name: str) -> "Location":
        head, query = self._split()
        return Location(f"{head.rstrip('/')}/{name}{query}")

    def __str__(self) -> str:
        """For people, logs and manifests: without the credentials and options a URI may carry."""
        if "://" not in self.uri:
            return self.uri
        parts = urlsplit(self.uri)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    # -- reading ---------------------------------------------------------------------------------

    def info(self) -> fs.FileInfo:
        """Raises UserError for a local path that cannot be looked at."""
        with self._told():
            return self.filesystem.get_file_info(self.path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What a local file system refuses (a loop of links, a name too long, no permission) as UserError."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except (OSError, pa.ArrowInvalid) as error:
            if not self.is_local:  # a store may answer the next time
                raise
            reason = " ".join(str(error).split()).rpartition("] ")[2]
            raise UserError(f"{self}: cannot be read ({reason})") from error

    def exists(self) -> bool:
        return self.info().type is not fs.FileType.NotFound

    def size(self) -> int:
        """Bytes of the file."""
        return int(self.info().size or 0)

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted, temporary ones left out; none in a file."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        try:
            with self._told():
                names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        except NotADirectoryError:  # an object store finds nothing there, and says no more
            return []
        return sorted(name for name in names if not name.startswith("."))

    def open(self) -> pa.NativeFile:
        """Open for random access. Raises UserError when there is no such file."""
        # To open a pipe waits for whoever writes into it.
        if self.is_local and self.info().type not in (fs.FileType.File, fs.FileType.NotFound):
            raise UserError(f"{self}: expected a file, this is a folder or no regular file")
        try:
            with self._told():
                return self.filesystem.open_input_file(self.path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(f"{self}: no such file") from error

    def inside(self, name: str) -> "Location":
        """A file or folder directly in this folder, whose name some file gave. Raises UserError for a name
        that leads elsewhere."""
        if not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
            raise UserError(f"{self}: expected the name of a file in this folder, found {name!r}")
        return self / name

    def read_bytes(self, most: int | None = None) -> bytes:
        """Raises UserError for a file of more than `most` bytes."""
        with self.open() as stream:
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
        uploaded to its final key, which the store shows only when complete. After an exception nothing
        appears under the final name. Raises UserError for a local place where no file can be.
        """
        if self.is_local:
            folder = Path(self.path).parent
            self._check_place(folder)
        else:
            folder = Path(tempfile.gettempdir())
        # The name stays short: file systems end at 255 bytes.
        temporary = folder / f"{_TEMPORARY}{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
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
            raise UserError(f"{self}: cannot be written ({error.strerror}: {error.filename})") from error
        if os.path.isdir(self.path):
            raise UserError(f"{self}: expected a place for a file, there is a folder")

    def _upload(self, source: Path) -> None:
        with source.open("rb") as data, self.filesystem.open_output_stream(self.path) as stream:
            while chunk := data.read(_COPY_BYTES):
                stream.write(chunk)

    def write_bytes(self, data: bytes) -> None:
        """Publish `data` whole or not at all."""
        with self.staged() as path:
            path.write_bytes(data)

    def write_json(self, value: Any) -> None:
        """Publish `value` as indented JSON with a stable key order. NaN is refused: it is no JSON."""
        text = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False, allow_nan=False)
        self.write_bytes(text.encode() + b"\n")

    def delete(self) -> None:
        """Remove the file; one that is not there is no error."""
        if self.exists():
            self.filesystem.delete_file(self.path)

    def delete_folder(self) -> None:
        """Remove the folder and what is in it; one that is not there is no error."""
        if self.exists():
            self.filesystem.delete_dir(self.path)

    def sweep(self) -> None:
        """Remove temporary files that a killed process left in this local folder over a day ago."""
        if not self.is_local or not os.path.isdir(self.path):
            return
        oldest = time.time() - _STALE_SECONDS
        for entry in os.scandir(self.path):
            if entry.name.startswith(_TEMPORARY) and entry.stat().st_mtime < oldest:
                Path(entry.path).unlink(missing_ok=True)


def parse_json(data: bytes | str, where: str) -> Any:
    """JSON as plain data. Raises UserError, which begins with `where`, for anything else, NaN included."""
    try:
        value = json.loads(data, parse_constant=_finite, parse_float=_finite)
        if (b"\\ud" if isinstance(data, bytes) else "\\ud") in data.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UserError(f"{where}: expected JSON, found lists in lists without end") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: expected JSON, found half of a surrogate pair") from error
    except ValueError as error:  # a UnicodeDecodeError is one
        raise UserError(f"{where}: expected JSON ({error})") from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def sync(path: Path) -> None:
    """fsync a file or a folder, so that a power cut cannot leave a name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
