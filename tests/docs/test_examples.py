"""What the README and the documentation print is what the program does."""

import contextlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray.scripts.scripts
import safetensors
import typer.main

from contrans_dist.cli import app
from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.pipeline.runs import open_recipe
from jobs.submit import submit
from tests.commands import run
from tests.docs.examples import (
    NOTEBOOK,
    PAGES,
    ROOT,
    SEED,
    bash,
    blocks_of,
    commands_in,
    matched,
    near,
    run_notebook,
    run_page,
)
from tests.jobs.scripts import COMMANDS, parser

QUICK = ROOT / "docs/your-own-data.md"
"""A page whose commands are run in this process, in seconds."""


def pages(*languages: str) -> list[Path]:
    """The pages that have a block in one of these languages."""
    return [
        path
        for path in PAGES
        if any(block.language in languages for block in blocks_of(path.read_text("utf-8")))
    ]


def check(path: Path, shell: Callable[[str], str], folder: Path) -> None:
    """Run a page in a folder: what it prints is what is printed there."""
    with contextlib.chdir(folder):
        for block, real in run_page(path.read_text("utf-8"), shell):
            matched(block.text, real)


@pytest.fixture
def here(in_process: None, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs the commands of a block in this process."""

    def shell(text: str) -> str:
        printed = []
        for words in commands_in(text):
            words = commands_in(SEED.get(" ".join(words), ""))[0] if " ".join(words) in SEED else words
            if words[0] == "contrans":
                ended = run(capsys, *words[1:])
                assert ended.code == 0, ended.err
                printed.append(ended.out)
            elif words[:2] == ["python", "-m"]:
                capsys.readouterr()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", words[2:])
                    runpy.run_module(words[2], run_name="__main__")
                printed.append(capsys.readouterr().out)
            else:
                printed.append(bash(" ".join(words)))
        return "".join(printed)

    return shell


def test_a_quick_page_runs_as_printed(here: Callable[[str], str], tmp_path: Path) -> None:
    check(QUICK, here, tmp_path)
    told = (ROOT / "docs/formats.md").read_text("utf-8")
    assert [key for key in keys_written(tmp_path) if f"`{key}`" not in told] == []


def keys_written(folder: Path) -> set[str]:
    """The keys and columns of every file in a folder that has a page of its own in the documentation."""
    keys: set[str] = set()
    for path in folder.rglob("*"):
        if path.name in ("manifest.json", "metrics.json", "run.json", "search.json"):
            content = json.loads(path.read_text("utf-8"))
            keys |= {*content, *content.get("throughput", {})}
            if content.get("kind") == "activations":  # an evaluation's is its benchmark's own
                keys |= set(content["identity"])
            keys |= {key for entry in content.get("conditions", ()) for key in entry}
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, "numpy") as file:
                header = json.loads(file.metadata()["contrans"])
                keys |= {re.sub(r"\.\d+\.\d+$", ".s.t", name) for name in file.keys()}  # noqa: SIM118
            keys |= {*header, *(key for pair in header.get("pairs", ()) for key in pair)}
        elif path.name == "results.parquet":
            columns = pq.read_schema(path).names
            keys |= {re.sub(r"^logits\..*", "logits.WORD", name) for name in columns}
    assert keys
    return keys


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", pages("shell"), ids=lambda path: path.name)
def test_every_page_runs_as_printed_in_a_shell(path: Path, tmp_path: Path) -> None:
    check(path, bash, tmp_path)


@pytest.mark.parametrize(
    "path", [p for p in pages("python") if p not in pages("shell")], ids=lambda path: path.name
)
def test_pages_of_python_alone_run_as_printed(path: Path, tmp_path: Path) -> None:
    check(path, bash, tmp_path)


@pytest.mark.slow
def test_the_notebook_gives_what_is_stored_in_it() -> None:
    stored = json.loads(NOTEBOOK.read_text("utf-8"))
    figures = 0
    for cell, outputs in run_notebook(stored):
        assert [output["output_type"] for output in outputs] == [
            output["output_type"] for output in cell["outputs"]
        ]
        for was, real in zip(cell["outputs"], outputs, strict=True):
            figures += "data" in real
            matched("".join(was.get("text", "")), "".join(real.get("text", "")))
    assert figures == 1


@pytest.mark.parametrize("path", pages("sh"), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_need_more_than_this_machine_are_spelt_right(path: Path) -> None:
    for block in blocks_of(path.read_text("utf-8")):
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
            for words in commands_in(block.text):
                spelt_right(words)


def spelt_right(words: list[str]) -> None:
    """Parse a command, and what it starts, where that is ours or Ray's; what it names of ours must exist."""
    words = [word for word in words if word != "&"]
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    scripts = [word for word in words if re.fullmatch(r"(jobs|cluster)/\S+", word)]
    assert all((ROOT / script).is_file() for script in scripts), words
    match words:
        case ["contrans", name, *rest]:
            typer.main.get_command(app).commands[name].make_context(f"contrans {name}", rest)  # type: ignore[attr-defined]
        case ["ray", name, *rest]:
            ray.scripts.scripts.cli.commands[name].make_context(f"ray {name}", rest)
        case ["sbatch", "cluster/slurm.sh", *rest]:
            spelt_right(["python", *rest])
        case ["python", "jobs/submit.py", *rest]:
            parser(submit).make_context("submit.py", list(rest))
            spelt_right(rest[rest.index("--") + 1 :])
        case ["python", script, *rest] if Path(script).stem in COMMANDS:
            parser(COMMANDS[Path(script).stem]).make_context(script, rest)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("contrans run RECIPE.yaml --adress auto", "--adress"),
        ("ray up cluster/aws.yaml --yess", "--yess"),
        ("ray upp cluster/aws.yaml", "upp"),
        ("sbatch cluster/slurm.sh jobs/pipeline.py R.yaml --outt /runs", "--outt"),
        ("A=b python jobs/submit.py --adress A -- python jobs/pipeline.py R.yaml", "--adress"),
        ("python jobs/submit.py -- python jobs/pipeline.py R.yaml --outt /runs", "--outt"),
        ("kubectl apply -f cluster/rayjob-tpu.yaml", "cluster/rayjob-tpu.yaml"),
    ],
)
def test_commands_that_are_not_spelt_right_are_found(wrong: str, what: str) -> None:
    (words,) = commands_in(wrong)
    with pytest.raises(Exception, match=what):
        spelt_right(words)


def test_recipes_that_are_printed_are_recipes(tmp_path: Path) -> None:
    seen = 0
    for path in pages("yaml"):
        for block in blocks_of(path.read_text("utf-8")):
            if block.language == "yaml" and block.title:
                (tmp_path / block.title).write_text(block.text, "utf-8")
                assert runs_of(load_recipe(tmp_path / block.title))
                seen += 1
    assert seen


def test_make_demo_is_the_command_that_is_run_instead() -> None:
    assert "$(BIN)/contrans demo --out $(RUN)" in (ROOT / "Makefile").read_text()
    assert SEED["make demo"] == "contrans demo --out runs/demo"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 1500


def test_links_between_files_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster/README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_recipes_that_are_named_are_bundled() -> None:
    for path in PAGES:
        for name in re.findall(r"contrans (?:run|plan) ((?:contrans|lcross|demo)[\w-]*)", path.read_text()):
            assert open_recipe(Path(name), None, False), (path, name)


def test_how_what_is_printed_is_held_against_what_is_real() -> None:
    assert near("R2 0.361, rank 192", "R2  0.37, rank 192")
    assert not near("block 3 -> 4", "block 3 -> 5")
    assert not near("harvest", "harvested")
    assert matched("a 1\n...\nz 2", "a 1\nb\nc\nz 2.01\n") == ["a 1", "...", "z 2.01"]
    for printed, real in [("a", "a\nb"), ("a\n...\nc", "a\nb"), ("a\nb", "a"), ("b", "a")]:
        with pytest.raises(AssertionError):
            matched(printed, real)
    assert commands_in("a 'b\nc' \\\n  d # e\n\nf") == [["a", "b\nc", "d"], ["f"]]
    page = "```shell\na\n```\n\n```text\nb\n```\nx\n```text\n```\n"
    assert [block.follows for block in blocks_of(page)] == [False, True, False]
