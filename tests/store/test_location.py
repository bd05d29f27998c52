"""Publishing is all or nothing, locally and on an object store."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from contrans_dist.errors import NoAnswerError, RunError, UserError
from contrans_dist.store import location as storage
from contrans_dist.store import patience
from contrans_dist.store.addresses import file_names
from contrans_dist.store.location import Location


@pytest.fixture(scope="module")
def bucket(new_bucket: Callable[[str], str]) -> str:
    return new_bucket("bucket")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "deep" / "file.bin")
    with pytest.raises(ZeroDivisionError), place.staged() as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert not place.exists()
    assert os.listdir(tmp_path / "deep") == []
    place.write_bytes(b"whole")
    assert place.read_bytes() == b"whole"
    assert os.listdir(tmp_path / "deep") == ["file.bin"]


def test_what_is_being_written_is_not_listed(tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    with (folder / "a.bin").staged() as path:
        path.write_bytes(b"x")
        assert folder.names() == []
    assert folder.names() == ["a.bin"]


def test_sweep_takes_only_what_a_dead_process_left_long_ago(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp-host-1-a", tmp_path / ".tmp-host-2-b"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    Location.parse(tmp_path).sweep()
    assert not old.exists()
    assert new.exists()


def test_object_store_round_trip(bucket: str) -> None:
    place = Location.parse(bucket) / "a" / "b.json"
    assert not place.exists()
    with pytest.raises(ZeroDivisionError), place.staged() as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert not place.exists()
    place.write_json({"x": 1})
    assert place.read_json() == {"x": 1}
    assert place.parent.names() == ["b.json"]
    place.delete()
    assert not place.exists()


def test_credentials_are_never_shown(bucket: str) -> None:
    place = Location.parse(bucket) / "x"
    assert str(place) == "s3://bucket/runs/x"
    with pytest.raises(UserError) as error:
        place.read_bytes()
    assert "hush" not in str(error.value)


def test_an_activation_set_on_an_object_store_is_resumed(bucket: str, tmp_path: Path) -> None:
    """A shard and the manifest are missing: they are made, and the shard that is there stays as it is."""
    from contrans_dist.config import CaptureSettings, ModelSettings
    from contrans_dist.data.texts import text_table
    from contrans_dist.distributed.cluster import connected
    from contrans_dist.engine.capture import capture
    from contrans_dist.harvest.driver import harvest
    from contrans_dist.models import load_model
    from tests.inprocess import ray_here
    from tests.tiny import save_tiny

    model = str(save_tiny(tmp_path / "model", "llama"))
    lines = ["one small text", "another one", "no", "the dog"]
    out, settings = Location.parse(bucket) / "set", CaptureSettings(blocks="1", shard_size=2)
    with connected("local"), ray_here():
        harvest(ModelSettings(id=model), text_table({"text": lines}), out, settings)
        assert out.names() == ["manifest.json", "shard-00000.parquet", "shard-00001.parquet"]
        kept, whole = (out / "shard-00001.parquet").info(), (out / "shard-00000.parquet").read_bytes()
        (out / "shard-00000.parquet").delete()
        (out / "manifest.json").delete()
        made = harvest(ModelSettings(id=model), text_table({"text": lines}), out, settings)
    assert (out / "shard-00001.parquet").info().mtime_ns == kept.mtime_ns
    assert (out / "shard-00000.parquet").read_bytes() == whole
    wanted = capture(load_model(model), lines, [1])[1]
    np.testing.assert_allclose(made.read_block(1), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert "hush" not in (out / "manifest.json").read_bytes().decode()


NAMES = [
    "run#1",
    "a b",
    "100%",
    "50%25",
    "what?",
    "a;b&c=d",
    "über",
    "x%20y",
    "'q'",
    "[a]{b}",
    "~",
    "日本",
    "a:b@c",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_a_path(name: str, tmp_path: Path, bucket: str) -> None:
    """Before, all of `run#1` went into one file `run`, and a name with a blank was no URI."""
    for folder in (Location.parse(tmp_path), Location.parse(bucket)):
        place = folder / name / "file.json"
        place.write_json(name)
        assert place.parent.name == name
        assert name in place.parent.parent.names()
        assert Location.parse(place.uri) == place
        assert Location.parse(place.uri).read_json() == name
    assert (tmp_path / name / "file.json").exists()
    if "%" not in name:
        assert Location.parse(f"file://{tmp_path}/{name}/file.json").read_json() == name
    assert Location.parse(f"file://{tmp_path}/{quote(name)}/file.json").read_json() == name
    if "?" not in name and "%" not in name:
        base, _, options = bucket.partition("?")
        assert Location.parse(f"{base}/{name}/file.json?{options}").read_json() == name
    shown = Location.parse(bucket) / name
    assert Location.parse(f"{shown}?{bucket.partition('?')[2]}").path == shown.path


@pytest.mark.parametrize(
    "uri",
    ["nope://x/y", "s3:///", "", "s3://bucket/a/../b", "s3://bucket/what?", "s3://bucket/a?b", "file://host/x",
     "s3://bucket/a\nb", "s3://bucket/x?nonsense=1", "a\0b", "file://x"],
)  # fmt: skip
def test_what_cannot_be_addressed_is_one_line(uri: str) -> None:
    with pytest.raises(UserError) as error:
        Location.parse(uri)
    assert "\n" not in str(error.value)


def test_only_text_travels(bucket: str) -> None:
    """Before, the open filesystem went along."""
    place = Location.parse(bucket) / "x"
    place.exists()
    data = ray.cloudpickle.dumps(place)
    assert b"pyarrow" not in data
    assert ray.cloudpickle.loads(data) == place


def test_an_upload_that_breaks_off_leaves_what_was_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, closing the stream published what it had been given so far."""
    place = Location.parse(bucket) / "upload" / "big.bin"
    place.write_bytes(b"as it was")

    def broken(source, target, _size):
        target.write(source.read(12 << 20))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "copyfileobj", broken)
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        with pytest.raises(KeyboardInterrupt):
            place.write_bytes(b"x" * (20 << 20))
    assert place.read_bytes() == b"as it was"
    listed = place.filesystem.get_file_info(fs.FileSelector(place.parent.path))
    assert [entry.base_name for entry in listed] == ["big.bin"]
    assert not list(tmp_path.glob("contrans-staged-*"))


def test_a_store_that_fails_is_asked_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01, 0.01))
    place, real, calls = Location.parse(bucket) / "again.bin", shutil.copyfileobj, []

    def twice(*arguments):
        calls.append(arguments)
        if len(calls) < 3:
            raise OSError("AWS Error SLOW_DOWN during UploadPart operation")
        real(*arguments)

    monkeypatch.setattr(storage.shutil, "copyfileobj", twice)
    place.write_bytes(b"whole")
    assert (place.read_bytes(), len(calls)) == (b"whole", 3)
    monkeypatch.setattr(storage.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError("reset")))
    with pytest.raises(
        RunError, match=r"again\.bin: the store does not answer \(reset\).*run the same command"
    ):
        place.write_bytes(b"other")
    assert place.read_bytes() == b"whole"


def test_a_region_that_cannot_be_looked_up_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, it was taken for a wrong address, and one actor without a network ended a whole harvest."""
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01, 0.01))
    asked: list[str] = []

    def region(bucket: str) -> str:
        asked.append(bucket)
        if bucket == "nobody-s":
            raise OSError("Bucket 'nobody-s' not found")
        raise OSError("AWS Error NETWORK_CONNECTION during HeadBucket operation: Timeout was reached")

    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", region)
    place = Location("s3://regionless", "regionless/x")  # as it comes to an actor
    with pytest.raises(NoAnswerError, match="s3://regionless/x: the store does not answer"):
        place.exists()
    assert len(asked) == 4
    with pytest.raises(RunError, match=r"s3://regionless/x: the store does not answer.* again"):
        Location.parse("s3://regionless/x")
    with pytest.raises(UserError, match="s3://nobody-s/x: cannot be reached"):
        Location.parse("s3://nobody-s/x")


def test_a_disk_that_fails_is_no_bad_input() -> None:
    place = "/proc/self/mem"  # nothing lies at its beginning
    told = r"/proc/self/mem: cannot be read \(.*Input/output error.*again"
    with pytest.raises(NoAnswerError, match=told), storage.stores.told(place, ""), open(place, "rb") as file:
        file.read(1)


def test_what_a_store_refuses_is_the_users(bucket: str) -> None:
    base, _, options = bucket.partition("?")
    with pytest.raises(UserError, match="s3://nobody/x: "):
        Location.parse(f"{base.replace('bucket/runs', 'nobody/x')}?{options}").write_bytes(b"x")


def test_staged_files_are_for_their_owner_alone(bucket: str) -> None:
    with (Location.parse(bucket) / "mine.bin").staged() as path:
        path.write_bytes(b"x")
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.parent.exists()


def test_what_a_killed_process_staged_is_swept(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other: the temporary folder may be one that several machines share."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, sys; from contrans_dist.store.work_folders import staging\n"
        "with staging() as folder:\n"
        "    (folder / 'file').write_bytes(b'x'); print(folder, flush=True); sys.stdin.read(1); os._exit(9)"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        _age(folder)
        Location.parse(bucket).sweep()
        assert (folder / "file").exists()
        process.communicate("x")
    fresh = Path(tempfile.mkdtemp(prefix="contrans-staged-"))
    Location.parse(bucket).sweep()
    assert not folder.exists()
    assert fresh.exists()
    _age(fresh)
    Location.parse(bucket).sweep()
    assert not fresh.exists()


def _age(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (0, 0))


def test_sweep_does_not_stumble_over_what_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, `stat` was called on an entry that another run had renamed."""
    old = tmp_path / ".tmp-host-1-a"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    folder = Location.parse(tmp_path)
    listed = folder.filesystem.get_file_info(fs.FileSelector(str(tmp_path)))
    old.unlink()
    monkeypatch.setattr(
        storage.stores, "filesystem", lambda *_: SimpleNamespace(
            get_file_info=lambda _selector: listed, delete_file=fs.LocalFileSystem().delete_file
        )
    )  # fmt: skip
    folder.sweep()


def test_a_sweep_beside_runs_that_publish(tmp_path: Path) -> None:
    """Entries are renamed between being listed and being looked at."""
    folder, end = Location.parse(tmp_path), threading.Event()

    def publish() -> None:
        while not end.is_set():
            for i in range(50):
                path = tmp_path / f".tmp-host-1-{i}"
                with suppress(FileNotFoundError):
                    path.write_bytes(b"x")
                    os.utime(path, (0, 0))
            for i in range(50):
                with suppress(FileNotFoundError):  # it was swept
                    os.replace(tmp_path / f".tmp-host-1-{i}", tmp_path / f"file-{i}")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            folder.sweep()
            folder.names()
    finally:
        end.set()
        thread.join()


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    """Before: `unexpected PermissionError`."""
    folder = Path(tempfile.mkdtemp())  # not below a folder that only this user may enter
    folder.chmod(0o555)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=rf"{folder}/x: cannot be written \(Permission denied\)"):
            Location.parse(folder / "x").write_bytes(b"x")
    finally:
        os.seteuid(user)
        folder.rmdir()


@pytest.mark.parametrize("write", ["python", "arrow"])
def test_a_disk_that_is_full_says_how_to_go_on(tmp_path: Path, write: str) -> None:
    """Before: `unexpected OSError`. A limit on a file's size fails as a full disk does, in the middle."""
    place = Location.parse(tmp_path / "x")
    table = pa.table({"a": [np.random.default_rng(0).bytes(1 << 20)]})
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, usual[1]))
    told = r"/x: cannot be written \(.*; run the same command again"
    try:
        with pytest.raises(NoAnswerError, match=told), place.staged() as path:
            if write == "python":
                path.write_bytes(b"x" * (1 << 20))
            else:
                pq.write_table(table, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_names_of_files_for_what_people_name() -> None:
    names = ["fear", "a,b", "a/b", "..", ".x", "Fear", "é" * 200, "é" * 201, "50%", "a%2Fb", "x\ny", "日本"]
    file_of = file_names(names)
    assert (file_of["fear"], file_of["a,b"], file_of["日本"]) == ("fear", "a,b", "日本")
    assert len({name.casefold() for name in file_of.values()}) == len(names)
    for file in file_of.values():
        assert not file.startswith(".")
        assert "/" not in file
        assert len(f"{file}.safetensors".encode()) < 255
