"""Shards made by one sweep over a model's blocks: those of a resident model, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import UserError
from contrans_dist.harvest.actors import HarvestActor, SweepActor
from contrans_dist.harvest.compute import compute_shard, plan_shards
from contrans_dist.harvest.manifest import identity_of
from contrans_dist.harvest.shard_files import HarvestSpec, Shard, ShardReport, Unit, check_shard
from contrans_dist.harvest.sweep import SweepTask, _Record, clean, plan_sweeps, run_sweep
from contrans_dist.models import load_model, model_facts, resolve_blocks
from contrans_dist.models.streaming import open_streamed
from contrans_dist.store.location import Location
from contrans_dist.store.work_folders import locked
from tests.tiny import CONTEXT, save_tiny
from tests.truth import block_rows, read_all

N_BLOCKS, SHARD = 6, 4
WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]


def _texts(n: int = 18, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(n)]
    lines[3] = "the boy and the dog " * CONTEXT
    return text_table({"text": lines, "label": [WORDS[i % 5] for i in range(n)]})


CAPTURE = CaptureSettings(shard_size=SHARD, batch_tokens=48)


def _spec(model: Path, texts: pa.Table, out: Path, capture: CaptureSettings = CAPTURE) -> HarvestSpec:
    facts = model_facts(str(model))
    blocks = resolve_blocks(capture.blocks, facts.n_blocks)
    identity = identity_of(ModelSettings(id=str(model)), facts, capture, blocks, SHARD, texts, "prompts")
    return HarvestSpec(identity, capture, blocks, facts.d, Location.parse(out))


def _units(spec: HarvestSpec, texts: pa.Table) -> list[Unit]:
    planned = plan_shards(texts.num_rows, SHARD)
    return [Unit(spec, shard, texts.slice(shard.start, shard.rows)) for shard in planned]


def _resident(model: Path, texts: pa.Table, out: Path, capture: CaptureSettings = CAPTURE) -> Path:
    """The same shards by the whole model, one after the other."""
    lm, spec = load_model(str(model), device="cpu", head=False), _spec(model, texts, out, capture)
    for unit in _units(spec, texts):
        compute_shard(lm, unit.rows, spec, unit.shard)
    return out


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.parquet"))}


def _assert_same(folder: Path, wanted: Path) -> None:
    found, frame = read_all(folder), read_all(wanted)
    rows, expected = block_rows(found), block_rows(frame)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    columns = [name for name in frame.columns if not name.startswith("block_")]
    assert found[columns].equals(frame[columns])


def test_an_actor_passes_on_what_its_engine_warns_of(model: Path, tmp_path: Path) -> None:
    texts = _texts()
    actor = HarvestActor(ModelSettings(id=str(model)), N_BLOCKS - 1)

    def full(_module: object, args: tuple, named: dict) -> None:
        hidden = args[0] if args else named["hidden_states"]
        if hidden.shape[0] > 1:
            raise torch.OutOfMemoryError("pretended")

    actor.lm.blocks[0].register_forward_pre_hook(full, with_kwargs=True)
    reports = [actor.run(unit) for unit in _units(_spec(model, texts, tmp_path / "out"), texts)]
    (line,) = [line for report in reports for line in report.notes]
    assert "out of memory at" in line
    _assert_same(tmp_path / "out", _resident(model, texts, tmp_path / "whole"))


def test_an_actor_knows_how_far_its_sweep_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool asks for it while the sweep runs; here it is asked each time that it saves."""
    texts, capture = _texts(), CAPTURE.model_copy(update={"blocks": "0:4"})
    actor, spec = SweepActor(ModelSettings(id=str(model))), _spec(model, texts, tmp_path / "out", capture)
    said: list[float] = []
    write = _Record.write

    def writing(record: _Record, after: int) -> None:
        said.append(actor.progress())
        write(record, after)

    monkeypatch.setattr(_Record, "write", writing)
    actor.run(SweepTask("key", _units(spec, texts)))
    assert said[-1] == actor.progress() == texts.num_rows
    assert set(said) <= {texts.num_rows * blocks / 4 for blocks in range(1, 5)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=N_BLOCKS)


def test_one_sweep_makes_all_shards(model: Path, tmp_path: Path) -> None:
    texts = _texts()
    wanted = _resident(model, texts, tmp_path / "wanted")
    units = _units(_spec(model, texts, tmp_path / "out"), texts)
    streamed = open_streamed(str(model), device="cpu")
    report = run_sweep(streamed, SweepTask("key", units))
    _assert_same(tmp_path / "out", wanted)
    assert report.blocks_read == list(range(N_BLOCKS))
    assert 0 < report.bytes_read < streamed.checkpoint.nbytes
    assert not report.failures
    assert set(report.reports) == {unit.name for unit in units}
    for unit in units:
        checked = check_shard(unit.spec, unit.shard, None)
        assert isinstance(checked, ShardReport)
        assert checked.tokens == report.reports[unit.name].tokens
        assert 0 <= report.reports[unit.name].canary < 1e-5
    assert sum(each.truncated for each in report.reports.values()) == 1
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_sets_with_other_blocks_and_positions_share_a_sweep(model: Path, tmp_path: Path) -> None:
    """Each weight is read once for both; texts of which nothing higher is wanted go no further."""
    low = CaptureSettings(blocks="1", position="mean", template="<{label}> {text}", batch_tokens=64)
    high = CaptureSettings(blocks="0,4")
    units = []
    for name, capture, seed in (("low", low, 1), ("high", high, 2)):
        texts = _texts(seed=seed)
        _resident(model, texts, tmp_path / f"{name}-wanted", capture)
        units += _units(_spec(model, texts, tmp_path / name, capture), texts)
    report = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units), memory=20_000)
    assert report.blocks_read == [0, 1, 2, 3, 4]
    for name in ("low", "high"):
        _assert_same(tmp_path / name, tmp_path / f"{name}-wanted")


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import tests.harvest.test_sweep as t
from contrans_dist.models.streaming import open_streamed
from contrans_dist.harvest.sweep import SweepTask, run_sweep

def sweep(model, out, memory):
    texts = t._texts()
    streamed = open_streamed(str(model), device="cpu")
    load = streamed.load

    def slow(k):
        time.sleep(0.2 if k < t.N_BLOCKS - 1 else 200)  # it never gets through by itself
        return load(k)

    streamed.load = slow
    run_sweep(streamed, SweepTask("key", t._units(t._spec(model, texts, out), texts)), memory)

model, place = sys.argv[1:]
sweep(Path(model), Path(place), int(Path(place).name))
"""
MEMORY = (0, 10**9)


def _record(out: Path) -> dict:
    path = out / ".sweep-key" / "sweep.json"
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def killed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of sweeps that kill -9 met after three of six blocks, one by memory."""
    folder = tmp_path_factory.mktemp("killed")
    code = SLOW.format(tests=str(Path(__file__).parents[2]))
    outs = [folder / str(memory) for memory in MEMORY]
    sweeping = {subprocess.Popen([sys.executable, "-c", code, str(model), str(out)]): out for out in outs}
    end = time.monotonic() + 200
    try:
        while any(process.poll() is None for process in sweeping):
            assert time.monotonic() < end
            for process, out in sweeping.items():
                if process.poll() is None and _record(out).get("after", -1) >= 2:
                    process.kill()
            time.sleep(0.01)
    finally:
        for process in sweeping:
            process.kill()
            process.wait()
    assert [process.returncode for process in sweeping] == [-signal.SIGKILL] * 2
    return folder


@pytest.mark.parametrize("memory", MEMORY)
def test_killed_in_the_middle_and_run_again(model: Path, killed: Path, tmp_path: Path, memory: int) -> None:
    """A second run goes on after the last block that was saved, and reads none below it."""
    texts, out = _texts(), killed / str(memory)
    after = _record(out)["after"]
    assert 2 <= after < N_BLOCKS - 1
    assert not _files(out)
    units = _units(_spec(model, texts, out), texts)
    report = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units), memory)
    assert report.blocks_read == list(range(after + 1, N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    assert not (out / ".sweep-key").exists()


def test_a_sweep_that_is_through_only_publishes(model: Path, tmp_path: Path) -> None:
    """Killed while it published: the shards that are missing come from the rows that were kept."""
    texts, out = _texts(), tmp_path / "out"
    units = _units(_spec(model, texts, out), texts)
    (out / units[2].shard.name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=units[2].shard.name):
        run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units))
    (out / units[2].shard.name).rmdir()
    before = _files(out)
    assert list(before) == [unit.shard.name for unit in units[:2]]
    streamed = open_streamed(str(model), device="cpu")
    report = run_sweep(streamed, SweepTask("key", units[2:]))
    assert report.blocks_read == []
    assert {name: data for name, data in _files(out).items() if name in before} == before
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))


def test_other_shards_start_afresh(model: Path, tmp_path: Path) -> None:
    """What was saved of a sweep is of no use to one that has other shards to make."""
    texts, out = _texts(), tmp_path / "out"
    units = _units(_spec(model, texts, out), texts)
    (out / units[-1].shard.name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=units[-1].shard.name):
        run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units[2:]))
    (out / units[-1].shard.name).rmdir()
    report = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units))
    assert report.blocks_read == list(range(N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))


def test_a_folder_in_use_is_left_alone(model: Path, tmp_path: Path) -> None:
    texts, out = _texts(), tmp_path / "out"
    theirs = out / ".sweep-key"
    out.mkdir()
    theirs.mkdir(mode=0o700)
    (theirs / "sweep.json").write_text('{"after": 3}')
    lock = locked(theirs)
    assert lock is not None
    run_sweep(
        open_streamed(str(model), device="cpu"), SweepTask("key", _units(_spec(model, texts, out), texts))
    )
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    clean(Location.parse(out))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".sweep-key"]
    lock.release()
    clean(Location.parse(out))
    assert not theirs.exists()


def test_a_shard_with_nan_is_named_and_the_others_made(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=2)
    tensors = load_file(folder / "model.safetensors")
    texts = text_table({"text": ["dog", "the cat", "happy", "sad boy", "ball!", "tree"]})
    ids = open_streamed(str(folder), device="cpu").lm.tokenizer("!")["input_ids"]
    tensors["model.embed_tokens.weight"][ids[-1]] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    units = _units(_spec(folder, texts, tmp_path / "out"), texts)
    report = run_sweep(open_streamed(str(folder), device="cpu"), SweepTask("key", units))
    assert list(report.reports) == [units[0].name]
    assert "row 4; first at block 0" in report.failures[units[1].name]
    assert list(_files(tmp_path / "out")) == ["shard-00000.parquet"]


def test_a_text_that_is_too_short(model: Path, tmp_path: Path) -> None:
    capture = CaptureSettings(position=-6)
    texts = text_table({"text": ["the boy was happy and sad"] * 5 + ["dog"]})
    units = _units(_spec(model, texts, tmp_path / "out", capture), texts)
    report = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units))
    (left_out,) = [each for made in report.reports.values() for each in made.skipped]
    assert left_out.row == 5
    assert left_out.reason.startswith("position -6 asked for, but it has ")
    assert read_all(tmp_path / "out")["row"].tolist() == [0, 1, 2, 3, 4]


def test_sweeps_are_planned_alike_whatever_is_there(model: Path, tmp_path: Path) -> None:
    sets = []
    for name, n in (("a", 30), ("b", 7)):
        texts = _texts(n)
        sets.append((_spec(model, texts, tmp_path / name), plan_shards(n, SHARD)))
    names = [f"{spec.out}/{shard.name}" for spec, planned in sets for shard in planned]
    for sweeps in (1, 2, 3, 50):
        planned = plan_sweeps(sets, sweeps)
        assert planned == plan_sweeps(sets, sweeps)
        shares = list(planned.values())
        assert [name for share in shares for name in sorted(share)] == names
        assert len(shares) == min(sweeps, len(names))
    sizes = [4 * len(share) for share in plan_sweeps(sets, 2).values()]
    assert max(sizes) - min(sizes) <= 2 * SHARD
    other = [(sets[0][0], [Shard(0, 0, 3)])]
    assert not set(plan_sweeps(sets, 2)) & set(plan_sweeps(other, 2))


@pytest.mark.parametrize("how", ["open to all", "a link", "a file"])
def test_a_work_folder_that_others_can_fill_is_not_believed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A record that says that the sweep is through, with rows that are all sevens."""
    texts, out = _texts(), tmp_path / "out"
    units = _units(_spec(model, texts, out), texts)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    places, after = {}, 0
    for unit in units:
        places[unit.name] = after
        after += unit.shard.rows + 1
    record = {"places": places, "blocks": list(range(N_BLOCKS)), "after": N_BLOCKS - 1}
    (elsewhere / "sweep.json").write_text(json.dumps(record))
    for k in range(N_BLOCKS):
        np.full((after, 32), 7, np.float32).tofile(elsewhere / f"rows-{k:04d}.raw")
    out.mkdir()
    planted = out / ".sweep-key"
    if how == "a link":
        planted.symlink_to(elsewhere)
    elif how == "a file":
        planted.write_text("")
    else:
        elsewhere.rename(planted)
        planted.chmod(0o777)
    report = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units))
    assert report.blocks_read == list(range(N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".sweep-key"]


@pytest.mark.parametrize("damage", ["record", "rows"])
def test_a_damaged_record_or_row_file_starts_the_sweep_afresh(
    model: Path, tmp_path: Path, damage: str
) -> None:
    texts, out = _texts(), tmp_path / "out"
    units = _units(_spec(model, texts, out), texts)
    (out / units[2].shard.name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=units[2].shard.name):
        run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units))
    (out / units[2].shard.name).rmdir()
    folder = out / ".sweep-key"
    assert folder.stat().st_mode & 0o777 == 0o700
    if damage == "record":
        (folder / "sweep.json").write_text('{"places": {"a": -1}, "blocks": "all", "after": 5}')
    else:
        os.truncate(folder / "rows-0002.raw", 100)
    report = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", units))
    assert report.blocks_read == list(range(N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    assert not folder.exists()
