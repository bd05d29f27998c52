"""Texts that a model cannot run are named, with file and line, and all others are harvested."""

import json
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.config.map_options import MapOptions
from contrans_dist.data.texts import read_texts, text_table
from contrans_dist.distributed.cluster import Replicas
from contrans_dist.distributed.watch import watch
from contrans_dist.distributed.workers import Outcome
from contrans_dist.errors import RunError
from contrans_dist.harvest import missing
from contrans_dist.harvest.driver import harvest as harvest_set
from contrans_dist.harvest.shards import ShardTask
from contrans_dist.harvest.sweep import SweepTask
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.driver import fit
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from tests.harvests import cli, stamps
from tests.sets import make_set, own_facts, write_shard
from tests.tiny import save_tiny, tiny_tokenizer
from tests.truth import block_rows, by_transformers, read_all

GOOD = [f"the {word} and the dog" for word in ("boy", "cat", "tree", "ball", "bird", "man", "water", "park")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its tokenizer knows a token that the model has no embedding for."""
    folder = save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=2, d=16)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("<image>")["input_ids"][-1] == 300
    return str(folder)


def harvest(model: str, texts: Path, out: Path, *options: str) -> list[str]:
    return [
        *("harvest", "--model", model, "--texts", str(texts), "--out", str(out), "--shard-size", "4"),
        *("--actors", "1", *options),
    ]


class MortalPool:
    """Actors that are real, but in this process: being given one of these rows is taken for one's death, and
    takes along all that run beside it."""

    def __init__(self, fatal: set[int]) -> None:
        self.fatal = fatal
        self.tried: list[list[int]] = []

    def run(
        self, actor_class: Any, arguments: Any, tasks: Any, size: Replicas, keep: Any, **more: Any
    ) -> Outcome:
        assert more["on_progress"] is not None  # by which an actor is found out that hangs
        actor, outcome = actor_class(*arguments), Outcome()
        for start in range(0, len(tasks), size.actors):
            beside = tasks[start : start + size.actors]
            seen = [_rows_run(task.payload) for task in beside]
            self.tried += [sorted(rows) for rows in seen if beside[0].payload.trial]
            if self.fatal.isdisjoint(chain.from_iterable(seen)):
                for task in beside:
                    keep(task, actor.run(task.payload))
            else:
                outcome.failures |= {task.name: "the actor died: killed" for task in beside}
                outcome.deaths |= {task.name for task in beside}
        return outcome


def _rows_run(payload: ShardTask | SweepTask) -> set[int]:
    if isinstance(payload, SweepTask):
        return set().union(*map(_rows_run, payload.shards))
    return set(payload.rows["row"].to_pylist()) - set(payload.fatal)


def rows_of(model: str, lines: list[str]) -> np.ndarray:
    return by_transformers(Path(model), lines)[0]


@pytest.mark.parametrize("placement", ["auto", "stream", "pipeline"])
def test_a_poison_text_is_named_and_the_rest_harvested(
    local: None,
    in_process: None,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    placement: str,
) -> None:
    """The second shard has one of them and four good texts follow it; the third has nothing else."""
    lines = [*GOOD[:5], "look <image> there", *GOOD[5:], "<image> <image>"]
    texts, out = tmp_path / "texts.txt", tmp_path / "set"
    texts.write_text("".join(line + "\n" for line in lines))
    command = harvest(model, texts, out, "--placement", placement, "--shard-size", "3")
    assert cli(*command, monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert f"{texts}, line 6 ('look <image> there'): token 300 ('<image>') is beyond the model's 300" in told
    assert "2 of 10 texts cannot be run" in told
    assert "--skip-bad leaves these out" in told
    assert "failed" not in told
    assert not (out / "manifest.json").exists()

    before = stamps(out)
    assert len(before) == 4
    assert cli(*command, "--skip-bad", "--json", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert stamps(out) == before
    assert "they are left out" in said.err
    assert json.loads(said.out)["rows"] == len(GOOD)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [each["row"] for each in manifest["skipped"]] == [5, 9]
    assert "beyond the model's 300 embeddings" in manifest["skipped"][0]["reason"]

    frame, wanted = read_all(out), rows_of(model, GOOD)
    assert frame["row"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert frame["text"].tolist() == GOOD
    np.testing.assert_allclose(block_rows(frame), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    found = ActivationSet.open(str(out))
    assert (found.n_rows, found.read_columns(["text"], 4, 7).column("text").to_pylist()) == (8, GOOD[4:7])
    np.testing.assert_array_equal(found.read_block(1, 4, 7), block_rows(frame)[4:7, 1])

    assert cli(*command, "--skip-bad", monkeypatch=monkeypatch) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert cli(*command, monkeypatch=monkeypatch) == 2
    assert stamps(out) == before


def test_a_text_too_short_for_the_position_and_one_that_gives_nan(
    local: None,
    in_process: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=2, d=16, bos=False)
    word = AutoTokenizer.from_pretrained(folder)("!")["input_ids"][-1]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][word] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for placement in ("auto", "stream"):
        texts, out = tmp_path / "texts.jsonl", tmp_path / placement
        lines = [*GOOD[:4], "a", *GOOD[4:], "the man came home!"]
        texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        command = harvest(str(folder), texts, out, "--position", "-2", "--placement", placement)
        command[command.index("4")] = "10"
        assert cli(*command, monkeypatch=monkeypatch) == 2
        told = capsys.readouterr().err
        assert "2 of 10 texts cannot be run" in told
        assert "line 5 ('a'): position -2 asked for, but it has 1 tokens" in told
        command[command.index("-2")] = "last"
        out = tmp_path / f"{placement}-last"
        command[command.index("--out") + 1] = str(out)
        assert cli(*command, monkeypatch=monkeypatch) == 1
        told = capsys.readouterr().err
        assert "line 10 ('the man came home!'): NaN or infinity, first at block 0 (try dtype float32" in told
        assert cli(*command, "--skip-bad", monkeypatch=monkeypatch) == 0
        frame = read_all(out)
        assert frame["text"].tolist() == lines[:-1]
        wanted = rows_of(str(folder), lines[:-1])
        np.testing.assert_allclose(block_rows(frame), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_sets_that_lack_different_rows_are_joined_on_those_that_both_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 4)).astype(np.float32)
    whole = make_set(tmp_path / "whole", {1: rows, 2: 2 * rows}, 4, shard=16)
    gaps = lacking(tmp_path / "gaps", rows, [0, 15, 16, 40])
    assert gaps.row_numbers().tolist() == [i for i in range(60) if i not in (0, 15, 16, 40)]
    joined = join(whole, gaps, "lcross")
    both = gaps.row_numbers()
    np.testing.assert_array_equal(joined.read(joined.source, 2), 2 * rows[both])
    np.testing.assert_array_equal(joined.read(joined.target, 1), rows[both])
    np.testing.assert_array_equal(joined.source.read_block(1, 10, 33), rows[both][10:33])
    asked = np.array([0, 3, 15, 17, 59])
    some = join(whole, gaps, "lcross", asked)
    np.testing.assert_array_equal(some.read(some.source, 1), rows[[3, 17, 59]])
    np.testing.assert_array_equal(some.read(some.target, 1), rows[[3, 17, 59]])
    assert len(some.tokens()) == 3
    fitted = fit(whole, gaps, "1:1", MapOptions("lcross"), rows=asked, shuffled=False)
    wanted = np.linalg.lstsq(rows[[3, 17, 59]].astype(float), rows[[3, 17, 59]].astype(float), rcond=None)[0]
    (mapping,) = fitted.maps.values()
    np.testing.assert_allclose(mapping.weight, wanted, atol=1e-4)


def lacking(folder: Path, rows: np.ndarray, left_out: list[int]) -> ActivationSet:
    """A set of the same texts in which these rows are not."""
    make_set(folder, {1: rows, 2: rows}, 4, shard=16)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"]:
        path = folder / entry["name"]
        table = pq.read_table(path)
        table = table.filter(~np.isin(table.column("row").to_numpy(), left_out))
        facts = json.loads(table.schema.metadata.get(b"contrans", b"{}"))
        facts["skipped"] = [
            {"row": i, "reason": "x"} for i in left_out if entry["start"] <= i < entry["start"] + 16
        ]
        entry["rows"] = table.num_rows
        write_shard(path, own_facts(table, **facts))
    manifest["rows"] -= len(left_out)
    manifest["skipped"] = [{"row": i, "reason": "x"} for i in left_out]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return ActivationSet.open(str(folder))


def test_a_set_that_holds_more_serves(
    local: None,
    in_process: None,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "set"
    texts.write_text("".join(line + "\n" for line in GOOD))
    assert cli(*harvest(model, texts, out), monkeypatch=monkeypatch) == 0
    before = stamps(out)
    plain = [
        word for word in harvest(model, texts, out, "--blocks", "1") if word not in ("--shard-size", "4")
    ]
    assert cli(*plain, "--json", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert "nothing to do" in said.err
    assert stamps(out) == before
    found = harvest_set(
        ModelSettings(id=model), read_texts(str(texts)), str(out), CaptureSettings(blocks="1")
    )
    assert (found.blocks, list(found.norms)) == ([1], [1])
    (out / "shard-00001.parquet").unlink()
    (out / "manifest.json").unlink()
    assert cli(*plain, monkeypatch=monkeypatch) == 0
    assert stamps(out)["shard-00000.parquet"] == before["shard-00000.parquet"]
    assert ActivationSet.open(str(out)).blocks == [0, 1]
    other = tmp_path / "other"
    assert cli(*harvest(model, texts, other, "--blocks", "1"), monkeypatch=monkeypatch) == 0
    assert cli(*harvest(model, texts, other), monkeypatch=monkeypatch) == 2
    assert "blocks: found [1], asked for [0, 1]" in capsys.readouterr().err


@pytest.mark.parametrize("placement", ["auto", "stream", "pipeline"])
def test_texts_that_kill_are_found_and_left_out(
    local: None,
    in_process: None,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    placement: Literal["auto", "stream", "pipeline"],
) -> None:
    """Two in the second of two shards."""
    lines, fatal = [*GOOD[:5], "it kills", *GOOD[5:], "it kills"], {5, 9}
    pool = MortalPool(fatal)
    monkeypatch.setattr(missing, "run_tasks", pool.run)
    out, settings = Location.parse(tmp_path / "set"), CaptureSettings(shard_size=5)
    where = ClusterSettings(actors=1, placement=placement)

    def once(skip_bad: bool) -> None:
        harvest_set(
            ModelSettings(id=model), text_table({"text": lines}), out, settings, where, skip_bad=skip_bad
        )

    with pytest.raises(
        RunError, match=r"2 of 10 .*row 5 \('it kills'\): its process died each time .*--skip-bad"
    ):
        once(skip_bad=False)
    # The one sweep has the first shard's texts as well.
    parts = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [4], [5], [8], [9]]
    assert pool.tried == (parts if placement == "stream" else [[row] for row in range(5, 10)])
    before = stamps(tmp_path / "set")
    once(skip_bad=True)
    assert stamps(tmp_path / "set") == before
    frame, good = read_all(tmp_path / "set"), [text for row, text in enumerate(lines) if row not in fatal]
    assert frame["text"].tolist() == good
    wanted = rows_of(model, good)
    np.testing.assert_allclose(block_rows(frame), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("shard_size", [9, 8])
def test_a_text_that_kills_is_found_in_the_only_shard_and_alone_in_one(
    local: None,
    in_process: None,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shard_size: int,
) -> None:
    monkeypatch.setattr(missing, "run_tasks", MortalPool({8}).run)
    found = harvest_set(
        ModelSettings(id=model), text_table({"text": [*GOOD, "it kills"]}), str(tmp_path / "set"),
        CaptureSettings(shard_size=shard_size), ClusterSettings(actors=1), skip_bad=True,
    )  # fmt: skip
    assert found.row_numbers().tolist() == list(range(8))


def test_trials_are_a_stage_of_their_own_and_no_lines_of_a_job(
    local: None,
    in_process: None,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whose log has a line for each shard. What runs tells of its tasks as the pool does."""
    stages: list[str] = []

    class Telling(MortalPool):
        def run(
            self, actor_class: Any, arguments: Any, tasks: Any, size: Replicas, keep: Any, **more: Any
        ) -> Outcome:
            stages.append(watch().stage)
            outcome = super().run(actor_class, arguments, tasks, size, keep, **more)
            for task in tasks:
                if task.name in outcome.deaths:
                    watch().gave_up(task.name, outcome.failures[task.name])
                else:
                    watch().done(task.name, 0.1)
            return outcome

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(missing, "run_tasks", Telling({6}).run)
    harvest_set(
        ModelSettings(id=model), text_table({"text": GOOD}), str(tmp_path), CaptureSettings(shard_size=4),
        ClusterSettings(actors=1), skip_bad=True,
    )  # fmt: skip
    assert stages == ["harvest", "trials", "harvest"]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [(Path(line["name"]).name, line["outcome"]) for line in lines] == [
        ("shard-00000.parquet", "done"), ("shard-00001.parquet", "failed"), ("shard-00001.parquet", "done"),
    ]  # fmt: skip


def test_a_text_that_killed_is_tried_again_until_it_is_accepted_that_it_is_left_out(
    local: None, in_process: None, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on where there is memory for it."""
    texts = text_table({"text": [*GOOD, "it kills"]})

    def once(folder: Path, fatal: set[int], skip_bad: bool = False) -> ActivationSet:
        monkeypatch.setattr(missing, "run_tasks", MortalPool(fatal).run)
        settings, where = CaptureSettings(shard_size=5), ClusterSettings(actors=1)
        return harvest_set(ModelSettings(id=model), texts, str(folder), settings, where, skip_bad=skip_bad)

    for _ in range(2):
        with pytest.raises(RunError, match=r"row 8 \('it kills'\): its process died each time"):
            once(tmp_path / "strict", {8})
    assert once(tmp_path / "strict", set()).row_numbers().tolist() == list(range(9))

    once(tmp_path / "lenient", {8}, skip_bad=True)
    before = stamps(tmp_path / "lenient")
    with pytest.raises(RunError, match="its process died each time"):
        once(tmp_path / "lenient", set())
    assert stamps(tmp_path / "lenient") == before


def test_texts_that_only_run_beside_one_that_kills_are_not_left_out(
    local: None, in_process: None, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death takes along what three other actors are at, as that of a node does."""
    lines = GOOD * 3
    monkeypatch.setattr(missing, "run_tasks", MortalPool({6}).run)
    found = harvest_set(
        ModelSettings(id=model), text_table({"text": lines}), str(tmp_path / "set"),
        CaptureSettings(shard_size=4), ClusterSettings(actors=4, gpus_per_actor=0, cpus_per_actor=1),
        skip_bad=True,
    )  # fmt: skip
    assert [(text.row, text.reason[:16]) for text in found.manifest.skipped] == [(6, "its process died")]
    assert found.row_numbers().tolist() == [row for row in range(len(lines)) if row != 6]
