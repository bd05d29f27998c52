"""What is read from an object store that fails meanwhile: right in the end, or told as its failure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pytest

from contrans_dist.errors import RunError
from contrans_dist.store import object_stores as stores
from contrans_dist.store import patience
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.tables import read_columns, read_table, write_table
from contrans_dist.store.tensors import open_tensors, save_tensors
from contrans_dist.store.verification import verify
from tests.sets import make_set
from tests.troubled import Troubled

MOODS = ["fails", "drops"]
N, D = 300, 64
STATES = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
TABLE = pa.table({"item": ["a", "b"], "value": [1.0, 2.0]})
TENSORS = {"vector": STATES, "bias": np.arange(2, dtype=np.float32)}


@dataclass
class Far:
    """A folder in a bucket, behind a server that makes trouble."""

    proxy: Troubled
    folder: Location


@pytest.fixture(scope="module")
def far(new_bucket: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    plain = Location.parse(uri := new_bucket("bucket"))
    made = make_set(tmp_path_factory.mktemp("far") / "set", {1: STATES, 2: -STATES}, 4, shard=100)
    for path in Path(made.location.path).iterdir():
        (plain / "set" / path.name).write_bytes(path.read_bytes())
    write_table(plain / "table.parquet", TABLE)
    save_tensors(plain / "file.safetensors", TENSORS, {"kind": "map"})
    host, _, port = dict(parse_qsl(uri.partition("?")[2]))["endpoint_override"].partition(":")
    proxy = Troubled((host, int(port)))
    where = f"endpoint_override=127.0.0.1%3A{proxy.port}&scheme=http&region=us-east-1"
    yield Far(proxy, Location.parse(f"s3://user:hush@bucket/runs?{where}"))
    proxy.mood = "well"
    proxy.listener.close()


def _set(folder: Location) -> None:
    found = ActivationSet.open((folder / "set").uri)
    assert np.array_equal(found.read_block(1), STATES)
    assert np.array_equal(found.read_block(2, 70, 130), -STATES[70:130])


def _short_column(folder: Location) -> None:
    """Of few bytes: fewer than the error has that a store answers with."""
    found = ActivationSet.open((folder / "set").uri).read_columns(["n_tokens"])
    assert found.column("n_tokens").to_pylist() == [5] * N


def _table(folder: Location) -> None:
    assert read_table(folder / "table.parquet").to_pydict() == TABLE.to_pydict()


def _columns(folder: Location) -> None:
    found = read_columns(folder / "table.parquet", {"value": "number"})
    assert found is not None
    assert found.to_pydict() == {"value": [1.0, 2.0]}


def _tensors(folder: Location) -> None:
    found = open_tensors(folder / "file.safetensors", "map").read(TENSORS)
    assert all(np.array_equal(found[name], values) for name, values in TENSORS.items())


def _verified(folder: Location) -> None:
    assert verify(folder / "set") == []


READERS = [_set, _short_column, _table, _columns, _tensors, _verified]


@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("read", READERS)
def test_trouble_that_passes_is_sat_out(
    read: Callable[[Location], None], mood: str, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it begins. Before, few bytes that were asked for and answered 500 ended a run: pyarrow gives
    up an answer longer than what it asked for."""
    monkeypatch.setattr(patience, "PAUSES", (0.1, 0.1, 0.1))
    far.proxy.falls("well")
    read(far.folder)
    for after in _some(far.proxy.seen):
        far.proxy.falls(mood, after, seconds=0.1)
        read(far.folder)
        assert far.proxy.seen > after
        far.proxy.mood = "well"


@pytest.mark.parametrize("read", READERS)
def test_trouble_that_lasts_is_the_stores(
    read: Callable[[Location], None], far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a table and a map of which the store broke off were told as damaged."""
    monkeypatch.setattr(stores, "_ATTEMPTS", 2)
    monkeypatch.setattr(stores, "_STREAM_ATTEMPTS", 2)
    monkeypatch.setattr(patience, "PAUSES", (0.1,))
    stores.filesystem.cache_clear()
    far.proxy.falls("well")
    read(far.folder)
    for after in _some(far.proxy.seen):
        far.proxy.falls("drops", after)
        with pytest.raises(RunError, match=r"s3://bucket/runs/.*run the same command again") as told:
            read(far.folder)
        assert "damaged" not in str(told.value)
        assert "hush" not in str(told.value)
        far.proxy.mood = "well"
    stores.filesystem.cache_clear()


def _some(requests: int) -> Any:
    """Requests after which trouble begins: all of few, some of many."""
    return range(0, requests, max(1, requests // 3))
