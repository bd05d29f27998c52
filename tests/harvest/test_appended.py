"""Texts appended behind those that a set is of are harvested alone; the shards that are there stay."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrans_dist.config import CaptureSettings, ModelSettings, Recipe
from contrans_dist.data.texts import read_texts
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest import driver, missing
from contrans_dist.harvest.driver import harvest
from contrans_dist.pipeline.inputs import RecipeTexts
from contrans_dist.pipeline.run import RunDriver
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import seal_of
from tests.harvests import cli, stamps
from tests.tiny import save_tiny, tiny_tokenizer
from tests.truth import block_rows, by_transformers, read_all
from tests.waiting import until

WORDS = ("boy", "cat", "tree", "ball", "bird", "man", "water", "park", "dog", "sun", "house", "car")
LINES = [f"the {word} and {' '.join(WORDS[: 1 + i % 4])}" for i, word in enumerate(WORDS)]
LABELS = ["positive", "negative"] * 6
OLD, NEW = 5, 9
"""Rows at first, and when some were appended: the last old shard is not full."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its tokenizer knows a token that the model has no embedding for."""
    folder = save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=2, d=16)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, n: int, **changes: list[Any]) -> Path:
    """The first `n` texts with their columns, some of them other ones."""
    columns: dict[str, list[Any]] = {"text": LINES[:n], "label": LABELS[:n], **changes}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model: str, texts: Path, out: Path | str, *options: str) -> list[str]:
    return [
        *("harvest", "--model", model, "--texts", str(texts), "--out", str(out), "--shard-size", "2"),
        *("--actors", "1", *options),
    ]


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def assert_whole(model: str, out: Path, lines: list[str], rows: list[int] | None = None) -> None:
    """The set holds these texts' rows as transformers gives them, and every byte of it is sound."""
    frame, wanted = read_all(out), by_transformers(Path(model), lines)[0]
    assert frame["row"].tolist() == (list(range(len(lines))) if rows is None else rows)
    assert frame["text"].tolist() == lines
    np.testing.assert_allclose(block_rows(frame), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    found, manifest = ActivationSet.open(str(out)), manifest_of(out)
    np.testing.assert_array_equal(found.read_block(1), block_rows(frame)[:, 1])
    assert manifest["rows"] == len(lines)
    assert manifest["seal"] == seal_of(manifest)
    norms = np.median(np.linalg.norm(wanted, axis=2), axis=0)
    np.testing.assert_allclose(list(found.norms.values()), norms, rtol=1e-4)


@pytest.fixture(scope="module")
def old(in_process: None, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the first texts."""
    folder = tmp_path_factory.mktemp("old")
    texts = read_texts(str(write(folder / "texts.jsonl", OLD)))
    harvest(ModelSettings(id=model), texts, str(folder / "set"), CaptureSettings(shard_size=2))
    return folder / "set"


@pytest.fixture
def out(old: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(old, tmp_path / "set"))


@pytest.mark.parametrize("placement", ["auto", "stream"])
def test_appended_texts_are_harvested_alone_and_again(
    model: str,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    placement: str,
) -> None:
    texts, before, first = tmp_path / "texts.jsonl", stamps(out), manifest_of(out)
    options = ["--placement", placement]
    assert len(before) == 3
    assert cli(*command(model, write(texts, NEW), out, *options), monkeypatch=monkeypatch) == 0
    assert f"{NEW - OLD} texts appended to the {OLD} it is of" in capsys.readouterr().err
    after = stamps(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 5
    assert_whole(model, out, LINES[:NEW])

    # Identity and seal are those of the whole: as if it had been harvested at once, but for the parts.
    once = tmp_path / "once"
    assert cli(*command(model, texts, once, *options), monkeypatch=monkeypatch) == 0
    grown, whole = manifest_of(out), manifest_of(once)
    (part,) = grown["identity"].pop("earlier")
    assert grown["identity"] == whole["identity"]
    assert part == {name: first["identity"][name] for name in ("rows", "texts", "prompts", "shard_size")}
    assert grown["fingerprint"] != first["fingerprint"]
    assert grown["tokens"] == whole["tokens"]

    assert cli(*command(model, texts, out), "--json", monkeypatch=monkeypatch) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert stamps(out) == after

    # A lost shard is made anew as it was, in whichever part; and more may be appended.
    names = ["shard-00003.parquet", *(["shard-00002.parquet"] if placement == "auto" else [])]
    lost = {name: (out / name).read_bytes() for name in names}
    for name in lost:
        (out / name).unlink()
    assert cli(*command(model, write(texts, 12), out, *options), monkeypatch=monkeypatch) == 0
    assert {name: (out / name).read_bytes() for name in lost} == lost
    last = stamps(out)
    assert {name for name in after if last[name] != after[name]} == set(lost)
    assert_whole(model, out, LINES)
    assert [part["rows"] for part in manifest_of(out)["identity"]["earlier"]] == [OLD, NEW]


def test_what_was_grown_is_read_by_all_commands(
    model: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, vector = write(tmp_path / "texts.jsonl", 12), tmp_path / "vector.safetensors"
    assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 0
    whole = [word for word in command(model, texts, tmp_path / "once") if word not in ("--shard-size", "2")]
    assert cli(*whole, monkeypatch=monkeypatch) == 0
    refine = ("refine", "--activations", str(out), "--out", str(vector))
    fit = ("fit", "--source", str(out), "--target", str(tmp_path / "once"), "--blocks", "1:1")
    for each in (
        refine,
        (*fit, "--out", str(tmp_path / "map.safetensors"), "--protocol", "paper"),
        ("status", str(out)),
        ("status", str(out), "--verify"),
        ("inspect", str(out)),
        ("report", str(out)),
    ):
        assert cli(*each, monkeypatch=monkeypatch) == 0, capsys.readouterr().err
        assert "harvest again" not in capsys.readouterr().err
    one = json.loads(json.dumps(manifest_of(out)))
    said = cli("inspect", str(vector), "--json", monkeypatch=monkeypatch), capsys.readouterr().out
    assert said[0] == 0
    assert one["fingerprint"] in said[1]


@pytest.mark.parametrize("manifest", [True, False])
def test_a_killed_append_goes_on(
    model: str, old: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: bool
) -> None:
    """What is there then: the old set, whole or not, and some of the new shards."""
    texts, more = write(tmp_path / "texts.jsonl", NEW), write(tmp_path / "more.jsonl", 12)
    assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for last in (texts, more):
        shutil.copy2(old / "manifest.json", out)
        if not manifest:
            (out / "manifest.json").unlink()
            (out / "shard-00001.parquet").unlink()
        (out / "shard-00003.parquet").unlink()
        kept = stamps(out)
        assert cli(*command(model, last, out), monkeypatch=monkeypatch) == 0
        assert {name: stamps(out)[name] for name in kept} == kept
        for name in set(whole) - {"manifest.json"}:
            assert (out / name).read_bytes() == whole[name]
    assert_whole(model, out, LINES)


def test_a_manifest_that_was_never_written_is_written(
    model: str, old: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last new shard and the manifest."""
    texts = write(tmp_path / "texts.jsonl", NEW)
    assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 0
    before = stamps(out)
    shutil.copy2(old / "manifest.json", out)
    assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 0
    assert stamps(out) == before
    assert_whole(model, out, LINES[:NEW])


def test_texts_that_were_to_be_appended_and_changed(
    model: str,
    old: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The old set serves as it did; of the half-done rows none stays that is no more asked for."""
    texts, before = tmp_path / "texts.jsonl", stamps(out)
    assert cli(*command(model, write(texts, 12), out), monkeypatch=monkeypatch) == 0
    shutil.copy2(old / "manifest.json", out)
    half_done = stamps(out)
    assert cli(*command(model, write(texts, OLD), out), monkeypatch=monkeypatch) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert stamps(out) == half_done
    lines = [*LINES[:OLD], "the other text", "one more"]
    changed = write(texts, 7, text=lines)
    assert cli(*command(model, changed, out), monkeypatch=monkeypatch) == 0
    assert "no more asked for" in capsys.readouterr().err
    assert {name: stamps(out)[name] for name in before} == before
    assert_whole(model, out, lines)


SWAPPED = [LINES[1], LINES[0], *LINES[2:NEW]]
REFUSED: dict[str, tuple[int, dict[str, list[Any]], str]] = {
    "changed": (NEW, {"text": [*LINES[:2], "a", *LINES[3:NEW]]}, "column 'text' differs in {}, line 3 ('a')"),
    "reordered": (NEW, {"text": SWAPPED}, "column 'text' differs in {}, line 1"),
    "removed within": (NEW, {"text": [*LINES[:3], *LINES[4:10]]}, "column 'text' differs in {}, line 4"),
    "label": (NEW, {"label": ["positive"] * NEW}, "found 'negative', asked for 'positive'"),
    "a new column": (NEW, {"extra": ["x"] * NEW}, "column 'extra' is new"),
    "another type": (NEW, {"label": list(range(NEW))}, "column 'label' differs in {}, line 1"),
    "removed": (3, {}, f"found {OLD} rows, asked for the first 3 of them"),
    "changed, none appended": (OLD, {"text": [*LINES[:4], "other"]}, "differs in {}, line 5 ('other')"),
}  # fmt: skip


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_are_not_the_same_are_refused(
    model: str,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
    finished: bool,
) -> None:
    n, changes, told = REFUSED[case]
    if not finished:
        (out / "manifest.json").unlink()
    texts, before = write(tmp_path / "texts.jsonl", n, **changes), stamps(out)
    assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert told.format(texts) in said
    assert "appended" in said
    assert "choose another --out" in said
    assert len(said.splitlines()) == 1
    assert stamps(out) == before


def test_other_settings_and_other_prompts_are_refused_though_texts_were_appended(
    model: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write(tmp_path / "texts.jsonl", NEW)
    assert cli(*command(model, texts, out, "--position", "-2"), monkeypatch=monkeypatch) == 2
    assert "position: found 'last', asked for -2" in capsys.readouterr().err
    monkeypatch.setattr(
        "contrans_dist.harvest.request.prompts", lambda table, _: [f"{x}!" for x in table["text"]]
    )
    assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 2
    assert f"prompts: those of the same {OLD} texts were others" in capsys.readouterr().err
    assert len(stamps(out)) == 3


def test_texts_left_out_before_and_after(
    in_process: None,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [*LINES]
    lines[1], lines[OLD - 1], lines[7] = "a <image>", "<image>", "<image> b"
    texts, out = tmp_path / "texts.jsonl", tmp_path / "set"
    first = write(texts, OLD, text=lines[:OLD])
    assert cli(*command(model, first, out, "--skip-bad"), monkeypatch=monkeypatch) == 0
    before = stamps(out)
    capsys.readouterr()
    whole = write(texts, 12, text=lines)
    assert cli(*command(model, whole, out), monkeypatch=monkeypatch) == 2
    assert f"3 of 12 texts cannot be run: {texts}, line 2 (" in capsys.readouterr().err
    assert ActivationSet.open(str(out)).n_rows == OLD - 2
    assert cli(*command(model, whole, out, "--skip-bad"), monkeypatch=monkeypatch) == 0
    assert {name: stamps(out)[name] for name in before} == before
    rows = [row for row in range(12) if row not in (1, OLD - 1, 7)]
    assert_whole(model, out, [lines[row] for row in rows], rows)
    assert ActivationSet.open(str(out)).row_numbers().tolist() == rows
    # With no manifest the number of rows is known all the same.
    (out / "manifest.json").unlink()
    assert cli(*command(model, whole, out, "--skip-bad"), monkeypatch=monkeypatch) == 0
    assert {name: stamps(out)[name] for name in before} == before


def test_a_column_that_had_no_value_before(
    in_process: None, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "set"
    notes = [None] * OLD + ["x", None, "y", "z"]
    tags: list[list[str]] = [[]] * OLD + [["a"], [], ["b"], []]
    first = write(texts, OLD, note=notes[:OLD], tags=tags[:OLD])
    assert cli(*command(model, first, out), monkeypatch=monkeypatch) == 0
    before = stamps(out)
    whole = write(texts, NEW, note=notes, tags=tags)
    assert cli(*command(model, whole, out), monkeypatch=monkeypatch) == 0
    assert {name: stamps(out)[name] for name in before} == before
    found = ActivationSet.open(str(out)).read_columns(["note", "tags"])
    assert found.to_pydict() == {"note": notes, "tags": tags}


def test_shards_of_appended_texts_are_as_large_as_theirs_ask_for(
    in_process: None, model: str, tmp_path: Path
) -> None:
    """Without --shard-size: those of a small set that much is appended to do not stay small for ever."""
    lines = [f"the {word} {i}" for i in range(64) for word in WORDS]
    texts, out = tmp_path / "texts.txt", tmp_path / "set"
    for n in (8, len(lines)):
        texts.write_text("".join(line + "\n" for line in lines[:n]))
        made = harvest(ModelSettings(id=model), read_texts(str(texts)), str(out))
    assert [entry.rows for entry in made.manifest.shards] == [8, *[95] * 8]
    again = harvest(ModelSettings(id=model), read_texts(str(texts)), str(out), CaptureSettings(blocks="1"))
    assert again.manifest == made.manifest


def test_appended_to_by_two_at_once(
    model: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One appends more between the other's look at the folder and its claim; then they append the same."""
    some, more = (read_texts(str(write(tmp_path / f"{n}.jsonl", n))) for n in (NEW, 12))
    settings, first = CaptureSettings(shard_size=2), stamps(out)
    claimed = driver.claimed

    @contextmanager
    def late(folder: Location, identity: dict[str, Any]) -> Any:
        monkeypatch.setattr(driver, "claimed", claimed)
        harvest(ModelSettings(id=model), between, str(out), settings)
        with claimed(folder, identity) as claim:
            yield claim

    between = some
    monkeypatch.setattr(driver, "claimed", late)
    with pytest.raises(
        RunError, match="another run has appended to it meanwhile; run the same command again"
    ):
        harvest(ModelSettings(id=model), more, str(out), settings)
    assert_whole(model, out, LINES[:NEW])
    between = more
    monkeypatch.setattr(driver, "claimed", late)
    harvest(ModelSettings(id=model), more, str(out), settings)
    assert_whole(model, out, LINES)
    assert {name: stamps(out)[name] for name in first} == first
    whole = stamps(out)
    with pytest.raises(UserError, match=r"rows, asked for the first"):
        harvest(ModelSettings(id=model), some, str(out), settings)
    assert stamps(out) == whole


def test_one_who_appends_waits_for_one_who_is_at_work(
    model: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who would write different things behind the same rows."""
    some, more = (read_texts(str(write(tmp_path / f"{n}.jsonl", n))) for n in (NEW, 12))
    settings, run_tasks = CaptureSettings(shard_size=2), missing.run_tasks

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(missing, "run_tasks", run_tasks)
        with pytest.raises(UserError, match=f"another run is at work there.*rows: found {NEW}, asked for 12"):
            harvest(ModelSettings(id=model), more, str(out), settings)
        return run_tasks(*args, **kwargs)

    monkeypatch.setattr(missing, "run_tasks", meanwhile)
    harvest(ModelSettings(id=model), some, str(out), settings)
    assert_whole(model, out, LINES[:NEW])


def test_appended_on_an_object_store(
    in_process: None, model: str, new_bucket: Callable[[str], str], tmp_path: Path
) -> None:
    out, settings = Location.parse(new_bucket("appended")) / "set", CaptureSettings(shard_size=2)
    texts = [read_texts(str(write(tmp_path / f"{n}.jsonl", n))) for n in (OLD, NEW)]
    harvest(ModelSettings(id=model), texts[0], out, settings)
    old = {name: (out / name).info().mtime_ns for name in out.names() if name.startswith("shard-")}
    whole = harvest(ModelSettings(id=model), texts[1], out, settings)
    assert {name: (out / name).info().mtime_ns for name in old} == old
    wanted = by_transformers(Path(model), LINES[:NEW])[0]
    assert ActivationSet.open(out).read_columns(["text"]).column("text").to_pylist() == LINES[:NEW]
    np.testing.assert_allclose(whole.read_block(1), wanted[:, 1], rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_run_harvests_what_was_appended_to_its_corpus(
    in_process: None, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut as it was; the contrast texts are the same."""
    texts, contrast, out = tmp_path / "texts.jsonl", write(tmp_path / "joy.jsonl", 4), tmp_path / "run"
    content = {
        "name": "r", "source": model, "target": model, "corpus": {"texts": str(texts), "cut": "end"},
        "concepts": {"texts": {"joy": str(contrast)}}, "evaluations": {"e": {"texts": "none"}},
        "map": {"blocks": "1:1"},
    }  # fmt: skip
    recipe = Recipe.model_validate(content)
    whole = [f"{line} went to the park to play there" for line in LINES]
    for n in (OLD, NEW):
        write(texts, n, text=whole[:n])
        sets = RunDriver(recipe, Location.parse(out), RecipeTexts(recipe, tmp_path))._harvest()
    assert "4 texts appended to the 5 it is of" in capsys.readouterr().err
    for side in (sets["corpus-source"], sets["corpus-target"]):
        assert [entry.rows for entry in side.manifest.shards] == [OLD, NEW - OLD]
        cut = side.read_columns(["text"]).column("text").to_pylist()
        assert all(line.startswith(text) for line, text in zip(whole[:NEW], cut, strict=True))
    found = np.stack([sets["corpus-target"].read_block(1)], axis=1)
    wanted = by_transformers(Path(model), cut)[0][:, 1:]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_an_earlier_part_that_does_not_add_up_is_mended(
    model: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest from elsewhere: its identity says of itself what cannot be. Readers refuse it, and a harvest
    goes by the shards."""
    texts = read_texts(str(write(tmp_path / "texts.jsonl", NEW)))
    behind = {**manifest_of(old)["identity"], "rows": 10**15}
    for index, earlier in enumerate((3, [3], [{"rows": -1}], [behind], {"rows": 1})):
        out = Path(shutil.copytree(old, tmp_path / f"set-{index}"))
        content, before = manifest_of(out), stamps(out)
        content["identity"]["earlier"] = earlier
        content.pop("seal", None)
        (out / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"manifest.json: identity(.earlier.*)?: expected"):
            ActivationSet.open(str(out))
        harvest(ModelSettings(id=model), texts, str(out), CaptureSettings(shard_size=2))
        assert "it is written anew" in capsys.readouterr().err
        assert {name: stamps(out)[name] for name in before} == before
        assert_whole(model, out, LINES[:NEW])


@pytest.mark.slow
def test_killed_while_it_appends(model: str, out: Path, tmp_path: Path) -> None:
    """By SIGKILL, at whichever moment, three times; then once to its end."""
    lines = [f"the {word} and the {other} {i}" for i in range(4) for word in WORDS for other in WORDS]
    texts, before = tmp_path / "texts.jsonl", stamps(out)
    n = OLD + len(lines)
    write(texts, n, text=[*LINES[:OLD], *lines], label=[*LABELS[:OLD], *["positive"] * len(lines)])
    run = [sys.executable, "-m", "contrans_dist", *command(model, texts, out)]
    run[run.index("--actors") + 1] = "2"
    for more in (5, 40, 90):
        process = subprocess.Popen(run, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            wanted = len(before) + more
            until(lambda n=wanted, p=process: len(stamps(out)) >= n or p.poll() is not None)
            assert process.poll() is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert manifest_of(out)["rows"] == OLD
        assert ActivationSet.open(str(out)).n_rows == OLD
    kept = stamps(out)
    subprocess.run(run, check=True)
    assert {name: stamps(out)[name] for name in kept} == kept
    assert {name: kept[name] for name in before} == before
    assert_whole(model, out, [*LINES[:OLD], *lines])
