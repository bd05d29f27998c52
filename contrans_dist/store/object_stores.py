"""Object stores: the filesystem of a bucket, and what its errors mean."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

import fsspec
import fsspec.implementations.dirfs
import pyarrow as pa
from pyarrow import fs

from contrans_dist.console import without_credentials
from contrans_dist.errors import NoAnswerError, PassingError, RunError, UnwritableError, UserError, one_line

READ_ALONE = ("hf", "https", "http")
"""Schemes of texts that others have published: opened by fsspec, and never written to."""
_S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_ATTEMPTS = 3
"""Of one request, by the store's client; what is tried again after longer pauses is `patiently`'s."""
_STREAM_ATTEMPTS = 12
"""Of one request of an upload, with pauses that double, for a minute and a half in all: an upload that is
given up leaves its parts in the store, since pyarrow cannot abort it. And of one to a file that is open."""
_CONNECT_SECONDS, _SILENT_SECONDS, _BRIEF_SECONDS = 10, 20, 5
_REFUSED = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE"
    "|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|PERMISSION_?DENIED|UNAUTHENTICATED"
    "|Bucket .*not found|HTTP status 40[134]",
    re.IGNORECASE,
)
"""What a store says of a request that will never be granted; of all else it may think better."""
_TAKEN = set[str]()
"""Stores that have taken a file of this process: what they refuse later is no mistake, but a key that has
expired since."""

_FORBIDDEN = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip
_FAILING = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
    errno.ENODEV, errno.EHOSTDOWN, errno.ENOMEM,
}  # fmt: skip
"""What a disk does not say of a place, but of itself, or of the network between."""
_FROM_A_STORE = re.compile("AWS Error|google::cloud::Status")
"""What pyarrow puts before an error of a store; of a file that is damaged it raises an OSError as well."""


@lru_cache(maxsize=64)
def filesystem(store: str, streaming: bool = False, brief: bool = False) -> fs.FileSystem:
    """The filesystem of a bucket's URI; of this machine for the empty string.

    `streaming`: with more patience; `brief`: with none. Raises UserError for an option that there is not, and
    what pyarrow raises where no store answers.
    """
    if not store:
        return fs.LocalFileSystem()
    scheme, _, rest = store.partition("://")
    if scheme in READ_ALONE:
        return _published(scheme, rest)
    return _s3(rest, streaming, brief) if scheme == "s3" else fs.FileSystem.from_uri(store)[0]


def _published(scheme: str, rest: str) -> fs.FileSystem:
    """A web server or the model hub, whose filesystem takes paths with the host, or `datasets`, first."""
    host = rest.partition("?")[0].rpartition("@")[2]
    if host != rest:
        raise UserError(f"{scheme}://{host}: expected an address without a user, and without `?` and options")
    try:
        opened = fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(f"{scheme}://{host}: {error}; pip install 'fsspec[http]'") from error
    if scheme != "hf":  # a web server's files are named by whole addresses
        opened = fsspec.implementations.dirfs.DirFileSystem(f"{scheme}:/", opened)
    return fs.PyFileSystem(fs.FSSpecHandler(opened))


def _s3(rest: str, streaming: bool, brief: bool) -> fs.S3FileSystem:
    """pyarrow's own default lets a connection that says nothing hang."""
    place, _, query = rest.partition("?")
    user, _, bucket = place.rpartition("@")
    options = dict(parse_qsl(query))
    unknown = next((name for name in options if name not in _S3_OPTIONS), None)
    if unknown is not None:
        raise UserError(f"s3://{bucket}: no option {unknown!r}; expected one of {', '.join(_S3_OPTIONS)}")
    if not {"region", "endpoint_override"} & set(options):
        options["region"] = fs.resolve_s3_region(bucket)
    key, _, secret = user.partition(":")
    silent = min(_BRIEF_SECONDS, _SILENT_SECONDS) if brief else _SILENT_SECONDS
    retries = (
        fs.AwsDefaultS3RetryStrategy(max_attempts=_STREAM_ATTEMPTS)
        if streaming and not brief
        else fs.AwsStandardS3RetryStrategy(max_attempts=1 if brief else _ATTEMPTS)
    )
    return fs.S3FileSystem(
        access_key=unquote(key) or None,
        secret_key=unquote(secret) or None,
        connect_timeout=min(_CONNECT_SECONDS, silent),
        request_timeout=silent,
        retry_strategy=retries,
        allow_delayed_open=streaming,  # what is small is one request, and not three
        **options,
    )


def reads_alone(store: str) -> bool:
    """Whether it can only be read."""
    return store.startswith(tuple(f"{scheme}:" for scheme in READ_ALONE))


def taken(store: str) -> None:
    """Remember that the store has taken a file of this process."""
    _TAKEN.add(store)


@contextmanager
def told(name: str, store: str) -> Iterator[None]:
    """Raise what a file system refuses at the place `name` (a loop of links, a name too long, no permission)
    as UserError, a store that may think better as PassingError; as NoAnswerError a disk that fails, and a
    store that refuses although it has `taken` something."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UserError, RunError):
        raise
    except Exception as error:
        # Clients of the web raise errors of their own, which are no OSError.
        if not isinstance(error, OSError | pa.ArrowInvalid) and not reads_alone(store):
            raise
        reason = " ".join(without_credentials(str(error)).split()).rpartition("] ")[2]
        if not store and getattr(error, "errno", None) in _FAILING:
            raise NoAnswerError(
                f"{name}: cannot be read ({reason[:300]}); run the same command again"
            ) from error
        if not store:
            raise UserError(f"{name}: cannot be reached ({reason[:300]})") from error
        if _REFUSED.search(reason):
            if store in _TAKEN:
                raise NoAnswerError(
                    f"{name}: the store grants no more what it did ({reason[:300]}); run the same command "
                    "again with a key that is valid to go on"
                ) from error
            raise UnwritableError(f"{name}: cannot be reached ({reason[:300]})") from error
        raise PassingError(f"{name}: the store does not answer ({reason[:300]})") from error


def failed_read(name: str, store: str, error: BaseException) -> RunError | None:
    """What to raise where a disk or a store fails while the file `name` is read; None where `error` is of the
    file's own content."""
    if not isinstance(error, OSError) or not (error.errno is not None or _FROM_A_STORE.search(str(error))):
        return None
    reason = f"{name}: cannot be read ({one_line(without_credentials(str(error)))})"
    return PassingError(reason) if store else RunError(f"{reason}; run the same command again")


@contextmanager
def written(name: str) -> Iterator[None]:
    """Raise a disk's error while the place `name` is written as UnwritableError for what is not allowed, as
    NoAnswerError for a disk that is full or fails."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno in _FORBIDDEN:
            raise UnwritableError(f"{name}: cannot be written ({reason})") from error
        if error.errno in _FAILING:
            raise NoAnswerError(
                f"{name}: cannot be written ({reason}); run the same command again to go on"
            ) from error
        raise
