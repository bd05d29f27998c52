"""Machines that are none: network namespaces with a node of a Ray cluster each, and a switch between them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harvests import is_actor
from tests.waiting import until

_RAY = Path(sys.executable).with_name("ray")
_HEAD = "10.77.0.1"
_PORT = 6379
_NOTICED = '{"health_check_period_ms": 1000, "health_check_failure_threshold": 3}'
_OWN = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]
"""Processes of a machine see only each other: Ray looks among all that it sees for the node that it is on."""


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Network:
    """A head, and two nodes whose cables can be pulled."""

    def __init__(self) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="net-", dir="/tmp", ignore_cleanup_errors=True)
        self.spaces = [f"faults-{os.getpid()}-{place}" for place in range(3)]
        self.processes: dict[int, psutil.Popen] = {}
        try:
            for space in self.spaces:
                _ip("netns", "add", space)
                _ip("-n", space, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces can be made ({error})")
        token = Path(self.scratch.name) / "token"
        token.touch(mode=0o600)
        token.write_text("0123456789abcdef" * 4)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        """What commands on these machines need."""
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        head = self.spaces[0]
        _ip("-n", head, "link", "add", "br0", "type", "bridge")
        _ip("-n", head, "addr", "add", f"{_HEAD}/24", "dev", "br0")
        _ip("-n", head, "link", "set", "br0", "up")
        for place in (1, 2):
            space = self.spaces[place]
            _ip(
                "-n", head, "link", "add", f"v{place}", "type", "veth", "peer", "name", "eth0", "netns", space
            )
            _ip("-n", head, "link", "set", f"v{place}", "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"10.77.0.1{place}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
        self._start_ray(0, "--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false",
                        f"--system-config={_NOTICED}", f"--node-ip-address={_HEAD}")  # fmt: skip
        for place in (1, 2):
            self.start(place)

    @property
    def address(self) -> str:
        return f"{_HEAD}:{_PORT}"

    def inside(self, place: int) -> list[str]:
        """What a command begins with that runs on a machine."""
        return ["ip", "netns", "exec", self.spaces[place]]

    def within(self, place: int) -> list[str]:
        """What a command begins with that is to see a machine's processes too, as one that runs in a pod."""
        first = psutil.Process(self.processes[place].pid).children()[0]
        return ["nsenter", f"--target={first.pid}", "--net", "--pid", "--mount"]

    def start(self, place: int) -> None:
        """Start a node, and wait for it."""
        self._start_ray(
            place, f"--address={self.address}", f"--node-ip-address=10.77.0.1{place}", "--num-cpus=1"
        )

    def _start_ray(self, place: int, *words: str) -> None:
        """Twice, if need be: Ray gives up after 30 seconds, which busy cores may take."""
        if "Ray runtime started" not in self._begin_ray(place, *words):
            self.kill(place)
            said = self._begin_ray(place, *words)
            assert "Ray runtime started" in said, said

    def _begin_ray(self, place: int, *words: str) -> str:
        folder = Path(self.scratch.name) / f"{place}-{time.monotonic_ns() % 10**9}"
        log = Path(self.scratch.name) / f"log-{place}"
        with log.open("wb") as stream:
            process = psutil.Popen(
                [*self.inside(place), *_OWN, str(_RAY), "start", *words, "--block", "--disable-usage-stats",
                 "--object-store-memory=150000000", f"--temp-dir={folder}"],
                stdout=stream, stderr=stream, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        self.processes[place] = process
        until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text(), log.read_text)
        return log.read_text()

    def cable(self, place: int, plugged: bool) -> None:
        _ip("-n", self.spaces[0], "link", "set", f"v{place}", "up" if plugged else "down")

    def actors(self, place: int) -> list[psutil.Process]:
        """But for those that have ended and that a raylet that is gone no longer asks how."""
        return [child for child in self._of(place) if is_actor(child) and not _is_over(child)]

    def _of(self, place: int) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.processes[place].pid).children(recursive=True))
        return []

    def has_node(self, place: int) -> bool:
        """Whether its raylet runs."""
        return any("raylet" in _name(process) for process in self._of(place))

    def kill(self, place: int) -> None:
        """Everything that Ray started on a machine."""
        started = [*self._of(place), self.processes[place]]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        with suppress(Exception):
            self.processes[place].wait(30)
        psutil.wait_procs(started, timeout=30)

    def close(self) -> None:
        for place in (2, 1, 0):
            if place in self.processes:
                self.kill(place)
        for space in self.spaces:
            # What a node that was given up has left: nobody's child any more, but still in its namespace.
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
            for pid in listed.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        self.scratch.cleanup()


def _is_over(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _name(process: Any) -> str:
    with suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""
