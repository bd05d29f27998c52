"""Fuzzed vectors, maps, metrics and result rows: readers may refuse them in one line, and nothing else."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import judge, read_evaluation, read_map
from contrans_dist.harvest.shards import Shard, ShardTask
from contrans_dist.harvest.sweep_record import SweepRecord
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.pipeline.inspection import inspected
from contrans_dist.pipeline.status import status_of
from contrans_dist.report import write_report
from contrans_dist.report.answers import answers_table, token_table
from contrans_dist.report.examples import examples_of
from contrans_dist.store.location import Location
from contrans_dist.store.running import running_in
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.mapping.test_map_set import fitted, vector
from tests.runfolder import UNDER_WAY, write_evaluation

FEW, MANY = 60, 5000
"""Examples a reader: by default, and in the long run."""
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, -1, 2**33, 10**12, 2**64, 1e308])
    | st.floats() | st.text(max_size=8) | st.sampled_from(["", "..", "../../x", "/etc/x", "\ud800", "\0"])
)  # fmt: skip
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


def places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in JSON."""
    below = [above]
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in inner:
        below += places(value, (*above, key))
    return below


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> bytes:
    """JSON with up to three of its values replaced, removed or doubled."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(places(content)))
        if not where:
            return json.dumps(draw(VALUES)).encode()
        parent = content
        for key in where[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[where[-1]] = draw(VALUES)
        elif isinstance(parent, list):
            parent.insert(where[-1], parent[where[-1]])
        else:
            del parent[where[-1]]
    return json.dumps(content).encode()


@st.composite
def spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that were flipped, cut, doubled, or are others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.integers(0, 3)):
            case 0 if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del content[at:]
            case 2:
                content[at:at] = draw(st.binary(max_size=8))
            case 3:
                content[at:at] = content[at : at + draw(st.integers(0, 64))]
    return bytes(content)


@st.composite
def tensor_file(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file whose bytes, head or own header was changed."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return draw(spoilt(data))
    end = 8 + int.from_bytes(data[:8], "little")
    head, tensors = json.loads(data[8:end]), data[end:]
    if kind == 1:
        header = draw(mutated(json.loads(head["__metadata__"]["contrans"])))
        head["__metadata__"]["contrans"] = header.decode()
        text = json.dumps(head).encode()
    else:
        text = draw(mutated(head))
    return len(text).to_bytes(8, "little") + text + tensors


def may_refuse(*readers: Callable[[], Any]) -> None:
    """Each reader reads what is there, or refuses it in one line."""
    for reader in readers:
        try:
            reader()
        except UserError as error:
            said = str(error)
        else:
            said = ""
        assert "\n" not in said


def _data(make: Callable[[Location], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        make(Location.parse(f"{folder}/x"))
        return Path(f"{folder}/x").read_bytes()


VECTOR = _data(lambda at: fitted().carry(vector(), "match", (3, 4)).save(at))
MAP = _data(lambda at: fitted().save(at))
MAPS = fitted()
with tempfile.TemporaryDirectory() as _folder:
    _made = write_evaluation(Path(_folder), concepts=("anger", "fear"), p_value=0.5)
    METRICS = json.loads((_made / "metrics.json").read_text())
    METRICS["conditions"] = METRICS["conditions"][:6]
    METRICS |= {"costs": {"target": {"rows": 5, "seconds": 1.0}}, "rows": {"vector": 5}, "blocks": [4]}
    ROWS = (_made / "results.parquet").read_bytes()
_SHARD = cast(Shard, SimpleNamespace(address="/set/shard-00000", rows=2, spec=SimpleNamespace(blocks=[0, 2])))
SHARD_TASK = ShardTask(_SHARD, cast(pa.Table, None), {1: "it died"})
SWEEP = {"places": {_SHARD.address: 0}, "blocks": [0, 2], "after": 2, "left_out": {_SHARD.address: [1]}}


def _vector(data: bytes, folder: Path) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    at = Location.parse(path)

    def use() -> None:
        loaded = ConceptVector.load(at)
        MAPS.carry(loaded, "match", (3, 4))

    may_refuse(use, lambda: json.dumps(inspected(at).content, allow_nan=False), lambda: status_of(at))


def _map(data: bytes, folder: Path) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    at = Location.parse(path)

    def use() -> None:
        loaded = MapSet.load(at)
        loaded.carry(vector(), "match", next(iter(loaded.maps)))

    may_refuse(use, lambda: read_map(at), lambda: json.dumps(inspected(at).content, allow_nan=False))


def _metrics(data: bytes, folder: Path) -> None:
    (folder / "metrics.json").write_bytes(data)
    at = Location.parse(folder)

    def use() -> None:
        evaluation = read_evaluation(at)
        for key in evaluation.metrics:
            for condition in evaluation.conditions:
                evaluation.curve(condition, key)

    may_refuse(
        use, lambda: json.dumps(inspected(at).content, allow_nan=False).encode(), lambda: status_of(at)
    )


def _page(data: bytes, folder: Path) -> None:
    (folder / "metrics.json").write_bytes(data)
    may_refuse(lambda: write_report(Location.parse(folder)))


def _running(data: bytes, folder: Path) -> None:
    """Whatever a process left there: who asks how far a harvest is must not fail over it."""
    (folder / ".running-host-1.json").write_bytes(data)
    for running in running_in(Location.parse(folder)):
        assert "\n" not in str(running)


def _sweep(data: bytes, folder: Path) -> None:
    """A sweep goes on from what it knows, or begins anew."""
    (folder / "sweep.json").write_bytes(data)
    record = SweepRecord(folder, [SHARD_TASK])
    assert set(record.places) >= {_SHARD.address}
    assert set(record.blocks) >= {0, 2}


def _rows(data: bytes, folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    for name in ("results.parquet", "examples.parquet", "tokens.parquet"):
        (folder / name).write_bytes(data)
    evaluation = read_evaluation(Location.parse(folder))
    verdict = judge(evaluation, evaluation.metrics[0])
    assert verdict is not None
    may_refuse(
        lambda: answers_table(evaluation, verdict),
        lambda: examples_of(evaluation, verdict),
        lambda: token_table(evaluation, verdict),
    )


READERS = {
    "vector": (_vector, tensor_file(VECTOR), FEW),
    "map": (_map, tensor_file(MAP), FEW),
    "metrics": (_metrics, mutated(METRICS) | spoilt(json.dumps(METRICS).encode()), FEW),
    "page": (_page, mutated(METRICS), 10),
    "rows": (_rows, spoilt(ROWS), FEW),
    "running": (_running, mutated(UNDER_WAY) | spoilt(json.dumps(UNDER_WAY).encode()), FEW),
    "sweep": (_sweep, mutated(SWEEP) | spoilt(json.dumps(SWEEP).encode()), FEW),
}


def _fuzz(name: str, folder: Path, times: int) -> None:
    check, data, few = READERS[name]

    @settings(
        max_examples=few * times, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(data)
    def run(found: bytes) -> None:
        check(found, folder)

    run()


@pytest.mark.parametrize("name", READERS)
def test_fuzzed_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    _fuzz(name, tmp_path, 1)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", READERS)
def test_fuzzed_files_are_read_or_refused_at_length(name: str, tmp_path: Path) -> None:
    _fuzz(name, tmp_path, MANY // FEW)
