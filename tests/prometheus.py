"""A real Prometheus of a test's own, on this machine alone."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest


@contextmanager
def prometheus(folder: Path, targets: str) -> Iterator[int]:
    """The port of one that scrapes `targets`, of a scrape configuration, every few seconds; it ends with the
    block. Without Prometheus on this machine the test skips."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here (Debian's package of that name)")
    config = folder / "prometheus.yml"
    config.write_text(f"global: {{scrape_interval: 5s}}\nscrape_configs:\n- job_name: ray\n  {targets}\n")
    command = [
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"),
        "--web.listen-address=127.0.0.1:0",
    ]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
    ):
        try:
            yield _port_of(server.pid)
        finally:
            server.terminate()


def asked(port: int, query: str) -> list[dict[str, Any]]:
    """What it answers: `metric`, its labels, and `value`, for each series."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return list(json.load(answer)["data"]["result"])


def _port_of(process: int) -> int:
    """Where it listens, once it does."""
    for _ in range(300):
        for connection in psutil.Process(process).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        time.sleep(0.1)
    raise AssertionError("it listens nowhere")
