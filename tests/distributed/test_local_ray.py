"""A Ray of one's own: who can reach it, where its files lie, and what is said when it does not start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from contrans_dist.distributed import local_ray as localray
from contrans_dist.distributed.cluster import connected
from contrans_dist.errors import RunError

LISTENERS = """
import json, os, sys
import psutil, ray
from contrans_dist.distributed.local_ray import local_ray

with local_ray():
    worker = ray.remote(lambda: os.getpid())
    assert ray.get(worker.remote()) != os.getpid()  # its process listens too
    me = psutil.Process()
    open_ports = {
        connection.laddr.ip
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    }
    session = ray._private.worker._global_node.get_session_dir_path()
    there = os.path.exists(session)
print(json.dumps([sorted(open_ports), session, there]))
"""


def test_reachable_from_this_machine_alone_and_by_its_user(tmp_path: Path) -> None:
    """With a temporary folder too long for sockets, as Slurm's may be; nothing stays behind."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("of an earlier Ray")
    token.chmod(0o644)
    folder = tmp_path / ("slurm" * 20)
    folder.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(folder)}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "RAY_ADDRESS"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", LISTENERS], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    addresses, session, there = json.loads(done.stdout)
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert there
    assert not session.startswith(str(folder))
    assert not Path(session).parent.exists()
    assert not list(folder.iterdir())
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == "of an earlier Ray"


def test_a_new_token_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    localray._keep_token_private()
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert len(first := token.read_text()) == 32
    localray._keep_token_private()
    assert token.read_text() == first


@pytest.mark.parametrize("failures", [1, 2])
def test_a_ray_that_does_not_start_is_tried_once_more(
    failures: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Ray raises after half a minute without an answer is a bare Exception of several lines."""
    tries: list[str] = []

    def late(address: str, **_: Any) -> None:
        tries.append(address)
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(localray, "connect", late)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if failures == 1:
        with connected("local"):
            pass
    else:
        with pytest.raises(RunError, match=r"^Ray does not start on this machine \(.*startup\.\); run the"):
            connected("local").__enter__()
    assert tries == ["local", "local"]
    assert (
        capsys.readouterr().err
        == "Ray did not start (The current node timed out during startup.); trying again\n"
    )
