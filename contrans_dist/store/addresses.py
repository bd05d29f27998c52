"""From what a user writes to a place: a path of this machine, or a store and a key in it."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, quote, unquote

from contrans_dist.console import without_credentials
from contrans_dist.errors import UserError

_STORE = re.compile(r"(?P<scheme>s3|gs|gcs|hf|https|http)://(?P<rest>.*)", re.DOTALL)
_WITH_SECRET = re.compile(r"(?P<user>[^/@:]*):(?P<secret>[^@]*)@(?P<rest>.*)", re.DOTALL)
_UNSAFE = re.compile(r"^\.|[%/\\\x00-\x1f\x7f]")
_LONGEST_NAME = 180
"""Bytes; file systems end at 255."""
_OPTION = re.compile(r"[a-z_]+=[^=]*")


def parse_address(text: str) -> tuple[str, str]:
    """(store, path): the URI of a bucket with its credentials and options, and the path with the bucket; for
    a path or a `file://` URI, the empty string and the absolute path.

    In a URI `%20` stands for a space as elsewhere; `#` is part of a name, and `?` begins options in a store
    alone. Raises UserError for what cannot be addressed.
    """
    if "\0" in text or not text:
        raise UserError(f"{text!r}: expected a path or an s3://, gs:// or file:// URI")
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        if path.startswith("//"):
            host, slash, path = path[2:].partition("/")
            if host not in ("", "localhost") or not slash:
                raise UserError(f"{text!r}: expected file:/// and an absolute path of this machine")
            path = slash + path
        return "", os.path.abspath(_decoded(path))
    match = _STORE.fullmatch(text)
    if match:
        return _parse_store(match["scheme"], match["rest"], without_credentials(text))
    if "://" in text:
        shown = without_credentials(text)
        raise UserError(f"{shown}: expected a path or an s3://, gs:// or file:// URI")
    return "", os.path.abspath(os.path.expanduser(text))


def _parse_store(scheme: str, rest: str, shown: str) -> tuple[str, str]:
    place, mark, options = rest.rpartition("?") if "?" in rest else (rest, "", "")
    if mark and not all(_OPTION.fullmatch(option) for option in options.split("&")):
        raise UserError(f"{shown}: `?` begins options such as region=eu-west-1; in a name write it %3F")
    user = ""
    secret = _WITH_SECRET.fullmatch(place)
    if secret:  # a slash in it, as many have, need not be written %2F
        user = f"{secret['user']}:{quote(unquote(secret['secret']), safe='')}@"
        place = secret["rest"]
    else:
        head, at, tail = place.partition("@")
        if at and "/" not in head:
            user, place = f"{head}@", tail
    bucket, _, key = place.partition("/")
    parts = [part for part in _decoded(key).split("/") if part]
    if not bucket or {".", ".."} & {*parts, bucket}:
        raise UserError(f"{shown}: expected a bucket and a path without `.` or `..` in it")
    if any(ord(letter) < 32 for letter in bucket + key):
        raise UserError(f"{shown!r}: expected a name without control characters")
    named = "&".join(f"{name}={quote(value, safe='')}" for name, value in parse_qsl(options))
    return f"{scheme}://{user}{bucket}{mark}{named}", "/".join([bucket, *parts])


def _decoded(path: str) -> str:
    """Percent-encoded bytes as the letters they stand for; what stands for none stays."""
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        return path


def show_address(store: str, path: str) -> str:
    """The address for people, logs and manifests, without credentials and options, for `parse_address`."""
    if not store:
        return path
    scheme = store.partition(":")[0]
    return f"{scheme}://{path.replace('%', '%25').replace('?', '%3F')}"


def whole_address(store: str, path: str) -> str:
    """The address with credentials and options, for another process; never to be shown."""
    if not store:
        return path
    place, mark, options = store.partition("?")
    key = path.partition("/")[2]
    return f"{place}/{quote(key)}{mark}{options}"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Names of files for things that people named, none twice on a disk that does not tell case.

    Args:
        names: Most stay as they are; the file itself says the whole name.

    Returns:
        Name to the name of its file, without an ending.
    """
    safe_names: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        safe = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name)
        if len(safe.encode()) > _LONGEST_NAME or safe.casefold() in taken or not safe:
            short = safe.encode()[:_LONGEST_NAME].decode(errors="ignore")
            safe = f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        taken.add(safe.casefold())
        safe_names[name] = safe
    return safe_names


def joined(path: str, name: str) -> str:
    """The path of what lies in a folder."""
    return f"{path.rstrip('/')}/{name}"


def above(path: str) -> str:
    """The path of the folder that something lies in."""
    return str(PurePosixPath(path).parent)
