"""cluster/slurm.sh on a real Slurm of two nodes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrans_dist.store.activation_set import ActivationSet
from tests.docs.examples import blocks_of, commands_in
from tests.harvests import shard_files
from tests.heads import REPOSITORY
from tests.jobs.slurm import Slurm, skip_without_slurm, slurm
from tests.recipes import tiny_world
from tests.sets import write_lines
from tests.tiny import save_tiny
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SMALLER = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    skip_without_slurm()
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def submit(cluster: Slurm, log: Path, *words: str, wait: bool = True) -> tuple[int, str]:
    """`sbatch cluster/slurm.sh WORDS` from the repository: (exit code, the job's number)."""
    flags = [*SMALLER, f"--output={log}", f"--chdir={REPOSITORY}", *(["--wait"] if wait else [])]
    done = cluster.call("sbatch", *flags, str(REPOSITORY / "cluster/slurm.sh"), *words, check=False)
    job = re.search(r"batch job (\d+)", done.stdout)
    assert job, done.stderr
    return done.returncode, job[1]


def assert_nothing_is_left(cluster: Slurm, job: str) -> None:
    assert not list((cluster.folder / "home/.ray").iterdir())
    assert not Path(f"/tmp/ray-{job}").exists()


def test_a_job_ends_with_the_exit_code_of_its_script(cluster: Slurm, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(
        "import json, os, ray, stat\n"
        "ray.init(logging_level='ERROR')\n"
        "token = os.environ['RAY_AUTH_TOKEN_PATH']\n"
        "mode = oct(stat.S_IMODE(os.stat(token).st_mode))\n"
        "cpus = [node['Resources'].get('CPU') for node in ray.nodes() if node['Alive']]\n"
        "print(json.dumps({'mode': mode, 'auth': os.environ['RAY_AUTH_MODE'], 'cpus': cpus}))\n"
        "raise SystemExit(7)\n"
    )
    log = tmp_path / "log"
    code, job = submit(cluster, log, str(tmp_path / "look.py"))
    said = log.read_text()
    assert code == 7, said
    found = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert found == {"mode": "0o600", "auth": "token", "cpus": [1.0, 1.0]}
    assert_nothing_is_left(cluster, job)


def test_the_printed_command_runs_a_recipe(cluster: Slurm, tmp_path: Path) -> None:
    """That of cluster/README.md, with a recipe and a place that there are."""
    blocks = blocks_of((REPOSITORY / "cluster/README.md").read_text("utf-8"))
    commands = [words for block in blocks if block.language == "sh" for words in commands_in(block.text)]
    (printed,) = (words for words in commands if words[0] == "sbatch")
    assert printed[1] == "cluster/slurm.sh"
    named = {"RECIPE.yaml": tiny_world(tmp_path).recipe, "/shared/runs/one": str(tmp_path / "run")}
    code, job = submit(cluster, tmp_path / "log", *(named.get(word, word) for word in printed[2:]))
    assert code == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "run/report.html").is_file()
    assert_nothing_is_left(cluster, job)


def test_a_job_whose_time_is_over_goes_on_when_submitted_again(cluster: Slurm, tmp_path: Path) -> None:
    """SIGTERM to the batch shell, as Slurm sends it by the script's --signal."""
    texts = [f"Text {i}: one {i % 7} two {i % 11} three" for i in range(800)]
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    model = str(save_tiny(tmp_path / "model", "llama", n_blocks=4, d=32, seed=2))
    out = tmp_path / "set"
    words = (
        *("jobs/harvest.py", "--model", model, "--texts", corpus, "--out", str(out), "--blocks", "1"),
        *("--shard-size", "2", "--actors", "2"),
    )
    log = tmp_path / "log"
    _, job = submit(cluster, log, *words, wait=False)
    until(lambda: len(shard_files(out)) >= 5, log.read_text)
    cluster.call("scancel", "--batch", "--signal=TERM", job)
    queue = ("squeue", "--noheader", f"--jobs={job}")
    until(lambda: not cluster.call(*queue, check=False).stdout.strip(), log.read_text, pause=0.5)
    said = cluster.call("scontrol", "show", "job", job).stdout
    assert "ExitCode=143:0" in said
    assert "contrans: terminated; what is finished is kept" in log.read_text()
    assert_nothing_is_left(cluster, job)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert 5 <= len(kept) < 400
    code, _ = submit(cluster, log, *words)
    assert code == 0, log.read_text()
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert ActivationSet.open(str(out)).read_columns(["text"]).column("text").to_pylist() == texts


def test_a_cluster_that_does_not_start_is_said(cluster: Slurm, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ray").write_text("#!/bin/sh\necho no Ray here >&2\nexit 3\n")
    (tmp_path / "bin/ray").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{cluster.environment['PATH']}"
    broken = Slurm(cluster.folder, {**cluster.environment, "PATH": path})
    code, _ = submit(broken, tmp_path / "log", "jobs/harvest.py")
    said = (tmp_path / "log").read_text()
    assert code == 1
    assert "no Ray here" in said
    assert "contrans: Ray did not start on every node" in said
