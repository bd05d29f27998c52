"""Secrets planted wherever a user may write one: none is printed, none is left in a file."""

import io
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from pyarrow import fs

from contrans_dist import console as progress
from contrans_dist.cli import app
from contrans_dist.cli.main import guarded
from contrans_dist.cli.usage import run_command
from contrans_dist.config import ModelSettings
from contrans_dist.config.recipe import load_recipe
from contrans_dist.console import json_line, shown, without_credentials
from contrans_dist.models import model_facts
from contrans_dist.models.facts import model_identity
from contrans_dist.pipeline.run import resolved
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import command_line
from tests.tiny import save_tiny

SECRET = "hu/sh+h3re%9z"
TOKEN = SECRET.replace("/", "")
"""As a name alone, which ends at a slash."""
RECIPES = Path(progress.__file__).parent / "pipeline" / "recipes"


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
        ["harvest", "--model", "{model}", "--texts", f"s3://AKEY:{SECRET}@b/t?colour={SECRET}", "--out", "o"],
        ["inspect", f"s3://AKEY:{SECRET}@b/x?endpoint_override=127.0.0.1%3A1&scheme=ftp&region=e"],
        ["fit", "--source", f"gs://AKEY:{SECRET}@b/../x", "--target", "o", "--blocks", "1:1", "--out", "o"],
        ["transplant", "--vector", f"abc://AKEY:{SECRET}@b/x", "--map", "{out}", "--out", "{out}"],
        ["run", "demo", "--set", f"corpus.texts=https://{TOKEN}@h/x", "--dry-run"],
        ["run", "demo", "--set", f"cluster.address=ray://u:{SECRET}@h:1", "--dry-run"],
        ["run", "demo", "--set", f"nothing=https://u:{SECRET}@h"],
        ["harvest", "--model", "{model}", "--texts", "{texts}", "--out", "{out}", "--blocks", "0", "--dtype",
         f"https://u:{SECRET}@h"],
        ["run", "{recipe}"],
        ["run", "{recipe}", "--dry-run"],
        ["plan", "{recipe}"],
    ],
)  # fmt: skip
def test_no_secret_is_printed_or_left(
    arguments: list[str], in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: `--model https://user:pw@host/m: no such folder`; a secret with a slash was everywhere.

    With the traceback, which ends in what is printed without it.
    """
    monkeypatch.setenv("CONTRANS_DEBUG", "1")
    (tmp_path / "texts.txt").write_text("one text\n")
    if not (tmp_path.parent / "model").exists():
        save_tiny(tmp_path.parent / "model", "llama")
    content = {
        "name": "x", "source": f"https://u:{SECRET}@h/a", "target": "demo:target",
        "description": f"from s3://AKEY:{SECRET}@b/d?token={SECRET}",
        "corpus": {"texts": f"s3://AKEY:{SECRET}@b/c"}, "concepts": {"texts": {"a": f"s3://K:{SECRET}@b/x"}},
        "evaluations": {"e": {"texts": f"https://{TOKEN}@h/x"}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    places = {"recipe": tmp_path / "recipe.yaml"}
    places |= {"model": tmp_path.parent / "model", "texts": tmp_path / "texts.txt", "out": tmp_path / "out"}
    filled = [each.format(**places) if "{" in each else each for each in arguments]
    code, output = said(monkeypatch, *filled)
    # What is no bad input is no answer: the bucket of the recipe is asked for, where there is a network.
    assert code in ({0} if "--dry-run" in arguments else {1, 2} if "{recipe}" in arguments else {2}), output
    assert output
    for part in (SECRET, quote(SECRET, safe=""), "hu/sh", "h3re", "9z", "hu%2Fsh"):
        assert part not in output
    for path in tmp_path.rglob("*"):
        assert "h3re" not in path.name
        if path.is_file() and path.name != "recipe.yaml":
            assert b"h3re" not in path.read_bytes(), path


def test_a_run_on_a_store_leaves_none(
    in_process: None, new_bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that commands print and write."""
    monkeypatch.setenv("CONTRANS_DEBUG", "1")
    base, _, options = new_bucket("secrets").replace("user:hush@", f"AKEY:{SECRET}@").partition("?")

    def at(name: str) -> str:
        return f"{base}/{name}?{options}"

    texts, made, vector, mapped = at("texts.jsonl"), at("set"), at("v.safetensors"), at("map.safetensors")
    lines = [json.dumps({"text": f"a text of number {i}", "label": "ab"[i % 2]}) for i in range(60)]
    Location.parse(texts).write_bytes("\n".join(lines).encode())
    model = str(save_tiny(tmp_path / "model", "llama"))
    harvest = ["harvest", "--model", model, "--out", made, "--texts"]
    good = [
        [*harvest, texts, "--blocks", "0,1"],
        [*harvest, texts, "--blocks", "1"],
        ["refine", "--activations", made, "--positive", "label=a", "--negative", "label=b", "--out", vector],
        ["fit", "--source", made, "--target", made, "--blocks", "1:1", "--out", mapped],
        ["transplant", "--vector", vector, "--map", mapped, "--out", at("w.safetensors")],
        ["evaluate", "--model", model, "--benchmark", "perplexity", "--data", texts, "--out", at("run")],
        ["report", at("run")],
        ["status", made, "--verify"],
        ["inspect", made, "--json"],
        ["inspect", at("w.safetensors")],
    ]
    bad = [["inspect", at("no")], [*harvest, at("no")], [*harvest, texts, "--template", "{text}!"]]
    for words in good + bad:
        code, output = said(monkeypatch, *words)
        assert code == (0 if words in good else 2), output
        assert output
        assert "h3re" not in output, (words, output)
    folder = Location.parse(at("")).parent
    listed = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True))
    files = [info.path for info in listed if info.type is fs.FileType.File]
    names = {path.rpartition("/")[2] for path in files}
    assert names >= {"manifest.json", "metrics.json", "map.safetensors", "report.html"}
    for path in files:
        assert b"h3re" not in folder.filesystem.open_input_file(path).read(), path


@pytest.mark.slow
def test_what_actors_log_holds_none(
    local: None, new_bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors with processes of their own, that publish to a store, and to one that is gone."""
    import ray

    monkeypatch.setenv("CONTRANS_DEBUG", "1")
    out = new_bucket("tokens").replace("user:hush@", f"AKEY:{SECRET}@")
    texts, model = tmp_path / "texts.txt", str(save_tiny(tmp_path / "model", "llama"))
    texts.write_text("a text\nanother one\n")
    words = ["--model", model, "--texts", str(texts), "--out", out, "--blocks", "0"]
    code, output = said(monkeypatch, "harvest", *words)
    assert (code, "h3re" in output) == (0, False), output

    @ray.remote
    def publish(folder: Location) -> None:
        (folder / "x").write_bytes(b"x")

    with pytest.raises(ray.exceptions.RayTaskError) as error:
        ray.get(publish.remote(Location.parse(out.replace("@tokens", "@nowhere"))))
    assert "h3re" not in str(error.value)
    logs = list(Path(ray._private.worker._global_node.get_logs_dir_path()).rglob("*"))
    assert len(logs) > 5
    for path in logs:
        assert not path.is_file() or b"h3re" not in path.read_bytes(), path


def test_what_is_told_of_a_place_in_a_traceback() -> None:
    assert "h3re" not in repr([Location.parse(f"s3://AKEY:{SECRET}@bucket/x?region=eu-west-1")])


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
    # Before, a URI with such a word in it was taken for an option.
    words = ["contrans", "status", f"s3://AKEY:{SECRET}@secrets/x?region=us-east-1", "--token=h3re"]
    assert command_line(words) == "contrans status s3://secrets/x?region=us-east-1 --token=***"


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


def test_progress_without_a_terminal_is_told_though_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long one task takes: with rate and time left once there is a rate."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.05)
    before = threading.active_count()
    with progress.Progress("choose blocks", 96, "trials") as told:
        time.sleep(0.2)
        told.reach(2)
        told.reach(1)
        time.sleep(0.2)
        told.reach(96)
    assert threading.active_count() == before
    first, *middle, last = capsys.readouterr().err.splitlines()
    assert first == "choose blocks: 0 of 96 trials, 0 s so far"
    going = [line for line in middle if line.startswith("choose blocks: 2 of 96 trials, ")]
    assert len(going) >= 2
    assert all(re.fullmatch(r".* trials, [\d.]+/s, \d+ s left", line) for line in going), going
    assert last.startswith("choose blocks: 96 of 96 trials, ")
    assert "left" not in last


def test_progress_tells_tokens_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("harvest m", 10, "texts") as told:
        time.sleep(0.01)
        told.tokens, told.failed = 5000, 2
        told.reach(10)
    line = capsys.readouterr().err.strip()
    assert re.fullmatch(r"harvest m: 10 of 10 texts, [\d,]+/s, [\d,]+ tokens/s, 2 failed for good", line), (
        line
    )


@pytest.mark.parametrize(
    ("rate", "said"),
    [(1234.5, "1,234/s"), (12.34, "12/s"), (1.25, "1.2/s"), (0.5, "30/min"), (0.02, "1.2/min")],
)
def test_a_rate_has_digits(rate: float, said: str) -> None:
    assert progress.per_second(rate) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.6, "60 s"), (150, "2 min"), (7199, "120 min"), (9000, "2.5 h")]
)
def test_a_time_is_short(seconds: float, said: str) -> None:
    assert progress.time_words(seconds) == said


@pytest.mark.parametrize(("size", "said"), [(4.1e5, "0.4 MB"), (9.99e8, "999.0 MB"), (1.65e12, "1,650.0 GB")])
def test_a_size_is_in_megabytes_or_more(size: float, said: str) -> None:
    assert progress.size_words(size) == said


def test_what_is_told_of_parts_is_told_of_the_whole() -> None:
    heard: list[float] = []
    with progress.listening(heard.append):
        for parts in progress.one_by_one((2, 4)):
            for part in range(parts):
                progress.tell((part + 1) / parts)
        progress.tell(1.0)
    progress.tell(0.5)  # to nobody
    assert heard == [0.25, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
