"""Fixtures that several rooms' tests share."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# Three test files run side by side: each keeps to one core, and so do the processes it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Else the actors of one file, at Ray's low priority, starve beside the others.
os.environ.setdefault("RAY_worker_niceness", "0")
# Else every command and actor that they start would compile the program again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What a shell starts in the background ignores Ctrl-C, and so would the commands that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)
_PATHS = [str(Path(__file__).parent / "startup"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_PATHS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of the fault suite: pytest asks for them before it knows of that folder."""
    parser.addoption("--times", type=int, default=1, help="how often each fault is made")
    parser.addoption("--table", help="a file for the table of faults")


def pytest_configure(config: pytest.Config) -> None:
    """xdist would begin with the files that have most tests; those that take longest have few."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """What is imported by now stays: no need to look through it for garbage again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the repository; without it a test that wants it skips."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of real models and data at {folder}")
    return folder


@pytest.fixture(scope="session")
def connections() -> Iterator[ExitStack]:
    """Connections to Ray that last until the last test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def local(connections: ExitStack) -> None:
    """Ray on this machine, started for the first file that wants it: to start it takes six seconds."""
    import ray

    from contrans_dist.distributed.cluster import connected

    if not ray.is_initialized():
        connections.enter_context(connected("local"))


@pytest.fixture(scope="module")
def in_process(local: None) -> Iterator[None]:
    """From here to the end of the file no actor gets a process of its own: see `inprocess.ray_here`."""
    from tests.inprocess import ray_here

    with ray_here():
        yield


@pytest.fixture(scope="module")
def new_bucket() -> Iterator[Callable[[str], str]]:
    """Makes a bucket on a real S3 server, on this machine alone; returns the URI of a folder in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "user", "aws_secret_access_key": "hush"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys)

    def made(name: str) -> str:
        client.create_bucket(Bucket=name)
        options = f"endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"
        return f"s3://user:hush@{name}/runs?{options}"

    yield made
    server.stop()
