"""A command line that is wrong: one line, exit code 2, and the nearest right name."""

import importlib.metadata
import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from contrans_dist.cli import run_script
from contrans_dist.cli.reducing import reduce
from contrans_dist.console import printable
from tests.commands import run

WRONG = [
    (["evaluate", "--modle", "x"], "evaluate: no option --modle; did you mean --model?"),
    (["harvest", "--text", "a"], "harvest: no option --text; did you mean --texts?"),
    (["refine", "--activation", "a"], "refine: no option --activation; did you mean --activations?"),
    (["demo", "-x"], "demo: no option -x; `contrans demo --help` lists all"),
    (["--versoin"], "no option --versoin; did you mean --version?"),
    (["evaluat"], "no command 'evaluat'; did you mean evaluate?"),
    (["xyzzy"], "no command 'xyzzy'; `contrans --help` lists all"),
    (["evaluate"], "evaluate: --model is missing; `contrans evaluate --help` says more"),
    (["plan"], "plan: argument RECIPE is missing"),
    (["generate", "--model", "demo:target"], "generate: argument PROMPTS is missing"),
    (["status", "a", "b"], "status: got unexpected extra argument"),
    (["evaluate", "--model"], "option '--model' requires an argument"),
    (["generate", "--model", "demo:target", "--strength", "abc", "x"], "generate: --strength: "),
    (["harvest", "--actors", "1.5"], "harvest: --actors: "),
    (["--limits", "0", "demo"], "--limits: "),
    (["plan", "demo", "--nodes", "0"], "plan: --nodes: "),
    (["plan", "demo", "--tflops", "0"], "--tflops 0: expected a number above 0"),
    (["plan", "demo", "--gpu-memory", "nan"], "--gpu-memory nan: expected a number above 0"),
    (["plan", "demo", "--memory-per-node", "inf"], "--memory-per-node inf: expected a number above 0"),
    (["plan", "demo", "--cpus-per-node", "-1"], "--cpus-per-node -1: expected a number above 0"),
    (["generate", "--model", "demo:target", "--strength", "nan", "x"], "--strength nan: expected a finite"),
    (["generate", "--model", "demo:target", "--max-new-tokens", "0", "x"], "--max-new-tokens 0: expected at"),
    (["generate", "--model", "demo:target", "--dtype", "x", "x"], "dtype: expected 'float32', 'bfloat16'"),
    (["generate", "--model", "demo:target", "--quantization", "x", "x"], "quantization: expected 'int8'"),
    (["--limits", "nan", "status", "."], "--limits: "),
    (["status", "\udcff"], "argument '\\udcff': expected UTF-8"),
    (["report", "a", "b\ud83d"], "argument 'b\\ud83d': expected UTF-8"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    WRONG,
    ids=[" ".join(each).encode("ascii", "replace").decode() for each, _ in WRONG],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, *arguments).refused(said)


@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_number_out_of_range_names_its_flag(
    value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = tmp_path / "a.txt"
    texts.write_text("A text.\n")
    given = ["--model", "demo:source", "--texts", texts, "--out", tmp_path / "set"]
    run(capsys, "harvest", *given, "--actors", value).refused("--actors", "greater than or equal to 1")


def test_scripts_of_jobs_refuse_alike(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([], "--source-contrast is missing"),
        (["--source-contrats", "a"], "no option --source-contrats; did you mean --source-contrast?"),
        (["\udcff"], "expected UTF-8"),
    ):
        run(capsys, *arguments, entry=lambda: run_script(reduce, "")).refused(said)


def test_a_script_hides_no_module(tmp_path: Path) -> None:
    """As `jobs/evaluate.py` would hide the package that lm-eval's tasks import."""
    (tmp_path / "wave.py").write_text("raise SystemExit(9)")
    code = "def command(): import wave; print(wave.__file__)\nrun_script(command, '')"
    (tmp_path / "script.py").write_text(f"from contrans_dist.cli import run_script\n{code}")
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wave.__file__


def test_help_stays_and_version_tells_versions(capsys: pytest.CaptureFixture[str]) -> None:
    alone, asked = run(capsys), run(capsys, "--help")
    assert (alone.code, asked.code) == (2, 0)
    assert "harvest" in alone.out + alone.err
    assert "harvest" in asked.out
    found = run(capsys, "--version")
    assert found.code == 0
    assert found.out.splitlines()[0] == f"contrans-dist {importlib.metadata.version('contrans-dist')}"
    assert f"torch {importlib.metadata.version('torch')}" in found.out


def test_version_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['contrans', '--version']\n"
        "from contrans_dist.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_debug_still_shows_where_an_error_arose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTRANS_DEBUG", "")
        found = run(capsys, "--debug", "inspect", "/nowhere/at/all")
        os.environ.pop("CONTRANS_DEBUG", None)
    assert found.code == 2
    assert "Traceback" in found.err
    assert found.err.rstrip().endswith("contrans: /nowhere/at/all: no such file or folder")


def test_what_steers_a_terminal_is_shown_as_text() -> None:
    assert (
        printable("a\x1b[31mred\n\u202eb\u2028\x9b \u202f%é")
        == "a\\x1b[31mred\\n\\u202eb\\u2028\\x9b \u202f%é"
    )
    assert printable("a\n\tb", keep="\n\t") == "a\n\tb"
    assert printable("half \ud83d") == "half \\ud83d"
