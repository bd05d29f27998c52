"""Publishing is all or nothing, locally and on an object store."""

import os
from pathlib import Path

import numpy as np
import pytest

from contrans_dist.errors import UserError
from contrans_dist.storage import Location


@pytest.fixture(scope="module")
def bucket():
    """A URI of a bucket on a real S3 server, on this machine alone."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "user", "aws_secret_access_key": "hush"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys).create_bucket(
        Bucket="bucket"
    )
    options = f"endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"
    yield f"s3://user:hush@bucket/runs?{options}"
    server.stop()


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
    from tiny import save_tiny

    from contrans_dist.capturing import capture
    from contrans_dist.cluster import connected
    from contrans_dist.config import CaptureSettings, ModelSettings
    from contrans_dist.harvest import harvest
    from contrans_dist.models import load_model
    from contrans_dist.texts import text_table

    model = str(save_tiny(tmp_path / "model", "llama"))
    lines = ["one small text", "another one", "no", "the dog"]
    out, settings = Location.parse(bucket) / "set", CaptureSettings(blocks="1", shard_size=2)
    with connected("local"):
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


@pytest.mark.parametrize("uri", ["nope://x/y", "s3:///"])
def test_a_bad_uri_is_one_line(uri: str) -> None:
    with pytest.raises(UserError):
        Location.parse(uri)
