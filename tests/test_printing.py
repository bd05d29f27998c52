"""Secrets planted wherever a user may write one: none is printed, none is left in a file."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from tiny import save_tiny

from contrans_dist import progress
from contrans_dist.cli import app
from contrans_dist.cli.main import guarded
from contrans_dist.cli.usage import run_command
from contrans_dist.config import ModelSettings
from contrans_dist.manifest import model_identity
from contrans_dist.models import model_facts
from contrans_dist.printing import json_line, shown, without_credentials
from contrans_dist.provenance import command_line
from contrans_dist.recipe import load_recipe
from contrans_dist.running import resolved

SECRET = "hu/sh+h3re"
RECIPES = Path(progress.__file__).parent / "recipes"


def said(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Exit code, and all that a command prints."""
    monkeypatch.setattr("sys.argv", ["contrans", *arguments])
    out = io.StringIO()
    monkeypatch.setattr(progress.console, "_file", out)
    code = 0
    with redirect_stdout(out), redirect_stderr(out):
        try:
            guarded(lambda: run_command(app))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue()


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        ["harvest", "--model", f"https://user:{SECRET}@host/m", "--texts", "{texts}", "--out", "{out}"],
        ["harvest", "--model", f"s3://AKEY:{SECRET}@bucket/m", "--texts", "{texts}", "--out", "{out}"],
        ["harvest", "--model", "{model}", "--texts", f"s3://AKEY:{SECRET}@b/../x.txt", "--out", "{out}"],
        ["harvest", "--model", "{model}", "--texts", f"nope://AKEY:{SECRET}@bucket/x", "--out", "{out}"],
        ["harvest", "--model", "{model}", "--texts", "{texts}", "--out", f"nope://AKEY:{SECRET}@bucket/x"],
        ["inspect", f"gs://AKEY:{SECRET}@bucket/a/../b"],
        ["generate", "--model", f"https://user:{SECRET}@host/m", "x"],
        ["evaluate", "--model", f"https://u:{SECRET}@host/m", "--benchmark", "perplexity",
         "--data", "{texts}", "--out", "{out}"],
        ["run", f"https://user:{SECRET}@host/recipe.yaml"],
        ["run", "demo", "--set", f"source=https://user:{SECRET}@host/m", "--out", "{out}"],
        ["run", "demo", "--set", f"source=https://user:{SECRET}@host/m", "--dry-run"],
        ["run", "demo", "--set", f"source=https://user:{SECRET}@host/m", "--dry-run", "--json"],
        ["plan", "demo", "--set", f"corpus.texts=s3://AKEY:{SECRET}@bucket/a/../b"],
        ["report", f"s3://AKEY:{SECRET}@bucket/a/../b"],
        ["status", f"https://AKEY:{SECRET}@bucket/x"],
        ["refine", "--activations", f"https://AKEY:{SECRET}@bucket/x", "--out", "{out}"],
        ["harvest", "--modell", f"https://user:{SECRET}@host/m"],
    ],
)  # fmt: skip
def test_no_secret_is_printed_or_left(
    arguments: list[str], debug: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: `--model https://user:pw@host/m: no such folder`; a secret with a slash was everywhere."""
    monkeypatch.setenv("CONTRANS_DEBUG", "1" if debug else "")
    (tmp_path / "texts.txt").write_text("one text\n")
    if not (tmp_path.parent / "model").exists():
        save_tiny(tmp_path.parent / "model", "llama")
    places = {"model": tmp_path.parent / "model", "texts": tmp_path / "texts.txt", "out": tmp_path / "out"}
    filled = [each.format(**places) if "{" in each else each for each in arguments]
    code, output = said(monkeypatch, *filled)
    assert code == (0 if "--dry-run" in arguments else 2), output
    assert output
    for part in (SECRET, "hu/sh", "sh+h3re", "hu%2Fsh"):
        assert part not in output
    for path in tmp_path.rglob("*"):
        assert "h3re" not in path.name
        assert not path.is_file() or b"h3re" not in path.read_bytes(), path


def test_notes_bars_and_logs_show_none(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress.console, "_file", out)
    address = f"s3://AKEY:{SECRET}@bucket/x"
    progress.note(f"{address}: complete")
    with redirect_stderr(out), progress.Progress(f"harvest {address}", 1, "texts") as bar:
        bar.note(f"{address}: [red]\x1b[31m\u202e")
        bar.advance(1)
    assert "h3re" not in out.getvalue()
    assert "s3://bucket/x: complete" in out.getvalue()
    assert "[red]\\x1b[31m\\u202e" in out.getvalue()


def test_what_is_stored_holds_none(tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "demo.yaml",
        [f"source=https://u:{SECRET}@host/m", f"cluster.address=ray://u:{SECRET}@head:10001"],
    )
    kept = resolved(recipe)
    assert "h3re" not in kept
    content = yaml.safe_load(kept)
    assert content["source"]["id"] == "https://host/m"
    assert content["cluster"]["address"] == "ray://head:10001"
    facts = model_facts(str(save_tiny(tmp_path / "m", "llama")))
    assert model_identity(ModelSettings(id=f"https://u:{SECRET}@h/m"), facts)["model"] == "https://h/m"
    words = ["contrans", "harvest", "--out", f"s3://AKEY:{SECRET}@bucket/x?region=us-east-1"]
    assert command_line(words) == "contrans harvest --out s3://bucket/x?region=us-east-1"


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        (f"s3://AKEY:{SECRET}@bucket/a/b: no such file", "s3://bucket/a/b: no such file"),
        ("https://user@host/x and https://u:p@ss@host/y", "https://host/x and https://host/y"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("https://host/page?x=1&api_key=abc&y=2", "https://host/page?x=1&api_key=***&y=2"),
        ("https://s/b?X-Amz-Signature=ab12&X-Amz-Expires=9", "https://s/b?X-Amz-Signature=***&X-Amz-Expires=9"),
        ('{"a":"s3://bucket/k","b":"x@y.z"}', '{"a":"s3://bucket/k","b":"x@y.z"}'),
        ('{"a":"s3://K:S/x@bucket/k","b":"x@y.z"}', '{"a":"s3://bucket/k","b":"x@y.z"}'),
        ("write to me@home.org", "write to me@home.org"),
    ],
)  # fmt: skip
def test_uris_fit_to_print(text: str, fit: str) -> None:
    assert without_credentials(text) == fit


def test_what_steers_a_terminal_is_text() -> None:
    hostile = "\x1b]0;title\x07 \x9b31m \u202e \u2028 \x7f \U000e0041 [bold]é"
    assert shown(hostile) == "\\x1b]0;title\\x07 \\x9b31m \\u202e \\u2028 \\x7f \\U000e0041 [bold]é"
    line = json_line({"text": hostile})
    assert json.loads(line) == {"text": hostile}
    assert line.isprintable()
