"""A Ray head of a test's own, with token authentication, and jobs that are submitted to it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.waiting import until

REPOSITORY = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).with_name("ray")
UPLOAD = {"working_dir": str(REPOSITORY), "excludes": ["/tests/", "/runs/", "/contrans_dist/demo/models/"]}


def environment(token: Path, **more: str) -> dict[str, str]:
    """For Ray's commands and what they start, to which `python` and `ray` are those of the tests."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    ours["PATH"] = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"
    return {**others, **ours, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **more}


def write_token(path: Path, token: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path


@dataclass(frozen=True)
class Head:
    """A Ray head of our own, and how to submit to it."""

    dashboard: str
    token: Path
    process: "subprocess.Popen[bytes]"
    scratch: Path
    """Where it has the folders of its session, and says where its metrics are."""

    def submit(self, *entrypoint: str, token: Path | None = None, debug: bool = False) -> tuple[int, str]:
        """`ray job submit` with the working directory uploaded: (exit code, output)."""
        runtime_env = json.dumps({**UPLOAD, "env_vars": {"CONTRANS_DEBUG": "1"} if debug else {}})
        done = subprocess.run(
            [RAY, "job", "submit", "--runtime-env-json", runtime_env, "--", *entrypoint],
            env=environment(token or self.token, RAY_ADDRESS=self.dashboard),
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def begin(self, *entrypoint: str, output: Path) -> "subprocess.Popen[bytes]":
        """`ray job submit` as `submit`, under way."""
        with output.open("wb") as stream:
            return subprocess.Popen(
                [RAY, "job", "submit", "--runtime-env-json", json.dumps(UPLOAD), "--", *entrypoint],
                env=environment(self.token, RAY_ADDRESS=self.dashboard),
                stdout=stream,
                stderr=stream,
            )

    def kill(self) -> None:
        """kill -9 of the head and all that it started, drivers and actors too."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        for process in [psutil.Process(self.process.pid), *started]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)
        psutil.wait_procs(started, timeout=60)

    def run(self, script: str, *arguments: str, debug: bool = False) -> tuple[int, str]:
        return self.submit(sys.executable, f"jobs/{script}.py", *arguments, debug=debug)


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def ray_head(folder: Path, **more: str) -> Iterator[Head]:
    """Start a head, with `more` in its environment; it ends with the block."""
    token = write_token(folder / "token", "0123456789abcdef" * 4)
    gcs, dashboard, agent, client = free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    # Sockets are made in there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        command = [
            *(str(RAY), "start", "--head", "--dashboard-host=127.0.0.1", "--disable-usage-stats", "--block"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--num-cpus=2", "--object-store-memory=200000000", f"--temp-dir={scratch}"),
        ]
        with (folder / "log").open("w") as log:
            variables = environment(token, **more)
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=folder)
        try:
            wait_for(address, token, process, folder / "log")
            yield Head(address, token, process, Path(scratch))
        finally:
            end(process)


def wait_for(address: str, token: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {token.read_text()}"}
    )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(request, timeout=5).close()
            return True
        return False

    until(answers, log.read_text, pause=0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, and nothing else: by process id."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    for child in psutil.wait_procs(started, timeout=10)[1]:
        child.kill()
