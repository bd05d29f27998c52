"""Manifests and shards of strangers: a reader may refuse them, in one line; nothing else."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from tests.sets import make_set, sealed

FEW = settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=6000)
NAME = "shard-00000.parquet"

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzzed") / "set"
    rng = np.random.default_rng(0)
    rows = {0: rng.normal(size=(30, 4)).astype(np.float32)}
    make_set(made, rows, 2, shard=10, label=["a", None, "b"] * 10, tags=[["x"], [], None] * 10)
    return made


def read(files: dict[str, bytes]) -> None:
    """All of a set, as the commands read it: it is refused in one line, or whole."""
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            (Path(place) / name).write_bytes(data)
        try:
            found = ActivationSet.open(place)
            rows = [found.read_block(block) for block in found.blocks]
            table = found.read_columns(found.columns)
            table.to_pylist()
        except UserError as refused:
            error = str(refused)
        else:
            error = ""
        if error:
            assert len(error.splitlines()) == 1
            assert len(error) < 1000
            return
        assert all(block.shape == (found.n_rows, found.d) for block in rows)
        assert table.num_rows == found.n_rows


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value inside plain data stands."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, inner in parts for path in paths(inner, (*at, key)))]


def changed(files: dict[str, bytes], draw: st.DataObject) -> dict[str, bytes]:
    """The set with one or two values of its manifest replaced, removed or doubled, sealed or not."""
    content = json.loads(files["manifest.json"])
    for _ in range(draw.draw(st.integers(1, 2))):
        *inner, last = draw.draw(st.sampled_from(paths(content)[1:]))
        holder = content
        for key in inner:
            holder = holder[key]
        how = draw.draw(st.sampled_from(["replace", "remove", "double", "add"]))
        if how == "remove":
            del holder[last]
        elif how == "double" and isinstance(holder, list):
            holder.append(holder[last])
        elif how == "add" and isinstance(holder[last], int):
            holder[last] += draw.draw(st.integers(-40, 40) | st.integers())
        else:
            holder[last] = draw.draw(plain)
        if not isinstance(content, dict) or not paths(content)[1:]:
            break
    content = sealed(content) if draw.draw(st.booleans()) else content
    return {**files, "manifest.json": json.dumps(content).encode()}


def flipped(files: dict[str, bytes], draw: st.DataObject) -> dict[str, bytes]:
    """The set with bytes of one file changed, cut out, put in, or cut off."""
    name = draw.draw(st.sampled_from(sorted(files)))
    data = bytearray(files[name])
    for _ in range(draw.draw(st.integers(1, 3))):
        # The footer stands at the end: half of the changes go there.
        place = draw.draw(st.integers(0, len(data)) | st.integers(max(len(data) - 1500, 0), len(data)))
        how = draw.draw(st.sampled_from(["flip", "put", "drop", "cut"]))
        if how == "cut":
            del data[place:]
        elif how == "drop":
            del data[place : place + draw.draw(st.integers(1, 9))]
        elif how == "put":
            data[place:place] = draw.draw(st.binary(min_size=1, max_size=9))
        elif place < len(data):
            data[place] ^= draw.draw(st.integers(1, 255))
    return {**files, name: bytes(data)}


@FEW
@given(data=st.data())
def test_changed_manifests(folder: Path, data: st.DataObject) -> None:
    read(changed(files_of(folder), data))


@FEW
@given(data=st.data())
def test_changed_bytes(folder: Path, data: st.DataObject) -> None:
    read(flipped(files_of(folder), data))


@FEW
@given(name=st.sampled_from(["manifest.json", NAME]), content=st.binary(max_size=300))
def test_any_bytes(folder: Path, name: str, content: bytes) -> None:
    read({**files_of(folder), name: content})
    length = len(content).to_bytes(4, "little")
    read({**files_of(folder), name: b"PAR1" + content + length + b"PAR1"})


@FEW
@given(content=plain)
def test_any_json(folder: Path, content: Any) -> None:
    read({**files_of(folder), "manifest.json": json.dumps(content).encode()})


@pytest.mark.long
@MANY
@given(data=st.data())
def test_many_changes(folder: Path, data: st.DataObject) -> None:
    read(flipped(changed(files_of(folder), data), data))
    read(flipped(files_of(folder), data))
