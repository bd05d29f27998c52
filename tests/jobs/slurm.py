"""A Slurm of our own on this machine: the real daemons and two nodes, in a folder and on ports of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.heads import environment, free_ports
from tests.waiting import until

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=4000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs, and how to use it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=check)


def skip_without_slurm() -> None:
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian's slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons want root")


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Slurm for the time of the block. Its jobs find `ray` and `python` as this process does."""
    for name in ("state", "spool-n1", "spool-n2", "home"):
        (folder / name).mkdir()
    controller, first, second = free_ports(3)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, host=host, controller=controller, first=first, second=second)
    )
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    found = {name: value for name, value in environment(folder).items() if not name.startswith("RAY_")}
    found |= {"SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder / "home")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    munge.append(f"--socket={folder}/munge.socket")
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    running: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "daemons.log").open("w") as log:
            for command in commands:
                running.append(subprocess.Popen(command, env=found, stdout=log, stderr=log, cwd=folder))
                time.sleep(1)
        made = Slurm(folder, found)
        _wait_until_idle(made)
        try:
            yield made
        finally:  # a test that was given up leaves its jobs
            made.call("scancel", "--user=root", check=False)
            until(lambda: not made.call("squeue", "--noheader", check=False).stdout.strip(), "no job")
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(60)


def _wait_until_idle(made: Slurm) -> None:
    for _ in range(60):
        states = made.call("sinfo", "--noheader", "--Node", "--format=%t", check=False).stdout.split()
        if states == ["idle", "idle"]:
            return
        time.sleep(1)
    raise AssertionError((made.folder / "daemons.log").read_text())
