"""jobs/submit.py: the same work has one submission id, and runs once; a job that was stopped goes on."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from tests.harvests import wait_for_shards
from tests.heads import RAY, REPOSITORY, UPLOAD, Head, environment
from tests.sets import write_lines
from tests.tiny import save_tiny

SUBMIT = REPOSITORY / "jobs" / "submit.py"


# -- the id ------------------------------------------------------------------------------------------


@pytest.fixture
def id_of(jobs_importable: None, tmp_path: Path) -> Callable[..., str]:
    """The id of a command in a folder with a script, a recipe, and the texts that it names."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "run.py").write_text("print()")
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "recipe.yaml").write_text("corpus:\n  texts: texts.jsonl\nevaluations: [{data: data}]\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text("1")
    (tmp_path / "out").mkdir()
    submission_id = importlib.import_module("submit").submission_id

    def found(command: str, folder: str | None = None) -> str:
        return str(submission_id(command.split(), folder or str(tmp_path)))

    return found


def test_the_id_is_of_the_script_and_its_arguments(id_of: Callable[..., str]) -> None:
    first = id_of("python jobs/run.py --texts texts.jsonl --out s3://bucket/set")
    assert re.fullmatch(r"contrans-run-[0-9a-f]{12}", first)
    assert id_of("python3 -u jobs/run.py --texts texts.jsonl --out s3://bucket/set") == first
    others = [
        "python jobs/run.py --texts texts.jsonl --out s3://bucket/other",
        "python jobs/run.py --texts texts.jsonl",
        "python jobs/run.py --out s3://bucket/set --texts texts.jsonl",
    ]
    assert len({first, *map(id_of, others)}) == 4


def test_the_id_is_of_what_files_hold(id_of: Callable[..., str], tmp_path: Path) -> None:
    commands = {
        "texts.jsonl": "python jobs/run.py recipe.yaml",
        "data/b.json": "python jobs/run.py recipe.yaml",
        "data/a.json": "python jobs/run.py --set data=data",
        "jobs/run.py": "python jobs/run.py",
    }
    before = {name: id_of(command) for name, command in commands.items()}
    assert before == {name: id_of(command) for name, command in commands.items()}
    for name, command in commands.items():
        found = id_of(command)
        (tmp_path / name).write_text("2")
        assert id_of(command) != found, name


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("python jobs/run.py contrans-fig2a", "data/wikisplit/contrans_wiki_split.txt"),
        ('python jobs/run.py --set concepts.texts={"a":"texts.jsonl"}', "texts.jsonl"),
    ],
)
def test_the_id_is_of_what_a_bundled_recipe_and_a_setting_name(
    id_of: Callable[..., str], tmp_path: Path, command: str, file: str
) -> None:
    before = id_of(command)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("other")
    assert id_of(command) != before


def test_the_id_is_of_what_a_store_holds(
    id_of: Callable[..., str], tmp_path: Path, new_bucket: Callable[[str], str]
) -> None:
    """Texts that were appended there are other work; what cannot be seen from here is known by its name."""
    folder = Location.parse(new_bucket("texts"))
    (folder / "texts.jsonl").write_bytes(b"1")
    (tmp_path / "recipe.yaml").write_text(f"corpus: {{texts: '{folder.uri}'}}\n")
    file = folder.uri.replace("/runs?", "/runs/texts.jsonl?")
    for command in (f"python jobs/run.py --texts={file}", "python jobs/run.py recipe.yaml"):
        found = id_of(command)
        assert id_of(command) == found
        (folder / "texts.jsonl").write_bytes((folder / "texts.jsonl").read_bytes() + b"1")
        assert id_of(command) != found
    names = (file.replace("texts/runs", name) for name in ("nobody-s/a", "nobody-s/b", "nobody-s/a"))
    first, second, again = (id_of(f"python jobs/run.py --texts {name}") for name in names)
    assert first == again != second


def test_the_id_does_not_change_with_what_the_job_writes(id_of: Callable[..., str], tmp_path: Path) -> None:
    commands = [f"python jobs/run.py --out {tmp_path}/out", f"python jobs/run.py --out={tmp_path}/out"]
    before = [id_of(command) for command in commands]
    (tmp_path / "out" / "shard").write_text("1")
    (tmp_path / "data" / "b.json").write_text("1")
    assert [id_of(command) for command in commands] == before


def test_the_id_is_the_same_in_every_process(id_of: Callable[..., str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SUBMIT.parent)!r}); from submit import submission_id; "
        "print(submission_id(sys.argv[2:], sys.argv[1]))"
    )
    words = ["python", "jobs/run.py", "recipe.yaml", "--set=data=data", "--texts=texts.jsonl"]
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *words],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    ).stdout  # fmt: skip
    assert printed.strip() == id_of(" ".join(words))


def test_a_folder_that_is_not_here_gives_ids_too(id_of: Callable[..., str]) -> None:
    assert id_of("python jobs/run.py a", "s3://bucket/code.zip") != id_of(
        "python jobs/run.py b", "s3://bucket/code.zip"
    )


def test_a_long_argument_names_no_file(id_of: Callable[..., str]) -> None:
    """Longer than a name on a disk may be: before, such a job could not be submitted at all."""
    commands = [f"python jobs/run.py {option}{'x' * 280}" for option in ("--template ", "--set=name=")]
    assert len({id_of("python jobs/run.py"), *map(id_of, commands)}) == 3


@pytest.mark.parametrize("command", ["true", "python -m contrans_dist", "python jobs/none.py"])
def test_what_is_no_script_has_no_id(id_of: Callable[..., str], command: str) -> None:
    with pytest.raises(UserError, match=r"expected a script|no such file"):
        id_of(command)


# -- what is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--", "true"], 2, "expected a script"),
        (["--runtime-env-json", "[1]", "--", "python", "jobs/harvest.py"], 2, "expected a JSON object"),
        (["--runtime-env-json", "{", "--", "python", "jobs/harvest.py"], 2, "expected a JSON object"),
        (["--address", "http://127.0.0.1:9", "--", "python", "jobs/harvest.py"], 1, "no Ray cluster took"),
        (["--model", "m"], 2, "no option --model"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SUBMIT), *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == code
    assert done.stderr.startswith("contrans: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "s3://key:plant3d@bucket/x"], "--out"),
        (["--out=s3://key:plant3d%2Fwith@bucket/x"], "--out"),
        (["--texts", "s3://bucket/x?region=eu-west-1&secret_access_key=plant3d"], "--texts"),
        (["--set", "corpus={texts: 's3://key:plant3d@bucket/x'}"], "--set"),
        (["s3://key:plant3d@bucket/recipe.yaml"], "s3://bucket/recipe.yaml"),
        (["--hub-token", "plant3d"], "--hub-token"),
        (["--model", "plant3d-of-the-shell"], "--model"),
    ],
)
def test_a_secret_in_the_command_is_refused(words: list[str], named: str) -> None:
    """Before, it stood in Ray's job table, and in its logs."""
    submitted = [sys.executable, str(SUBMIT), "--address", "http://127.0.0.1:9", "--", "python"]
    done = subprocess.run(
        [*submitted, "jobs/harvest.py", *words], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "HF_TOKEN": "plant3d-of-the-shell"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"contrans: {named}: holds a secret")
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "plant3d" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_secret_in_the_address_of_the_code_is_refused() -> None:
    flags = ["--address", "http://127.0.0.1:9", "--working-dir", "https://user:plant3d@host/code.zip"]
    done = subprocess.run(
        [sys.executable, str(SUBMIT), *flags, "--", "python", "jobs/harvest.py"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("contrans: --working-dir: holds a secret")
    assert "plant3d" not in done.stderr


def test_nothing_heavy_is_imported_to_submit() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SUBMIT.parent)!r}); import submit\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "print(*{'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# -- on a real head ----------------------------------------------------------------------------------


class Submitter:
    """`python jobs/submit.py` in a shell, with the head's token."""

    def __init__(self, head: Head, working_dir: Path, runtime_env: dict[str, Any] | None = None) -> None:
        self.command = [
            *(sys.executable, str(SUBMIT), "--address", head.dashboard, "--working-dir", str(working_dir)),
            *("--runtime-env-json", json.dumps(runtime_env or {})),
        ]
        self.environment = environment(head.token)

    def begin(self, *words: str, no_wait: bool = False) -> subprocess.Popen[str]:
        flags = ["--no-wait"] if no_wait else []
        return subprocess.Popen(
            [*self.command, *flags, "--", sys.executable, *words],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, no_wait: bool = False) -> tuple[int, str, str]:
        process = self.begin(*words, no_wait=no_wait)
        output, errors = process.communicate()
        return process.returncode, output, errors


def ray_job(head: Head, verb: str, job: str) -> str:
    """`ray job VERB JOB`, as the documentation has it."""
    done = subprocess.run(
        [RAY, "job", verb, job], env=environment(head.token, RAY_ADDRESS=head.dashboard),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_same_work_runs_once(head: Head, tmp_path: Path) -> None:
    """Submitted twice at once, while it runs, and when it has ended."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "count.py").write_text(
        "import sys, time\n"
        "with open(sys.argv[2], 'a') as stream: stream.write('run\\n')\n"
        "print('begun', open('texts').read(), flush=True); time.sleep(30); print('done')\n"
    )
    (tmp_path / "code" / "texts").write_text("with texts")
    counted = tmp_path / "counted"
    submitter = Submitter(head, tmp_path / "code")
    words = ("count.py", "--out", str(counted), "--texts", "texts")
    both = [submitter.begin(*words, no_wait=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert re.fullmatch(r"contrans-count-[0-9a-f]{12}\n", said[0][0])
    follower = submitter.begin(*words)
    assert follower.stdout
    assert "begun with texts\n" in iter(follower.stdout.readline, "")
    follower.send_signal(signal.SIGINT)
    errors = follower.communicate()[1]
    assert follower.returncode == 130
    assert "goes on; `ray job stop" in errors
    code, output, errors = submitter.run(*words)
    assert code == 0
    assert re.search(r"^begun with texts$.*^done$", output, re.M | re.S)
    assert "as submitted before" in errors
    code, output, errors = submitter.run(*words)
    assert (code, output) == (0, "")
    assert "succeeded before" in errors
    assert counted.read_text() == "run\n"


@pytest.mark.slow
def test_a_failed_job_is_submitted_again_under_the_next_number(head: Head, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "once.py").write_text(
        "import pathlib, sys\n"
        "place = pathlib.Path(sys.argv[2])\n"
        "if not place.exists(): place.touch(); sys.exit(3)\n"
        "print('second')\n"
    )
    submitter = Submitter(head, tmp_path / "code")
    words = ("once.py", "--out", str(tmp_path / "place"))
    code, _, errors = submitter.run(*words)
    assert code == 3
    assert "failed with exit code 3" in errors
    code, output, errors = submitter.run(*words)
    assert code == 0
    assert "second" in output
    job = re.search(r"(contrans-once-\w+-2): succeeded", errors)
    assert job, errors
    code, output, errors = submitter.run(*words)
    assert (code, output) == (0, "")
    assert "succeeded before" in errors


@pytest.mark.slow
def test_a_stopped_harvest_goes_on_where_it_was(head: Head, tmp_path: Path) -> None:
    """`ray job stop` in the middle leaves finished shards; the same command adds those that are missing."""
    texts = [f"Text {i}: one {i % 7} two {i % 11} three" for i in range(1200)]
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    model = str(save_tiny(tmp_path / "model", "llama", n_blocks=4, d=32, seed=2))
    out = tmp_path / "set"
    words = (
        *("jobs/harvest.py", "--model", model, "--texts", corpus, "--out", str(out), "--blocks", "1"),
        *("--shard-size", "2", "--actors", "1"),
    )
    submitter = Submitter(head, REPOSITORY, {"excludes": UPLOAD["excludes"]})
    _, job, _ = submitter.run(*words, no_wait=True)
    following = submitter.begin(*words)
    wait_for_shards(out, 5)
    ray_job(head, "stop", job.strip())
    _, errors = following.communicate()
    assert following.returncode == 1
    assert f"{job.strip()}: stopped" in errors
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert 5 <= len(kept) < 600
    assert not (out / "manifest.json").exists()
    code, _, errors = submitter.run(*words)
    assert code == 0, errors
    assert f"{job.strip()}-2: succeeded" in errors
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    rows = ActivationSet.open(str(out))
    assert rows.read_columns(["text"]).column("text").to_pylist() == texts
    found = rows.read_block(1)
    module = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for i in range(0, len(texts), 97):
        tokens = torch.tensor([tokenizer(texts[i])["input_ids"]])
        with torch.inference_mode():
            states = module(tokens, output_hidden_states=True).hidden_states[2]
        np.testing.assert_allclose(found[i], states[0, -1].numpy(), atol=1e-4 * states.abs().max().item())


@pytest.mark.slow
def test_the_commands_of_the_documentation_run(head: Head, tmp_path: Path) -> None:
    """The block of docs/cluster.md, in a copy of the repository, with places and names put in."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("contrans_dist", "jobs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "data").mkdir()
    write_lines(copy / "data/texts.jsonl", [{"text": f"This is number {i}"} for i in range(8)])
    page = (REPOSITORY / "docs/cluster.md").read_text().partition("## Ray jobs")[2]
    block = page.partition("```sh\n")[2].partition("```")[0]
    for name, value in {
        "~/.ray/cluster_token": str(head.token),
        "http://HEAD:8265": head.dashboard,
        "MODEL": str(save_tiny(tmp_path / "model", "llama", n_blocks=4, d=32, seed=2)),
        "RECIPE.yaml": "demo --dry-run",
        "s3://bucket": str(tmp_path / "bucket"),
    }.items():
        assert name in block
        block = block.replace(name, value)
    given = environment(head.token)
    variables = {name: value for name, value in given.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=copy, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ActivationSet.open(str(tmp_path / "bucket/activations")).n_rows == 8
    assert done.stderr.count(": succeeded") == 2
