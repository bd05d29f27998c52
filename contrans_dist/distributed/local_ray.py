"""A Ray of one's own on this machine: for its user alone, and only as long as it is needed."""

import os
import re
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from contrans_dist.console import note
from contrans_dist.errors import RunError, first_line

_LOOPBACK = "127.0.0.1"
_LONGEST_SOCKET = 103
"""Bytes of a socket's path that every system takes."""
_SESSION = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1"
_NODE_LOST = re.compile(r"address: (\S+).*has been marked dead", re.DOTALL)
_SAID = ("Raylet is terminated", "A worker died or was killed while executing a task by an unexpected")
"""What we say ourselves, in a line that tells what becomes of it."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")
_started = threading.Event()
"""Set while this process has one."""


def connect(address: str, **options: Any) -> None:
    """`ray.init`, silent. Who has a handler of SIGTERM keeps it: one of Ray's ends the process without a word
    while it starts, another prints a crash and aborts."""
    handler = signal.getsignal(signal.SIGTERM)
    keep = callable(handler) and threading.current_thread() is threading.main_thread()
    theirs = ray_utils.set_sigterm_handler
    ray_worker.print_to_stdstream = _told
    if keep:
        ray_utils.set_sigterm_handler = lambda _handler: None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    finally:
        ray_utils.set_sigterm_handler = theirs
        if keep:
            signal.signal(signal.SIGTERM, handler)


def _told(data: dict[str, Any], **_: Any) -> None:
    """What Ray has to say of the cluster, in a line where it prints pages, and not among the results."""
    for message in data["lines"]:
        lost = _NODE_LOST.search(message)
        if lost:
            note(f"a node of the cluster was lost ({lost[1]})")
        elif not message.startswith(_SAID):
            note(f"Ray: {message.strip().splitlines()[0]}")


def may_grow() -> bool:
    """Whether nodes may join the Ray of this process: none joins one of its own."""
    return not _started.is_set()


@contextmanager
def local_ray() -> Iterator[None]:
    """Start Ray on this machine, reachable from nowhere else; it ends with the block.

    Raises RunError when it does not start.
    """
    _keep_token_private()
    folder = _folder_for_sockets()
    try:
        _start(folder)
        _started.set()
        yield
    finally:
        _started.clear()
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str | None, again: bool = True) -> None:
    options: dict[str, Any] = {} if folder is None else {"_temp_dir": folder}
    try:
        with _on_loopback():
            # Without an explicit "local" Ray would follow the stale address of a cluster long gone.
            connect("local", include_dashboard=False, _node_ip_address=_LOOPBACK, **options)
    except Exception as error:  # what does not start in time is a bare Exception
        ray.shutdown()
        if not again:
            raise RunError(
                f"Ray does not start on this machine ({first_line(error)}); run the same command again when "
                "it is less busy"
            ) from error
        note(f"Ray did not start ({first_line(error)}); trying again")
        _start(folder, again=False)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray takes the loopback address for the network's, as other nodes might want to come. It does not where
    it knows that none can, as on macOS: the one switch there is, and read while it starts."""
    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _keep_token_private() -> None:
    """The token that lets one use Ray: Ray itself writes it for all users of the machine to read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray says what it cannot do without
        file.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            file.chmod(0o600)
            return
        with os.fdopen(descriptor, "w") as stream:
            stream.write(uuid.uuid4().hex)


def _folder_for_sockets() -> str | None:
    """A folder with a short name where the temporary one's is too long for sockets, as Slurm's may be."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual + _SESSION)) <= _LONGEST_SOCKET:
        return None
    for place in _SHORT:
        if os.access(place, os.W_OK):
            return tempfile.mkdtemp(prefix="ray-", dir=place)
    raise RunError(f"TMPDIR {usual}: too long a path for Ray's sockets; set RAY_TMPDIR to a short one")
