"""A node whose cable is pulled and plugged in again, or whose pod ends; a head that is lost with its jobs."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.bench import Command, Trace
from tests.faults.networks import Network
from tests.faults.tally import Tally
from tests.faults.trial import Trial
from tests.faults.world import SHARD, World
from tests.harvests import shard_files
from tests.heads import RAY, REPOSITORY, ray_head
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]


@pytest.fixture
def network(trace: Trace) -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


def test_node_partitioned(network: Network, trial: Trial) -> None:
    """Cut off for a second, which is nothing; and until it is given up, while its actor works on, unheard, on
    the same disk; then back, and started anew."""
    rows, out = 150 * trial.times + 60, trial.out
    command = trial.start(trial.command(rows, network.address), *network.inside(0), **network.environment)
    for repetition in trial.turns():
        place = 1 + repetition % 2
        until(lambda: command.over or (network.actors(1) and network.actors(2)), "two actors")
        command.wait_for(out, len(shard_files(out)) + 10)
        network.cable(place, plugged=False)
        time.sleep(1)
        network.cable(place, plugged=True)
        command.wait_for(out, len(shard_files(out)) + 10)
        if command.over:
            break
        lost = command.told.count("an actor was lost at ")
        others = network.actors(3 - place)
        for other in others:
            other.suspend()  # or it might have done all the work by then
        network.cable(place, plugged=False)
        until(
            lambda n=lost: command.over or command.told.count("an actor was lost at ") > n, "it is given up"
        )
        assert not command.over, command.told[-3000:]
        network.cable(place, plugged=True)
        until(
            lambda place=place: command.over or not network.has_node(place), "it learns that it was given up"
        )
        network.kill(place)
        network.start(place)
        until(lambda place=place: command.over or network.actors(place), "an actor on the node that is back")
        for other in others:
            if other.is_running():  # it was not taken to hang in the meantime
                other.resume()
    trial.ends("node cut off, and back", rows, command)


_GOES = "a node of the cluster is about to go: its actor gets nothing more to do"


def test_spot_pod_ends(network: Network, trial: Trial) -> None:
    """What Kubernetes runs in a spot worker that is to end, as the file says it; then what is left there is
    killed, and another node joins."""
    pod = _spot_worker()
    words = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    rows, out = 150 * trial.times + 300, trial.out
    command = trial.start(trial.command(rows, network.address), *network.inside(0), **network.environment)
    for repetition in trial.turns():
        place = 1 + repetition % 2
        until(lambda: command.over or (network.actors(1) and network.actors(2)), "two actors")
        command.wait_for(out, len(shard_files(out)) + 10)
        if command.over:
            break
        heard = command.told.count(_GOES)
        ends = Command.start([*_environment(network), *words], out.with_name("ends"), network.within(place))
        until(lambda n=heard, ends=ends: ends.over or command.told.count(_GOES) > n, "it is heard of")
        began = time.monotonic()
        assert ends.finish() == 0, ends.told
        seconds = time.monotonic() - began
        if command.over:
            break
        assert seconds < pod["terminationGracePeriodSeconds"] / 2
        assert not network.has_node(place)
        assert not network.actors(place)
        command.wait_for(out, len(shard_files(out)) + 1)  # of the other node
        network.kill(place)
        network.start(place)
    trial.ends("spot pod ends", rows, command)
    assert "an actor was lost" not in command.told


def _spot_worker() -> dict[str, Any]:
    cluster = yaml.safe_load((REPOSITORY / "cluster/raycluster-spot.yaml").read_text())
    return dict(cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"])


def _environment(network: Network) -> list[str]:
    """What the image and KubeRay set in a worker, and nothing else."""
    token = Path(network.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    return [
        *("env", "--ignore-environment", f"PATH={RAY.parent}:/usr/bin:/bin", "HOME=/home/ray"),
        *("RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={token}", f"RAY_ADDRESS={network.address}"),
    ]


def test_head_lost(world: World, trace: Trace, tally: Tally, times: int, tmp_path: Path) -> None:
    """The head and all that it runs are killed; the job is submitted again to another."""
    rows = 60 * times + 60
    out, codes = tmp_path / "set", list[int]()
    actors = ["--actors", "2", "--cpus-per-actor", "1"]
    entrypoint = [sys.executable, "jobs/harvest.py", *world.alone(rows, out)[4:], *actors]
    trace.begin()
    for repetition in range(times + 1):
        folder = tmp_path / f"head-{repetition}"
        folder.mkdir()
        there = len(shard_files(out))
        with ray_head(folder) as head:
            said = folder / "said"
            job = head.begin(*entrypoint, output=said)
            if repetition < times:
                until(
                    lambda n=there, job=job: job.poll() is not None or len(shard_files(out)) >= n + 10,
                    "shards",
                )
                assert job.poll() is None, said.read_text()[-3000:]
                head.kill()
                job.kill()  # it asks for minutes whether the head comes back
                job.wait()
                assert world.compared(out, rows).other == 0
            else:
                codes.append(job.wait(600))
                assert codes == [0], said.read_text()[-3000:]
    compared = world.compared(out, rows)
    tally.add("head lost, job submitted again", compared, times, trace.again(rows // SHARD), codes)
    assert compared.same
