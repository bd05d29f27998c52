"""Harvests on real Ray: exactly once on disk, whatever dies, and whoever else is at work."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from safetensors.torch import load_file, save_file

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import read_texts
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest import planned_set
from contrans_dist.harvest.actors import HarvestActor, slots_of
from contrans_dist.harvest.driver import HarvestJob, harvest, harvest_sets
from contrans_dist.harvest.planned_set import PlannedSet
from contrans_dist.harvest.request import Request
from contrans_dist.harvest.shards import HarvestSpec, ShardReport, ShardTask, Timing, plan_shards
from contrans_dist.harvest.throughput import covered
from contrans_dist.models import model_facts
from contrans_dist.models.placement import Placement
from contrans_dist.store import object_stores
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.results import plain
from contrans_dist.store.shard_reader import opened
from tests.harvests import (
    assert_same_set,
    cli,
    is_actor,
    kill_whole,
    manifest_of,
    shard_files,
    stamps,
    wait_for_shards,
)
from tests.inprocess import ray_here
from tests.tiny import CONTEXT, save_tiny
from tests.truth import block_rows, by_transformers, read_all
from tests.waiting import until

N_BLOCKS, D, N_TEXTS, SHARD = 3, 16, 120, 2
N_SHARDS = N_TEXTS // SHARD
CAPTURE = CaptureSettings(shard_size=SHARD)
# One thread each: the matrix library's sums may differ in the last bit between thread counts.
ONE, TWO = ClusterSettings(actors=1, cpus_per_actor=1), ClusterSettings(actors=2, cpus_per_actor=1)
WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=N_BLOCKS, d=D))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts of many lengths, two of them identical and one longer than the context."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(N_TEXTS)]
    lines[7] = lines[100] = "The boy was happy."
    lines[11] = "the boy and the dog " * CONTEXT
    records = [{"text": line, "label": WORDS[i % 5]} for i, line in enumerate(lines)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def made(local: None, model: str, texts: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole harvest by one actor, never interrupted: what all others are held against."""
    out = tmp_path_factory.mktemp("made") / "set"
    harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, ONE)
    return out


def test_rows_and_manifest(made: Path, model: str, texts: str) -> None:
    lines = [json.loads(line) for line in Path(texts).read_text().splitlines()]
    wanted, ids = by_transformers(Path(model), [line["text"] for line in lines])
    frame = read_all(made)
    np.testing.assert_allclose(block_rows(frame), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert frame["row"].tolist() == list(range(N_TEXTS))
    assert frame["text"].tolist() == [line["text"] for line in lines]
    assert frame["label"].tolist() == [line["label"] for line in lines]
    same = block_rows(frame.iloc[[7, 100]])
    np.testing.assert_allclose(same[0], same[1], rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert frame["text_id"][7] == frame["text_id"][100]

    found = ActivationSet.open(str(made))
    np.testing.assert_array_equal(found.read_block(1, 5, 99), block_rows(frame)[5:99, 1])
    manifest = manifest_of(made)
    assert plain(found.manifest) == manifest
    assert found.manifest.identity.fingerprint == manifest["fingerprint"]
    assert manifest["format"] == 1
    assert manifest["kind"] == "activations"
    assert (manifest["rows"], manifest["d"], manifest["n_blocks"]) == (N_TEXTS, D, N_BLOCKS)
    assert manifest["blocks"] == [0, 1, 2]
    assert manifest["columns"] == ["row", "text_id", "text", "n_tokens", "token_id", "label"]
    medians = np.median(np.linalg.norm(wanted, axis=2), axis=0)
    np.testing.assert_allclose([manifest["norms"][str(block)] for block in range(3)], medians, rtol=1e-5)
    assert manifest["tokens"] == sum(map(len, ids)) == frame["n_tokens"].sum()
    assert manifest["truncated"] == 1
    assert 0 <= manifest["canary"]["worst_deviation"] < 1e-5
    assert [shard["start"] for shard in manifest["shards"]] == list(range(0, N_TEXTS, SHARD))
    assert sum(shard["bytes"] for shard in manifest["shards"]) == sum(
        path.stat().st_size for path in shard_files(made)
    )
    identity = manifest["identity"]
    assert {"weights", "tokenizer", "texts", "torch", "transformers", "batch_tokens", "chat"} <= set(identity)
    assert (identity["model"], identity["dtype"], identity["template"]) == (model, "float32", None)
    assert manifest["throughput"]["tokens"] == manifest["tokens"]
    assert manifest["devices"] == ["cpu"]
    assert {"fingerprint", "versions", "command", "git_commit", "created"} <= set(manifest)


def test_an_actor_gives_what_a_plain_call_gives(made: Path, model: str, texts: str, tmp_path: Path) -> None:
    """The engine inside an actor, and the same class in this process, write the same bytes."""
    actor = HarvestActor(ModelSettings(id=model), highest_block=N_BLOCKS - 1)
    identity = ActivationSet.open(str(made)).manifest.identity
    shards = plan_shards(HarvestSpec(identity, CAPTURE, D, Location.parse(tmp_path)))
    assert len(shards) == N_SHARDS
    table = read_texts(texts)
    for shard in (shards[index] for index in (5, 0, N_SHARDS - 1)):
        actor.run(ShardTask(shard, table.slice(shard.start, shard.rows)))
        assert (tmp_path / shard.name).read_bytes() == (made / shard.name).read_bytes()


def test_two_actors_of_which_one_is_killed(made: Path, model: str, texts: str, tmp_path: Path) -> None:
    """Same bytes from two actors as from one, though one of them dies in the middle."""
    out, killed = tmp_path / "set", []

    def kill_one() -> None:
        wait_for_shards(out, 10)
        actors = [child for child in psutil.Process().children(recursive=True) if is_actor(child)]
        # One that works: the other may still be loading the model, and has no task to lose then.
        max(actors, key=lambda process: process.cpu_times().user).kill()
        killed.append(len(shard_files(out)))

    thread = threading.Thread(target=kill_one)
    thread.start()
    harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, TWO)
    thread.join()
    assert len(killed) == 1
    assert killed[0] < N_SHARDS
    assert_same_set(out, made)
    assert manifest_of(out)["throughput"]["lost_actors"] == 1
    assert manifest_of(out)["throughput"]["actors"] == 2


@pytest.mark.parametrize("seconds", [0.0, 120.0])
def test_shards_that_somebody_deletes_on_the_only_node_are_told_as_gone(
    local: None, model: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Before, with the advice to choose a disk that all nodes share."""
    take = PlannedSet.take

    def gone(planned: PlannedSet, address: str, report: ShardReport) -> None:
        Path(address).unlink()
        take(planned, address, report)

    monkeypatch.setattr(PlannedSet, "take", gone)
    monkeypatch.setattr(planned_set, "_SEEN_SECONDS", seconds)
    told = (
        r"60 of 60 shards are not as they were written \(.*no such file.*\); run the same command .* these$"
    )
    with ray_here(), pytest.raises(RunError, match=told):
        harvest(ModelSettings(id=model), read_texts(texts), str(tmp_path / "set"), CAPTURE, ONE)


def test_a_disk_in_trouble_for_a_moment_hides_no_shard(
    local: None, made: Path, model: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is looked at whether nodes share it; before, that ended the harvest."""
    take, looks = PlannedSet.take, list[str]()

    def stale(path: str) -> fs.FileInfo:
        looks.append(path)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def troubled(planned: PlannedSet, address: str, report: ShardReport) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(object_stores, "filesystem", lambda *_: SimpleNamespace(get_file_info=stale))
            take(planned, address, report)

    monkeypatch.setattr(PlannedSet, "take", troubled)
    monkeypatch.setattr(planned_set, "_SEEN_SECONDS", 0.0)
    out = tmp_path / "set"
    with ray_here():
        harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, ONE)
    assert looks
    assert_same_set(out, made)


def test_shards_too_large_for_s3_are_refused(model: str, texts: str) -> None:
    """All bytes would be uploaded, and the store then refuse to copy them to their name."""
    facts = replace(model_facts(model), d=1 << 20)
    table = read_texts(texts).slice(0, 100)
    with pytest.raises(UserError, match=r"--shard-size: shards of 12.6 GB.*; expected 397 or less"):
        table = pa.concat_tables([table] * 10)
        job = HarvestJob(table, Location("s3://bucket", "bucket/x"), CaptureSettings(shard_size=5000))
        Request.of(ModelSettings(id=model), facts, job)


def damage(folder: Path) -> set[str]:
    """Spoil some shards of a set so that their footers tell it, each in another way; their names."""
    files = shard_files(folder)
    files[3].write_bytes(files[3].read_bytes()[:-1000])
    flipped = bytearray(files[5].read_bytes())
    flipped[flipped.rindex(b'"tokens": ') + 10] ^= 1
    files[5].write_bytes(bytes(flipped))
    files[8].write_bytes(b"")
    files[7].unlink()
    (folder / ".tmp-host-1-0123456789ab").write_bytes(files[0].read_bytes()[:500])
    return {files[index].name for index in (3, 5, 7, 8)}


def test_damaged_shards_are_computed_again_and_only_they(
    made: Path, model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short, a bit flipped, empty, gone; and a file that was being written when its process died. Once in
    a finished set, once in one that was killed before its manifest, both of the same name."""
    folders = [tmp_path / "finished" / "set", tmp_path / "unfinished" / "set"]
    for folder in folders:
        shutil.copytree(made, folder)
    (folders[1] / "manifest.json").unlink()
    spoilt = [damage(folder) for folder in folders]
    before = [stamps(folder) for folder in folders]
    counts = read_all(made)["n_tokens"].to_numpy().reshape(N_SHARDS, SHARD).sum(axis=1)
    tokens = {path.name: count for path, count in zip(shard_files(made), counts, strict=True)}
    table = read_texts(texts)
    jobs = [HarvestJob(table, Location.parse(folder), CAPTURE) for folder in folders]
    with ray_here():
        harvest_sets(ModelSettings(id=model), jobs, ONE)
    said = capsys.readouterr().err
    for folder, names, earlier in zip(folders, spoilt, before, strict=True):
        assert_same_set(folder, made)
        again = {name for name, stamp in stamps(folder).items() if earlier.get(name) != stamp}
        assert again == names
        assert str(folder / "shard-00003.parquet") in said
        assert str(folder / "shard-00005.parquet") in said
        assert manifest_of(folder)["throughput"]["tokens"] == sum(tokens[name] for name in names)
    unfinished = manifest_of(folders[1])
    earlier_manifest = manifest_of(made)
    for name in ("tokens", "truncated", "canary", "norms", "fingerprint", "columns"):
        assert unfinished[name] == earlier_manifest[name]


def test_a_set_that_does_not_add_up_is_refused_and_mended(
    made: Path, model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard replaced by another of the set, one of a stranger's, a flipped digit in the manifest; harvested
    again, only what is wrong is computed anew."""
    folders = {name: tmp_path / name / "set" for name in ("shards", "manifest", "both")}
    for folder in folders.values():
        shutil.copytree(made, folder)
    for name in ("shards", "both"):
        shutil.copy(made / "shard-00009.parquet", folders[name] / "shard-00004.parquet")
        table = pq.read_table(made / "shard-00006.parquet").replace_schema_metadata(None)
        pq.write_table(table, folders[name] / "shard-00006.parquet")
    for name in ("manifest", "both"):
        content = manifest_of(folders[name])
        content["shards"][3]["rows"] += 1
        (folders[name] / "manifest.json").write_text(json.dumps(content))
    for name, wanted in (("shards", "2 shards are computed anew"), ("manifest", "manifest.json")):
        with pytest.raises(UserError, match=f"{wanted}"):
            ActivationSet.open(str(folders[name]))
    before = {name: stamps(folder) for name, folder in folders.items()}
    jobs = [HarvestJob(read_texts(texts), Location.parse(folder), CAPTURE) for folder in folders.values()]
    with ray_here():
        harvest_sets(ModelSettings(id=model), jobs, ONE)
    assert "manifest.json" in capsys.readouterr().err
    for name, folder in folders.items():
        assert_same_set(folder, made)
        again = {shard for shard, stamp in stamps(folder).items() if before[name][shard] != stamp}
        assert again == (set() if name == "manifest" else {"shard-00004.parquet", "shard-00006.parquet"})
        assert ActivationSet.open(str(folder)).n_rows == N_TEXTS


def test_what_is_finished_is_taken_by_its_footers(
    made: Path, model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pages are not read on a rerun: damage there is found on reading, and mended when the file is gone."""
    out = Path(shutil.copytree(made, tmp_path / "set"))
    path = out / "shard-00005.parquet"
    flipped = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(6)
    flipped[column.data_page_offset + column.total_compressed_size - 3] ^= 16
    path.write_bytes(bytes(flipped))
    with ray_here():
        found = harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, ONE)
        assert "nothing to do" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"shard-00005.parquet: damaged .* delete it and run the same"):
            found.read_block(0)
        path.unlink()
        harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, ONE)
    assert_same_set(out, made)


def test_a_flipped_bit_in_a_footer_is_found(made: Path, tmp_path: Path) -> None:
    """Before, not everywhere; and some ended the process that opened the file."""
    whole, path = (made / "shard-00002.parquet").read_bytes(), tmp_path / "shard-00002.parquet"
    for place in range(len(whole) - 8 - pq.read_metadata(made / path.name).serialized_size, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(UserError, match=f"{path.name}: "), opened(Location.parse(path)):
            pass


@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.parquet"])
def test_a_folder_in_the_place_of_a_file_is_the_users_to_move(
    made: Path, model: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before, the model ran first; readers refuse it too."""
    out = Path(shutil.copytree(made, tmp_path / "set"))
    (out / name).unlink()
    (out / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: ") as error:
        ActivationSet.open(str(out))
    assert "\n" not in str(error.value)
    monkeypatch.setattr("contrans_dist.harvest.missing.place", None)  # nothing is computed
    with pytest.raises(UserError, match=rf"{name}: expected a place for a file, there is a folder"):
        harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, ONE)
    with pytest.raises(UserError, match=rf"{name}: expected a place for a file, there is a folder"):
        (Location.parse(out) / name).write_bytes(b"x")


def test_what_is_there_is_not_computed_again(
    made: Path,
    model: str,
    texts: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, manifest = stamps(made), (made / "manifest.json").read_bytes()
    arguments = ["harvest", "--model", model, "--texts", texts, "--out", str(made), "--shard-size", "2"]
    with ray_here():
        assert cli(*arguments, "--json", monkeypatch=monkeypatch) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == N_TEXTS
    assert "nothing to do" in captured.err
    assert stamps(made) == before
    assert (made / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--dtype", "bfloat16"], "dtype: found 'float32', asked for 'bfloat16'"),
        (["--template", "{text} is"], "template: found None, asked for '{text} is'"),
        (["--position", "-2"], "position: found 'last', asked for -2"),
        (["--texts", "other.txt"], "texts: column 'label' is missing"),
        (["--shard-size", "3"], "shard_size: found 2, asked for 3"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(
    made: Path,
    model: str,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    field: str,
    finished: bool,
) -> None:
    out = made
    if not finished:
        out = tmp_path / "set"
        out.mkdir()
        shutil.copy2(made / "shard-00004.parquet", out)
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text("another text\n" * N_TEXTS)
    before = stamps(out)
    arguments = ["harvest", "--model", model, "--texts", texts, "--out", str(out), "--shard-size", "2"]
    assert cli(*arguments, *options, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert field in said
    assert str(out) in said
    assert len(said.splitlines()) == 1
    assert stamps(out) == before


@pytest.mark.parametrize(
    ("content", "place"), [(b"one\ntwo \xe9\n", "line 2: expected UTF-8"), (b"one\n\nthree\n", "line 2: the")]
)
def test_texts_that_are_none_are_refused(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    place: str,
) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    code = cli(
        *("harvest", "--model", model, "--texts", str(path), "--out", str(tmp_path / "set")),
        monkeypatch=monkeypatch,
    )
    assert code == 2
    assert f"{path}, {place}" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_nan_fails_its_shard_and_no_other_and_no_block_above_is_loaded(
    local: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint with one infinite word, and without the blocks above those asked for."""
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=4, d=D)
    actor = HarvestActor(ModelSettings(id=str(folder)), highest_block=1)
    assert len(actor.lm.blocks) == 2
    word = actor.lm.tokenizer("dog", add_special_tokens=False)["input_ids"][-1]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][word] = float("inf")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.2." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat\nno\nthe cat\na dog\na cat\nno\n")
    out = tmp_path / "set"
    arguments = ["harvest", "--model", str(folder), "--texts", str(texts), "--out", str(out)]
    arguments += ["--blocks", "0:2", "--shard-size", "2", "--actors", "1"]
    with ray_here():
        assert cli(*arguments, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert "1 of 3 shards failed" in said
    assert "row 3;" in said
    assert "run the same command again" in said
    assert [path.name for path in sorted(out.iterdir())] == ["shard-00000.parquet", "shard-00002.parquet"]
    assert np.isfinite(block_rows(read_all(out))).all()


def command(model: str, texts: str, out: Path, actors: int = 1) -> list[str]:
    """Of the command line, for the set that `made` is."""
    return [
        *("harvest", "--address", "local", "--json", "--model", model, "--texts", texts, "--out", str(out)),
        *("--shard-size", str(SHARD), "--actors", str(actors), "--cpus-per-actor", "1"),
    ]


def start(model: str, texts: str, out: Path) -> "subprocess.Popen[str]":
    """`contrans harvest` as a process, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "contrans_dist", *command(model, texts, out)],
        stdout=subprocess.PIPE,
        stderr=(out.parent / "stderr").open("w"),
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_terminated_in_the_middle(model: str, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    with start(model, texts, out) as process:
        wait_for_shards(out, 3)
        process.terminate()
        assert process.communicate()[0] == ""
    assert process.returncode == 143
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last == "contrans: terminated; what is finished is kept: run the same command again to go on"
    # Its claim is gone; the beginning of a file that an actor was at may stay, until it is swept.
    assert all(path.name.startswith(".tmp-") for path in out.glob(".*"))


def test_killed_in_the_middle_and_run_again(
    made: Path,
    model: str,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """kill -9 of the command line; a second run computes what is missing and nothing else."""
    out = tmp_path / "set"
    process = start(model, texts, out)
    try:
        wait_for_shards(out, 10)
    finally:
        kill_whole(process)
    before = stamps(out)
    assert 10 <= len(before) < N_SHARDS
    assert not (out / "manifest.json").exists()

    capsys.readouterr()
    with ray_here():
        assert cli(*command(model, texts, out), monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr()
    assert_same_set(out, made)
    assert {name: stamp for name, stamp in stamps(out).items() if name in before} == before
    summary = json.loads(printed.out)
    assert (summary["rows"], summary["truncated"]) == (N_TEXTS, 1)
    assert f"{len(before)} of {N_SHARDS} shards are there" in printed.err
    assert f"{N_TEXTS - SHARD * len(before)} of {N_TEXTS - SHARD * len(before)} texts" in printed.err
    assert "1 text longer than the model's context, cut at the start" in printed.err


@pytest.mark.slow
def test_two_harvests_on_one_folder_at_once(made: Path, model: str, texts: str, tmp_path: Path) -> None:
    """One by a process of its own, one by this, which begins when the other's actor is there."""
    out = tmp_path / "set"
    with start(model, texts, out) as other:
        started = psutil.Process(other.pid)
        until(lambda: other.poll() is not None or any(map(is_actor, started.children(recursive=True))))
        assert other.poll() is None
        mine = harvest(ModelSettings(id=model), read_texts(texts), str(out), CAPTURE, ONE)
        assert (mine.manifest.throughput.tokens or 0) > 0
        assert json.loads(other.communicate()[0])["fingerprint"] == mine.manifest.fingerprint
    assert other.returncode == 0
    assert_same_set(out, made)
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        *(path.name for path in shard_files(made)),
    ]


def test_a_streamed_harvest_is_that_of_the_whole_model(
    made: Path, model: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors, each one sweep of its share; then one lost shard by another sweep, of a rerun."""
    out = tmp_path / "set"
    streamed = [*command(model, texts, out, 2), "--placement", "stream"]
    assert cli(*streamed, monkeypatch=monkeypatch) == 0
    rows, wanted = block_rows(read_all(out)), block_rows(read_all(made))
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    manifest = manifest_of(out)
    assert manifest["fingerprint"] == manifest_of(made)["fingerprint"]
    assert manifest["throughput"]["placement"] == "stream"
    assert manifest["throughput"]["actors"] == 2
    before = stamps(out)
    (out / "shard-00003.parquet").unlink()
    with ray_here():
        assert cli(*streamed, monkeypatch=monkeypatch) == 0
    assert {name for name, stamp in stamps(out).items() if before[name] != stamp} == {"shard-00003.parquet"}
    np.testing.assert_array_equal(block_rows(read_all(out)), rows)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "error",
    [RunError("its weights cannot be loaded: no room"), RuntimeError("CUDA error: out of memory")],
)
def test_quantising_that_cannot_be_measured_leaves_the_set_whole(
    error: Exception, local: None, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("contrans_dist.harvest.driver.quantization_check", fails)
    folder = str(save_tiny(tmp_path / "model", "llama", n_blocks=2, d=64))
    table = read_texts(texts).slice(0, 8)
    with ray_here():
        made = harvest(ModelSettings(id=folder, quantization="int8"), table, str(tmp_path / "set"))
    reason = f"not measured: {error}"
    assert manifest_of(tmp_path / "set")["quantization_check"] == {"texts": 0, "reason": reason}
    assert made.manifest.rows == 8


def test_what_quantising_costs_is_measured(local: None, texts: str, tmp_path: Path) -> None:
    """The manifest's cosines against those of the rows of the plain model, harvested by itself."""
    folder = str(save_tiny(tmp_path / "model", "llama", n_blocks=2, d=64))
    table, sets = read_texts(texts).slice(0, 64), {}
    with ray_here():
        for kind in (None, "int8"):
            out = str(tmp_path / str(kind))
            sets[kind] = harvest(ModelSettings(id=folder, quantization=kind), table, out)
    assert "quantization_check" not in manifest_of(tmp_path / "None")
    check = manifest_of(tmp_path / "int8")["quantization_check"]
    assert check["texts"] == 32
    for block in (0, 1):
        a, b = (sets[kind].read_block(block, 0, 32).astype(np.float64) for kind in (None, "int8"))
        cosines = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert check["mean_cosine"][str(block)] == pytest.approx(cosines.mean(), abs=1e-5)
        assert 0.9 < check["worst_cosine"] <= cosines.min() + 1e-5
        assert cosines.mean() < 1 - 1e-7


def test_a_gpu_has_more_shards_before_it_than_a_cpu() -> None:
    """One for each device of a line of them, another to be written; a single one has the next queued."""
    over: dict[str, int | str] = {"norm": 3, **{f"layers.{k}": k // 2 for k in range(8)}}
    assert slots_of(Placement("device-map", "", over), gpus=4.0) == 5
    assert [slots_of(Placement("resident", ""), gpus) for gpus in (0.0, 0.5, 1.0)] == [2, 3, 3]
    assert slots_of(Placement("device-map", "", {"layers.0": "cpu", "layers.1": "disk"}), gpus=0.0) == 2


def test_seconds_of_several_shards_before_a_device_count_once() -> None:
    """Against every thousandth of a second looked at."""
    spans = [((0.0, 0.5), (0.2, 0.9)), ((0.1, 0.3), (1.2, 1.6)), ((1.5, 2.0),)]
    timings = [Timing("one", 0.0, 2.0, of_shard) for of_shard in spans]
    flat = [span for of_shard in spans for span in of_shard]
    busy = sum(any(began <= t / 1000 < ended for began, ended in flat) for t in range(2000))
    assert covered(timings) == pytest.approx(busy / 1000)
