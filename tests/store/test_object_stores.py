"""Object stores that throttle, drop connections or fall silent: work ends whole, or with one line."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow as pa
import pytest

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.driver import harvest
from contrans_dist.store import object_stores as stores
from contrans_dist.store import patience
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from tests.tiny import save_tiny
from tests.troubled import Troubled

MOODS = ["throttles", "drops", "silent"]


@pytest.fixture(scope="module")
def bucket(new_bucket: Callable[[str], str]) -> tuple[str, int]:
    """Where the S3 server of `bucket` listens."""
    address = dict(parse_qsl(new_bucket("bucket").partition("?")[2]))["endpoint_override"]
    host, _, port = address.partition(":")
    return host, int(port)


@contextmanager
def troubled(server: tuple[str, int]) -> Iterator[tuple[Troubled, str]]:
    proxy = Troubled(server)
    where = f"endpoint_override=127.0.0.1%3A{proxy.port}&scheme=http&region=us-east-1"
    yield proxy, f"s3://user:hush@bucket/runs?{where}"
    proxy.mood = "well"
    proxy.listener.close()


def open_uploads(server: tuple[str, int]) -> list[str]:
    """Keys of the uploads that were begun and neither completed nor aborted, by another client."""
    import boto3

    host, port = server
    keys = {"aws_access_key_id": "user", "aws_secret_access_key": "hush"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys)
    uploads = client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    for upload in uploads:
        client.abort_multipart_upload(Bucket="bucket", Key=upload["Key"], UploadId=upload["UploadId"])
    return [upload["Key"] for upload in uploads]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up soon, but for uploads."""
    monkeypatch.setattr(stores, "_ATTEMPTS", 2)
    monkeypatch.setattr(stores, "_SILENT_SECONDS", 1)
    monkeypatch.setattr(patience, "PAUSES", (0.5, 0.5, 0.5))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up soon."""
    monkeypatch.setattr(stores, "_ATTEMPTS", 2)
    monkeypatch.setattr(stores, "_STREAM_ATTEMPTS", 2)
    monkeypatch.setattr(stores, "_SILENT_SECONDS", 1)
    monkeypatch.setattr(patience, "PAUSES", (0.1,))


@pytest.mark.parametrize("mood", ["throttles", "drops"])
def test_trouble_during_an_upload_is_sat_out(bucket: tuple[str, int], mood: str, impatient: None) -> None:
    """Before, the upload was begun anew, and the first one's parts stayed in the store."""
    data = os.urandom(12 << 20)
    with troubled(bucket) as (proxy, uri):
        place = Location.parse(uri) / f"{mood}-for-a-while"
        place.exists()
        proxy.falls(mood, after=3, seconds=2.0)
        place.write_bytes(data)
        assert proxy.seen > 8
        assert open_uploads(bucket) == []
        proxy.falls(mood, seconds=0.5)
        assert place.read_bytes() == data


@pytest.mark.parametrize("mood", ["fails", "throttles", "drops"])
def test_trouble_while_an_open_file_is_read_is_sat_out(
    bucket: tuple[str, int], mood: str, impatient: None
) -> None:
    """Before, a run ended where its shards, vectors or maps were read."""
    data = os.urandom(1 << 20)
    with troubled(bucket) as (proxy, uri):
        place = Location.parse(uri) / f"read-{mood}"
        place.write_bytes(data)
        with place.open() as file:
            begun = file.read(1000)
            proxy.falls(mood, seconds=2.0)
            assert begun + file.read() == data
        assert proxy.seen > 2


@pytest.mark.parametrize(
    ("mood", "after"),
    [
        ("drops", 4),
        pytest.param("throttles", 4, marks=pytest.mark.slow),
        pytest.param("silent", 4, marks=pytest.mark.slow),
    ],
)
def test_trouble_that_lasts_names_the_place_and_the_way_on(
    bucket: tuple[str, int], mood: str, after: int, hurried: None
) -> None:
    """It ends, in each call; and an upload that fails in its middle publishes nothing."""
    with troubled(bucket) as (proxy, uri):
        folder = Location.parse(uri) / mood
        place = folder / "file"
        place.write_bytes(b"old")
        proxy.falls(mood, after)
        began = time.monotonic()
        with pytest.raises(RunError, match=rf"s3://bucket/runs/{mood}/file: .*run the same command again"):
            place.write_bytes(os.urandom(12 << 20))
        proxy.after = 0
        for call in (place.exists, place.read_bytes, folder.names, place.delete, folder.sweep):
            with pytest.raises(RunError, match=rf"s3://bucket/runs/{mood}.*run the same command again"):
                call()
        assert time.monotonic() - began < 240  # curl takes half a minute to see that an upload stands still
        proxy.mood = "well"
        assert place.read_bytes() == b"old"
    open_uploads(bucket)


def noisy(n: int) -> pa.Table:
    """Texts with a column that makes a shard of one large enough for an upload in parts."""
    draw = random.Random(0)
    noise = [draw.randbytes(12 << 20).decode("latin-1") for _ in range(n)]
    return text_table({"text": [f"text number {i}" for i in range(n)], "noise": noise})


@pytest.mark.parametrize("mood", MOODS)
def test_a_harvest_sits_trouble_out_or_says_so(
    bucket: tuple[str, int], mood: str, tmp_path: Path, in_process: None, impatient: None
) -> None:
    """Before, parts of a shard stayed in the store."""
    model = ModelSettings(id=str(save_tiny(tmp_path / "model", "llama")))
    settings = CaptureSettings(blocks="0", shard_size=1)
    with troubled(bucket) as (proxy, uri):
        out = Location.parse(uri) / f"harvest-{mood}"
        proxy.falls(mood, after=30, seconds=3.0)
        made = harvest(model, noisy(2), out, settings)
        assert made.n_rows == 2
        assert out.names() == ["manifest.json", "shard-00000.parquet", "shard-00001.parquet"]
        assert proxy.mood == "well"
    assert open_uploads(bucket) == []


@pytest.mark.parametrize(
    "mood", ["drops", *(pytest.param(mood, marks=pytest.mark.slow) for mood in MOODS[::2])]
)
def test_a_harvest_to_a_store_that_is_gone_ends(
    bucket: tuple[str, int], mood: str, tmp_path: Path, in_process: None, hurried: None
) -> None:
    """Before, all of its shards waited for the store, three times each."""
    model = ModelSettings(id=str(save_tiny(tmp_path / "model", "llama")))
    texts = text_table({"text": [f"text number {i}" for i in range(12)]})
    with troubled(bucket) as (proxy, uri):
        out = Location.parse(uri) / f"gone-{mood}"
        proxy.falls(mood, after=45)
        began = time.monotonic()
        with pytest.raises(
            RunError, match=rf"s3://bucket/runs/gone-{mood}.*run the same command again"
        ) as error:
            harvest(model, texts, out, CaptureSettings(blocks="0", shard_size=1))
        assert "\n" not in str(error.value)
        assert time.monotonic() - began < 120
        proxy.mood = "well"
        there = len([name for name in out.names() if name.startswith("shard-")])
        assert 0 < there < 12
        assert harvest(model, texts, out, CaptureSettings(blocks="0", shard_size=1)).n_rows == 12
    open_uploads(bucket)


def test_a_key_that_expires_ends_a_harvest_which_goes_on_with_another(
    bucket: tuple[str, int], tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, what had been granted for hours was bad input; what is refused at the start still is."""
    monkeypatch.setattr(stores, "_TAKEN", set())
    model = ModelSettings(id=str(save_tiny(tmp_path / "model", "llama")))
    texts = text_table({"text": [f"text number {i}" for i in range(12)]})
    with troubled(bucket) as (proxy, uri):
        out = Location.parse(uri) / "expired"

        def begin() -> int:
            return harvest(model, texts, out, CaptureSettings(blocks="0", shard_size=1)).n_rows

        proxy.falls("denied")
        with pytest.raises(UserError, match=r"s3://bucket/runs/expired: cannot be reached .*expired"):
            begin()
        proxy.falls("denied", after=45)
        with pytest.raises(RunError, match=r"s3://bucket/runs/expired.*run the same command again"):
            begin()
        proxy.mood = "well"
        there = len([name for name in out.names() if name.startswith("shard-")])
        assert 0 < there < 12
        assert begin() == 12


def test_what_an_actor_is_refused_under_a_claim_is_no_bad_input(
    bucket: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has written nothing yet, the driver has."""
    with troubled(bucket) as (proxy, uri):
        place = Location.parse(uri) / "claimed-and-refused"
        with pytest.raises(RunError, match=r"cannot be reached .*run the same command"), claimed(place, {}):
            monkeypatch.setattr(stores, "_TAKEN", set())
            proxy.falls("denied")
            place.exists()


def test_a_claim_is_let_go_soon(bucket: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the end of a run waited three times 20 s for a store that is silent."""
    monkeypatch.setattr(stores, "_BRIEF_SECONDS", 1)
    with troubled(bucket) as (proxy, uri):
        with claimed(Location.parse(uri) / "claimed", {}):
            proxy.falls("silent")
            began = time.monotonic()
        assert proxy.seen == 1
        assert time.monotonic() - began < 15


def test_silence_is_waited_for_within_a_budget(
    bucket: tuple[str, int], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, four times, each as long as the client waits: longer than the driver waits for an actor."""
    monkeypatch.setattr(patience, "_BUDGET_SECONDS", 1.0)
    with troubled(bucket) as (proxy, uri):
        place = Location.parse(uri) / "file"
        proxy.falls("silent")
        with pytest.raises(RunError, match="tried 1 times: run the same command again"):
            place.exists()


def start_harvest(bucket_uri: str, name: str, texts: int, folder: Path) -> subprocess.Popen[str]:
    """The command, a shard for each of so many texts."""
    model, path = save_tiny(folder / "model", "llama"), folder / "texts.txt"
    path.write_text("".join(f"text number {i}\n" for i in range(texts)))
    words = ["--model", model, "--texts", path, "--out", bucket_uri.replace("?", f"/{name}?")]
    words += ["--blocks", "0", "--shard-size", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "contrans_dist", "harvest", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


_HELD = """
import sys
from importlib import import_module
from contrans_dist.store.location import Location
main = import_module("contrans_dist.cli.main")
main._GRACE_SECONDS = 1.0
main.guarded(lambda: Location.parse(sys.argv[1]).exists())
"""


def test_a_signal_ends_what_waits_for_the_store_itself(bucket: tuple[str, int]) -> None:
    """Before, after a minute, when the client gave up: Python's handlers wait for it."""
    with troubled(bucket) as (proxy, uri):
        proxy.falls("silent")
        with subprocess.Popen([sys.executable, "-c", _HELD, uri], stderr=subprocess.PIPE, text=True) as held:
            while not proxy.seen and held.poll() is None:
                time.sleep(0.05)
            held.terminate()
            began = time.monotonic()
            _, told = held.communicate()
        assert time.monotonic() - began < 15
    assert held.returncode == 143
    assert told == "contrans: terminated; what is finished is kept: run the same command again to go on\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "how"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_the_command_while_the_store_is_silent(
    bucket: tuple[str, int], number: signal.Signals, code: int, how: str, tmp_path: Path
) -> None:
    """Before, after a minute and a half, SIGTERM with exit code 1 and without a word."""
    with troubled(bucket) as (proxy, uri):
        proxy.falls("silent", after=150)
        with start_harvest(uri, f"signal-{code}", 60, tmp_path) as process:
            while proxy.seen <= 150 and process.poll() is None:
                time.sleep(0.1)
            time.sleep(40)  # the claim is being renewed
            process.send_signal(number)
            began = time.monotonic()
            _, told = process.communicate()
        assert time.monotonic() - began < 75  # after 60 it ends although its main thread waits for the store
        assert process.returncode == code, told
        last = told.strip().splitlines()[-1]
        assert last == f"contrans: {how}; what is finished is kept: run the same command again to go on"


_FOR_A_WHILE = [("throttles", 25.0), ("drops", 10.0), ("silent", 45.0)]


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("mood", "seconds"),
    [
        *(pytest.param(*each, marks=pytest.mark.slow) for each in _FOR_A_WHILE),
        pytest.param("silent", 0.0, marks=pytest.mark.long),
    ],
)
def test_the_command_ends(bucket: tuple[str, int], mood: str, seconds: float, tmp_path: Path) -> None:
    """240 shards, with a store that is in trouble in their middle; for ever, where `seconds` is 0."""
    with troubled(bucket) as (proxy, uri):
        proxy.falls(mood, after=1200, seconds=seconds)
        with start_harvest(uri, f"command-{mood}-{seconds:g}", 240, tmp_path) as process:
            out, told = process.communicate()
        assert proxy.seen > 1200
        last = told.strip().splitlines()[-1]
        assert process.returncode == (0 if seconds else 1), told[-3000:]
        if not seconds:
            assert re.match(r"contrans: .*s3://bucket/runs/command.*run the same command again", last)
        assert "hush" not in out + told
    assert open_uploads(bucket) == []
