"""Shards made by one sweep over a model's blocks: those of a resident model, whatever dies on the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import NoAnswerError, UserError
from contrans_dist.harvest.actors import HarvestActor, SweepActor
from contrans_dist.harvest.compute import compute_shard
from contrans_dist.harvest.manifest import identity_of
from contrans_dist.harvest.shard_files import check_shard
from contrans_dist.harvest.shard_plan import ShardPlan
from contrans_dist.harvest.shards import HarvestSpec, Shard, ShardReport, ShardTask, plan_shards
from contrans_dist.harvest.sweep import SweepTask, clean, plan_sweeps, run_sweep, try_sweep
from contrans_dist.harvest.sweep_record import RowFile, SweepRecord
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
    return HarvestSpec(identity, capture, facts.d, Location.parse(out))


def _shards(spec: HarvestSpec, texts: pa.Table) -> list[ShardTask]:
    return [ShardTask(shard, texts.slice(shard.start, shard.rows)) for shard in plan_shards(spec)]


def _resident(model: Path, texts: pa.Table, out: Path, capture: CaptureSettings = CAPTURE) -> Path:
    """The same shards by the whole model, one after the other."""
    lm, spec = load_model(str(model), device="cpu", head=False), _spec(model, texts, out, capture)
    for task in _shards(spec, texts):
        compute_shard(lm, task.shard, task.rows)
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
    results = [actor.run(task) for task in _shards(_spec(model, texts, tmp_path / "out"), texts)]
    (line,) = [line for made in results for line in made.notes]
    assert "out of memory at" in line
    _assert_same(tmp_path / "out", _resident(model, texts, tmp_path / "whole"))


def test_an_actor_knows_how_far_its_sweep_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool asks for it while the sweep runs; here it is asked each time that it saves."""
    texts, capture = _texts(), CAPTURE.model_copy(update={"blocks": "0:4"})
    actor, spec = SweepActor(ModelSettings(id=str(model))), _spec(model, texts, tmp_path / "out", capture)
    said: list[float] = []
    write = SweepRecord.write

    def writing(record: SweepRecord, after: int) -> None:
        said.append(actor.progress())
        write(record, after)

    monkeypatch.setattr(SweepRecord, "write", writing)
    actor.run(SweepTask("key", _shards(spec, texts)))
    assert said[-1] == actor.progress() == texts.num_rows
    assert set(said) <= {texts.num_rows * blocks / 4 for blocks in range(1, 5)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=N_BLOCKS)


def test_one_sweep_makes_all_shards(model: Path, tmp_path: Path) -> None:
    texts = _texts()
    wanted = _resident(model, texts, tmp_path / "wanted")
    shards = _shards(_spec(model, texts, tmp_path / "out"), texts)
    streamed = open_streamed(str(model), device="cpu")
    made = run_sweep(streamed, SweepTask("key", shards))
    _assert_same(tmp_path / "out", wanted)
    assert streamed.blocks_read == list(range(N_BLOCKS))
    assert 0 < streamed.checkpoint.bytes_read < streamed.checkpoint.nbytes
    assert not made.failures
    assert set(made.reports) == {task.shard.address for task in shards}
    for shard in (task.shard for task in shards):
        checked = check_shard(shard, None)
        assert isinstance(checked, ShardReport)
        assert checked.facts.tokens == made.reports[shard.address].facts.tokens
        assert 0 <= made.reports[shard.address].facts.canary < 1e-5
    assert sum(report.facts.truncated for report in made.reports.values()) == 1
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_sets_with_other_blocks_and_positions_share_a_sweep(model: Path, tmp_path: Path) -> None:
    """Each weight is read once for both; texts of which nothing higher is wanted go no further."""
    low = CaptureSettings(blocks="1", position="mean", template="<{label}> {text}", batch_tokens=64)
    high = CaptureSettings(blocks="0,4")
    shards = []
    for name, capture, seed in (("low", low, 1), ("high", high, 2)):
        texts = _texts(seed=seed)
        _resident(model, texts, tmp_path / f"{name}-wanted", capture)
        shards += _shards(_spec(model, texts, tmp_path / name, capture), texts)
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, SweepTask("key", shards), memory=20_000)
    assert streamed.blocks_read == [0, 1, 2, 3, 4]
    for name in ("low", "high"):
        _assert_same(tmp_path / name, tmp_path / f"{name}-wanted")


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import tests.harvest.test_sweep as t
from contrans_dist.models.streaming import open_streamed
from contrans_dist.harvest import sweep as room
from contrans_dist.harvest.sweep import SweepTask, run_sweep

room._SAVE_SHARE = 0  # after every block, however slow the disk is

def sweep(model, out, memory):
    texts = t._texts()
    streamed = open_streamed(str(model), device="cpu")
    load = streamed.load

    def slow(k):
        time.sleep(0.2 if k < t.N_BLOCKS - 1 else 200)  # it never gets through by itself
        return load(k)

    streamed.load = slow
    run_sweep(streamed, SweepTask("key", t._shards(t._spec(model, texts, out), texts)), memory)

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
    shards = _shards(_spec(model, texts, out), texts)
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, SweepTask("key", shards), memory)
    assert streamed.blocks_read == list(range(after + 1, N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    assert not (out / ".sweep-key").exists()


def test_a_sweep_that_is_through_only_publishes(model: Path, tmp_path: Path) -> None:
    """Killed while it published: the shards that are missing come from the rows that were kept."""
    texts, out = _texts(), tmp_path / "out"
    shards = _shards(_spec(model, texts, out), texts)
    (out / shards[2].shard.name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=shards[2].shard.name):
        run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", shards))
    (out / shards[2].shard.name).rmdir()
    before = _files(out)
    assert list(before) == [task.shard.name for task in shards[:2]]
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, SweepTask("key", shards[2:]))
    assert streamed.blocks_read == []
    assert {name: data for name, data in _files(out).items() if name in before} == before
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))


def test_other_shards_start_afresh(model: Path, tmp_path: Path) -> None:
    """What was saved of a sweep is of no use to one that has other shards to make."""
    texts, out = _texts(), tmp_path / "out"
    shards = _shards(_spec(model, texts, out), texts)
    (out / shards[-1].shard.name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=shards[-1].shard.name):
        run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", shards[2:]))
    (out / shards[-1].shard.name).rmdir()
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, SweepTask("key", shards))
    assert streamed.blocks_read == list(range(N_BLOCKS))
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
        open_streamed(str(model), device="cpu"), SweepTask("key", _shards(_spec(model, texts, out), texts))
    )
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    clean(Location.parse(out))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".sweep-key"]
    lock.release()
    clean(Location.parse(out))
    assert not theirs.exists()


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_on_nfs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """There a file that is open is renamed when it is removed, so that its folder cannot go; and without a
    daemon for locks none can be had."""
    real = os.unlink

    def unlink(name: str, *, dir_fd: int | None = None) -> None:
        folder = Path(f"/proc/self/fd/{dir_fd}").resolve() if dir_fd is not None else Path()
        held = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        if str((folder / name).absolute()) in held:
            os.rename(folder / name, folder / ".nfs0001")
        else:
            real(name, dir_fd=dir_fd)

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(os, "unlink", unlink)
    if not locks:
        monkeypatch.setattr("fcntl.flock", refused)
    texts, out = _texts(), tmp_path / "out"
    streamed = open_streamed(str(model), device="cpu")
    made = run_sweep(streamed, SweepTask("key", _shards(_spec(model, texts, out), texts)))
    assert not made.failures
    assert streamed.blocks_read == list(range(N_BLOCKS))
    assert not list(out.glob(".*"))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))


def test_a_shard_that_cannot_be_written_costs_no_sweep(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, out = _texts(), tmp_path / "out"
    shards = _shards(_spec(model, texts, out), texts)
    full, real = shards[1].shard.name, ShardPlan.publish

    def publish(plan: ShardPlan, *arguments: Any) -> ShardReport:
        if plan.shard.name == full:
            raise NoAnswerError("disk full")
        return real(plan, *arguments)

    streamed = open_streamed(str(model), device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(ShardPlan, "publish", publish)
        with pytest.raises(NoAnswerError):
            run_sweep(streamed, SweepTask("key", shards))
    read = list(streamed.blocks_read)
    made = run_sweep(streamed, SweepTask("key", shards))
    assert not made.failures
    assert streamed.blocks_read == read
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))


def test_an_actor_that_gets_its_sweep_again_makes_it_once(model: Path, tmp_path: Path) -> None:
    """As after a short break of the network, which hid that it was still at it."""
    texts, out = _texts(), tmp_path / "out"
    task = SweepTask("key", _shards(_spec(model, texts, out), texts))
    actor = SweepActor(ModelSettings(id=str(model)))
    first, second = actor.run(task), actor.run(task)
    assert set(first.reports) == set(second.reports) == {each.shard.address for each in task.shards}
    assert actor.model.blocks_read == list(range(N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    actor.end()


def test_rows_that_do_not_fit_the_disk_are_an_error(tmp_path: Path) -> None:
    """Even where only the last number of the last row does not, and there is room again at once."""
    resource = pytest.importorskip("resource")
    file, rows = RowFile(tmp_path / "rows", 4096), np.ones((3, 4096), np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rows.nbytes - 4, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file[[0, 1, 2]] = rows
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_shard_with_nan_is_named_and_the_others_made(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", n_blocks=2)
    tensors = load_file(folder / "model.safetensors")
    texts = text_table({"text": ["dog", "the cat", "happy", "sad boy", "ball!", "tree"]})
    ids = open_streamed(str(folder), device="cpu").lm.tokenizer("!")["input_ids"]
    tensors["model.embed_tokens.weight"][ids[-1]] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shards = _shards(_spec(folder, texts, tmp_path / "out"), texts)
    made = run_sweep(open_streamed(str(folder), device="cpu"), SweepTask("key", shards))
    assert list(made.reports) == [shards[0].shard.address]
    assert "row 4; first at block 0" in made.failures[shards[1].shard.address]
    assert list(_files(tmp_path / "out")) == ["shard-00000.parquet"]


def test_a_text_that_is_too_short(model: Path, tmp_path: Path) -> None:
    capture = CaptureSettings(position=-6)
    texts = text_table({"text": ["the boy was happy and sad"] * 5 + ["dog"]})
    shards = _shards(_spec(model, texts, tmp_path / "out", capture), texts)
    made = run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", shards))
    (left_out,) = [text for report in made.reports.values() for text in report.facts.skipped]
    assert left_out.row == 5
    assert left_out.reason.startswith("position -6 asked for, but it has ")
    assert read_all(tmp_path / "out")["row"].tolist() == [0, 1, 2, 3, 4]


def test_sweeps_are_planned_alike_whatever_is_there(model: Path, tmp_path: Path) -> None:
    shards = [
        shard
        for name, n in (("a", 30), ("b", 7))
        for shard in plan_shards(_spec(model, _texts(n), tmp_path / name))
    ]
    names = [f"{shard.spec.out}/{shard.name}" for shard in shards]
    for sweeps in (1, 2, 3, 50):
        planned = plan_sweeps(shards, sweeps)
        assert planned == plan_sweeps(shards, sweeps)
        shares = list(planned.values())
        assert [name for share in shares for name in sorted(share)] == names
        assert len(shares) == min(sweeps, len(names))
    sizes = [4 * len(share) for share in plan_sweeps(shards, 2).values()]
    assert max(sizes) - min(sizes) <= 2 * SHARD
    other = [Shard(shards[0].spec, 0, 0, 3)]
    assert not set(plan_sweeps(shards, 2)) & set(plan_sweeps(other, 2))


def test_what_was_saved_with_a_text_is_not_taken_where_it_is_left_out(model: Path, tmp_path: Path) -> None:
    """Other batches, so other states: also of the shards that lack nothing."""
    texts, out = _texts(), tmp_path / "out"
    task = SweepTask("key", _shards(_spec(model, texts, out), texts))
    name = task.shards[0].shard.name
    (out / name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=name):
        run_sweep(open_streamed(str(model), device="cpu"), task)
    (out / name).rmdir()
    assert _record(out)["after"] == N_BLOCKS - 1
    without, streamed = task.without([1, 6, 7], "it died"), open_streamed(str(model), device="cpu")
    assert [sorted(part.fatal) for part in without.shards] == [[1], [6, 7], [], [], []]
    (out / name).mkdir()
    with pytest.raises((OSError, UserError), match=name):
        run_sweep(streamed, without)
    assert streamed.blocks_read == list(range(N_BLOCKS))
    (out / name).rmdir()
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, without)
    assert streamed.blocks_read == []
    lm, spec = load_model(str(model), device="cpu", head=False), _spec(model, texts, tmp_path / "wanted")
    for part in SweepTask("key", _shards(spec, texts)).without([1, 6, 7], "it died").shards:
        compute_shard(lm, part.shard, part.rows, fatal=part.fatal)
    _assert_same(out, tmp_path / "wanted")


def test_trials_leave_nothing_behind_not_even_those_that_died(model: Path, tmp_path: Path) -> None:
    texts, out = _texts(), tmp_path / "out"
    left = out / ".sweep-trial-dead"
    left.mkdir(parents=True, mode=0o700)
    (left / "pass-0.raw").write_bytes(bytes(100))
    for path in (left / "pass-0.raw", left):
        os.utime(path, (1, 1))
    trial = SweepTask("key", _shards(_spec(model, texts, out), texts)).part(range(3, 9))
    assert trial.trial
    assert [part.rows["row"].to_pylist() for part in trial.shards] == [[3], [4, 5, 6, 7], [8]]
    assert trial.words == f"{out}/shard-00000.parquet, row 3, up to {out}/shard-00002.parquet, row 8"
    streamed, told = open_streamed(str(model), device="cpu"), list[int]()
    try_sweep(streamed, trial, memory=0, told=told.append)
    assert told == streamed.blocks_read == list(range(N_BLOCKS))
    assert not [*out.iterdir()]


@pytest.mark.parametrize("how", ["open to all", "a link", "a file"])
def test_a_work_folder_that_others_can_fill_is_not_believed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A record that says that the sweep is through, with rows that are all sevens."""
    texts, out = _texts(), tmp_path / "out"
    shards = _shards(_spec(model, texts, out), texts)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    places, after = {}, 0
    for shard in (task.shard for task in shards):
        places[shard.address] = after
        after += shard.rows + 1
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
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, SweepTask("key", shards))
    assert streamed.blocks_read == list(range(N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".sweep-key"]


@pytest.mark.parametrize("damage", ["record", "rows"])
def test_a_damaged_record_or_row_file_starts_the_sweep_afresh(
    model: Path, tmp_path: Path, damage: str
) -> None:
    texts, out = _texts(), tmp_path / "out"
    shards = _shards(_spec(model, texts, out), texts)
    (out / shards[2].shard.name).mkdir(parents=True)
    with pytest.raises((OSError, UserError), match=shards[2].shard.name):
        run_sweep(open_streamed(str(model), device="cpu"), SweepTask("key", shards))
    (out / shards[2].shard.name).rmdir()
    folder = out / ".sweep-key"
    assert folder.stat().st_mode & 0o777 == 0o700
    if damage == "record":
        (folder / "sweep.json").write_text('{"places": {"a": -1}, "blocks": "all", "after": 5}')
    else:
        os.truncate(folder / "rows-0002.raw", 100)
    streamed = open_streamed(str(model), device="cpu")
    run_sweep(streamed, SweepTask("key", shards))
    assert streamed.blocks_read == list(range(N_BLOCKS))
    _assert_same(out, _resident(model, texts, tmp_path / "wanted"))
    assert not folder.exists()
