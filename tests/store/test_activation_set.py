"""Activation sets as files: every column comes back, and a set is held against what it says of itself."""

import datetime
import decimal
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.cli import main
from contrans_dist.config import CaptureSettings
from contrans_dist.data.texts import text_table
from contrans_dist.engine.capture import Activations
from contrans_dist.errors import UserError
from contrans_dist.harvest.runnable import Runnable
from contrans_dist.harvest.shard_files import check_shard, publish_shard
from contrans_dist.harvest.shards import HarvestSpec, Shard, ShardReport
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from tests.sets import make_set, own_facts, sealed, write_shard

N, D, SHARD = 120, 4, 30


def column_types() -> dict[str, pa.Array]:
    """Two values of every type of Arrow's that Parquet holds, under the type's name."""
    small = pa.array([1, 0], pa.int8())
    item = pa.field("item", pa.string(), nullable=False, metadata={"PARQUET:field_id": "7", "k": "v"})
    moments = {
        f"timestamp {unit} {zone}": pa.array([0, 86_400_000], pa.timestamp(unit, zone))
        for zone in (None, "UTC", "Europe/Berlin", "+01:30")
        for unit in ("s", "ms", "us", "ns")
    }
    durations = {
        f"duration {unit}": pa.array([0, None], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")
    }
    decimals = [pa.decimal32(5, 2), pa.decimal64(5, 2), pa.decimal128(5, 2), pa.decimal256(50, 2)]
    words = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
    ]
    numbers = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float16(),
               pa.float32(), pa.float64()]  # fmt: skip
    stored = [(pa.uuid(), b"0123456789abcdef"), (pa.json_(), '{"a": 1}'), (pa.bool8(), 1)]
    return {
        "tags": pa.array([["a", "b"], []]),
        "lists called item": pa.array([["a"], None], pa.list_(item)),
        "large list": pa.array([["a"], []], pa.large_list(pa.string())),
        "list view": pa.array([["a"], []], pa.list_view(pa.string())),
        "fixed list": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        "lists in lists": pa.array([[[1], []], None]),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
        "struct": pa.array([{"a": 1, "b": ["x"]}, None]),
        "messages": pa.array([[{"role": "user", "content": "no"}], []]),
        **moments,
        **durations,
        "date": pa.array([datetime.date(2026, 1, 5), None]),
        "date64": pa.array([0, 86_400_000], pa.date64()),
        "time s": pa.array([0, 1], pa.time32("s")),
        "time us": pa.array([0, 1], pa.time64("us")),
        **{str(kind): pa.array([decimal.Decimal("1.50"), None], kind) for kind in decimals},
        **{str(kind): pa.array(["a", None], pa.string()).cast(kind) for kind in words},
        **{str(kind): pa.array([1, None], kind) for kind in numbers},
        "fixed binary": pa.array([b"ab", b"cd"], pa.binary(2)),
        "bool": pa.array([True, None]),
        "nothing": pa.array([None, None]),
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
        "small dictionary": pa.DictionaryArray.from_arrays(small, ["x", "y"], ordered=True),
        "dictionary of numbers": pa.array([5, 6]).dictionary_encode(),
        "list of dictionaries": pa.ListArray.from_arrays([0, 1, 2], pa.array(["a", "b"]).dictionary_encode()),
        **{
            str(kind): pa.ExtensionArray.from_storage(kind, pa.array([value, None], kind.storage_type))
            for kind, value in stored
        },
    }  # fmt: skip


def spec_of(out: Path) -> HarvestSpec:
    return HarvestSpec(Identity(model="m", blocks=[0, 2]), CaptureSettings(), D, Location.parse(out))


def publish(out: Path, columns: dict[str, Any], rows: int = 2) -> tuple[Shard, ShardReport]:
    """A shard of these columns, written as a harvest writes it."""
    table = text_table(pa.table({"text": [f"text {i}" for i in range(rows)], **columns}))
    values = {block: np.arange(rows * D, dtype=np.float32).reshape(rows, D) + block for block in (0, 2)}
    ones = np.ones(rows, np.int32)
    shard, texts = Shard(spec_of(out), 0, 0, rows), Runnable(table, [[1]] * rows)
    return shard, publish_shard(shard, texts, [Activations(values, ones, ones, [])], 0.0, "cpu")


def test_a_shard_with_any_column_is_taken_in_again(tmp_path: Path) -> None:
    """Parquet forgets a list's name for its elements, some units, some dictionaries: no sign of damage."""
    columns = column_types()
    refused = {}
    for index, (name, values) in enumerate(columns.items()):
        shard, _ = publish(tmp_path / str(index), {name: values})
        found = check_shard(shard, None)
        if isinstance(found, str):
            refused[name] = found
    assert refused == {}
    shard, report = publish(tmp_path / "all", columns)
    found = check_shard(shard, None)
    assert isinstance(found, ShardReport)
    np.testing.assert_array_equal(found.norms, report.norms)
    read = pq.read_table(tmp_path / "all" / shard.name)
    for name in ("tags", "messages", "map", "timestamp us Europe/Berlin", "dictionary"):
        assert read.column(name).to_pylist() == columns[name].to_pylist()


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["contrans", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of four shards, half of its rows positive."""
    folder = tmp_path_factory.mktemp("sound") / "set"
    rng = np.random.default_rng(0)
    rows = {block: rng.normal(size=(N, D)).astype(np.float32) for block in (0, 2)}
    make_set(folder, rows, 3, shard=SHARD, label=["positive", "negative"] * (N // 2))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "set"))


def commands(folder: Path) -> dict[str, list[str]]:
    vector = str(folder.parent / "v.safetensors")
    return {
        "refine": ["refine", "--activations", str(folder), "--out", vector],
        "fit": ["fit", "--source", str(folder), "--target", str(folder), "--out", vector],
        "inspect": ["inspect", str(folder)],
        "status": ["status", str(folder)],
        "report": ["report", str(folder)],
    }


def assert_refused(
    folder: Path,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    which: tuple[str, ...] = ("refine", "fit", "inspect", "status", "report"),
) -> None:
    """Every command says in one line, with exit code 2, which file it is."""
    for name in which:
        code = run(*commands(folder)[name], monkeypatch=monkeypatch)
        said = capsys.readouterr().err
        assert code == 2, f"{name}: {said}"
        assert named in said, name
        assert len(said.splitlines()) == 1, name


def entry(index: int, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["shards"][index].update(changes)


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "listed twice": (lambda m: m["shards"].extend(m["shards"]), "listed twice"),
    "all doubled": (lambda m: (m["shards"].extend(m["shards"]), m.update(rows=2 * N)), "listed twice"),
    "a digit of start": (entry(1, start=35), "shards[0]: its rows end at 30, the next begin at 35"),
    "a digit of rows": (entry(2, rows=24), "rows: expected 114"),
    "both": (lambda m: (entry(2, rows=24)(m), m.update(rows=N - 6)), "shards[2]: its rows end at 84"),
    "a missing entry": (lambda m: m["shards"].pop(1), "rows: expected 90"),
    "missing and counted": (lambda m: (m["shards"].pop(1), m.update(rows=90)), "shards[0]: its rows end at"),
    "out of order": (lambda m: m["shards"].reverse(), "shards[0].start: expected 0"),
    "elsewhere": (entry(1, name="../../elsewhere/x.parquet"), "'../../elsewhere/x.parquet'"),
    "passwords": (entry(1, name="/etc/passwd"), "expected the name of a file in this folder"),
    "two lines": (entry(1, name="shard\x1eexpected"), "found 'shard\\x1eexpected'"),
    "a terminal's colours": (entry(1, name="\x1b[31mshard"), "found '\\x1b[31mshard'"),
    "a wide row": (lambda m: m.update(d=10**12), "d: 1,000,000,000,000"),
    "many blocks": (lambda m: m.update(n_blocks=10**9), "n_blocks: 1,000,000,000"),
    "no shards": (lambda m: m.pop("shards"), "missing key 'shards'"),
    "shards no list": (lambda m: m.update(shards={"a": 1}), "shards: expected"),
    "an entry no object": (lambda m: m.update(shards=[3]), "shards.0: expected"),
    "rows a text": (lambda m: m.update(rows="120"), "rows: expected"),
    "fewer than no rows": (entry(1, rows=-30), "shards.1.rows: expected"),
    "norms infinite": (lambda m: m["norms"].update({"0": float("inf")}), "expected JSON"),
    "norms of two lines": (lambda m: m["norms"].update({"0\x1e": "x"}), "'norms.0\\x1e': expected"),
    "norms missing": (lambda m: m["norms"].pop("0"), "norms: expected"),
    "no model": (lambda m: m["identity"].pop("model"), "missing key 'identity.model'"),
    "blocks beyond": (lambda m: m.update(blocks=[0, 7]), "blocks: expected"),
    "skipped elsewhere": (lambda m: m.update(skipped=[{"row": 500}]), "shards"),
    "pace a text": (lambda m: m.update(throughput={"seconds": "fast"}), "throughput.seconds: expected"),
    "another format": (lambda m: m.update(format=9), "expected format 1, found 9"),
    "broken seal": (lambda m: m.update(sealed(m), tokens=7), "was changed after it was written"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, said = CONTRADICTIONS[case]
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        ActivationSet.open(str(folder))
    assert said in str(error.value)
    assert_refused(folder, str(folder), monkeypatch, capsys, ("refine", "inspect", "status"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"d": 1' + b"0" * 9999,
    ],
)
def test_what_is_no_manifest_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    (folder / "manifest.json").write_bytes(data)
    assert_refused(folder, "manifest.json", monkeypatch, capsys)


def replaced(index: int, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], Any]:
    """A shard written again, after a change to its table."""

    def spoil(folder: Path) -> None:
        path = folder / f"shard-{index:05d}.parquet"
        write_shard(path, change(pq.read_table(path)))

    return spoil


def renamed(fingerprint: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: own_facts(table, fingerprint=fingerprint, start=SHARD)


def wider(table: pa.Table) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(SHARD * 5, np.float32)), 5)
    return table.set_column(table.schema.get_field_index("block_002"), "block_002", values)


def flip_page(folder: Path) -> None:
    """One bit in the values of the last block."""
    path = folder / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(0).column(pq.read_metadata(path).num_columns - 1)
    data[place.data_page_offset + place.total_compressed_size - 3] ^= 1
    path.write_bytes(bytes(data))


def replace_file(data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "shard-00001.parquet").write_bytes(data)


def as_folder(folder: Path) -> None:
    (folder / "shard-00001.parquet").unlink()
    (folder / "shard-00001.parquet").mkdir()


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda folder: (folder / "shard-00001.parquet").unlink(), "missing"),
    "empty": (replace_file(b""), "expected a Parquet file that is whole"),
    "garbage": (replace_file(os.urandom(5000)), "expected a Parquet file that is whole"),
    "a marked garbage": (replace_file(b"PAR1" + bytes(300) + b"\x40\0\0\0PAR1"), "damaged"),
    "cut": (lambda folder: os.truncate(folder / "shard-00001.parquet", 3000), "is whole"),
    "a folder": (as_folder, "missing"),
    "another of the set": (
        lambda folder: shutil.copy(folder / "shard-00002.parquet", folder / "shard-00001.parquet"),
        "30 rows from 60 on, expected 30 from 30 on",
    ),
    "other settings": (replaced(1, renamed("another")), "harvested with other settings"),
    "fewer rows": (replaced(1, lambda table: table.slice(0, 9)), "9 rows from 30 on, expected 30"),
    "a foreign file": (replaced(1, lambda table: table.replace_schema_metadata(None)), "written by contrans"),
    "another width": (replaced(1, wider), "block_002: expected 4 float32"),
    "numbered by text": (
        replaced(1, lambda table: table.set_column(0, "row", table.column("row").cast(pa.string()))),
        "row: expected int64, found string",
    ),
    "a column less": (replaced(1, lambda table: table.drop_columns(["label"])), "no column 'label'"),
    "a block less": (replaced(1, lambda table: table.drop_columns(["block_000"])), "no column 'block_000'"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_shard_that_is_not_the_manifests_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, said = SPOILT[case]
    spoil(folder)
    with pytest.raises(UserError) as error:
        ActivationSet.open(str(folder))
    assert said in str(error.value)
    assert "run the same harvest again: 1 shard is computed anew" in str(error.value)
    assert_refused(folder, "shard-00001.parquet", monkeypatch, capsys)


def test_damage_in_the_pages_is_found_when_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the page's own checksum, or by decompressing it; opening the set alone does not read them."""
    for index in range(4):
        path = folder / f"shard-{index:05d}.parquet"
        write_shard(path, pq.read_table(path), use_dictionary=False, write_page_checksum=True)
    flip_page(folder)
    assert run(*commands(folder)["inspect"], monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert_refused(folder, "shard-00001.parquet: damaged", monkeypatch, capsys, ("refine",))
    np.testing.assert_array_equal(ActivationSet.open(str(folder)).read_block(0).shape, (N, D))


def test_a_text_that_is_no_utf8_and_a_row_that_is_missing_are_refused(folder: Path) -> None:
    broken = pa.array([b"\xff\xfe"] * SHARD, pa.binary()).view(pa.string())
    replaced(1, lambda table: table.set_column(table.schema.get_field_index("text"), "text", broken))(folder)
    kind = pa.list_(pa.float32(), D)
    empty = pa.array([None] + [[0.0] * D] * (SHARD - 1), kind)
    replaced(
        2, lambda table: table.set_column(table.schema.get_field_index("block_002"), "block_002", empty)
    )(folder)
    found = ActivationSet.open(str(folder))
    with pytest.raises(UserError, match=r"shard-00001.parquet: damaged \(.*UTF8"):
        found.read_columns(["text"])
    with pytest.raises(UserError, match=r"shard-00002.parquet: block_002 has rows without a value"):
        found.read_block(2)


def test_skipped_rows_leave_gaps_and_no_more(tmp_path: Path) -> None:
    """Rows 3 and 31 to 33 of 50 were not run: the set holds the others, and says so."""
    values = np.arange(50 * D, dtype=np.float32).reshape(50, D)
    left_out = [3, 31, 32, 33]
    kept = [row for row in range(50) if row not in left_out]
    folder = tmp_path / "set"
    make_set(folder, {0: values[kept]}, 1, shard=17)
    content = json.loads((folder / "manifest.json").read_text())
    for shard, start, lost in zip(content["shards"], (0, 18, 38), ([3], left_out[1:], []), strict=True):
        path = folder / shard["name"]
        own = {
            "format": 1,
            "fingerprint": "of set",
            "start": start,
            "skipped": [{"row": row} for row in lost],
        }
        table = pq.read_table(path).replace_schema_metadata({"contrans": json.dumps(own)})
        write_shard(path, table)
        shard["start"] = start
    content["skipped"] = [{"row": row, "reason": "too short"} for row in left_out]
    (folder / "manifest.json").write_text(json.dumps(content))
    found = ActivationSet.open(str(folder))
    assert found.n_rows == 46
    np.testing.assert_array_equal(found.read_block(0), values[kept])
    np.testing.assert_array_equal(found.read_block(0, 15, 40), values[kept][15:40])
    content["skipped"].pop()
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"shards\[1\]: its rows end at 37, the next begin at 38"):
        ActivationSet.open(str(folder))


def published_set(folder: Path, shards: int = 3) -> None:
    """A set whose shards are written as a harvest writes them, with a manifest by hand."""
    entries = []
    for index in range(shards):
        table = text_table(pa.table({"text": ["a"] * 200}))
        values = {block: np.full((200, D), index + 1, np.float32) for block in (0, 2)}
        ones = np.ones(200, np.int32)
        shard = Shard(spec_of(folder), index, 200 * index, 200)
        rows = table.set_column(0, "row", pa.array(range(shard.start, shard.start + 200), pa.int64()))
        pieces = [Activations(values, ones, ones, [])]
        report = publish_shard(shard, Runnable(rows, [[1]] * 200), pieces, 0.0, "cpu")
        entries.append({"name": shard.name, "start": shard.start, "rows": 200, "bytes": report.entry.bytes,
                        "footer": report.entry.footer})  # fmt: skip
    fingerprint = spec_of(folder).fingerprint
    content = {
        "format": 1, "kind": "activations", "fingerprint": fingerprint, "identity": {"model": "m"},
        "rows": 200 * shards, "d": D, "n_blocks": 3, "blocks": [0, 2], "shards": entries,
        "columns": ["row", "text_id", "text", "n_tokens", "token_id"], "norms": {"0": 1.0, "2": 1.0},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(sealed(content)))


def test_every_byte_is_verified_and_damage_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "activations" / "corpus"
    published_set(folder)
    for place in (folder, tmp_path / "run"):
        assert run("status", str(place), "--verify", monkeypatch=monkeypatch) == 0
        assert "complete, 600 rows in 3 shards" in capsys.readouterr().out
    data = (folder / "shard-00001.parquet").read_bytes()
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert hashlib.sha256(data[:pages]).hexdigest() in data[pages:].decode("latin-1")
    for position in (4, pages // 2, pages - 1, pages + 20, len(data) - 40):
        spoilt = bytearray(data)
        spoilt[position] ^= 4
        (folder / "shard-00001.parquet").write_bytes(bytes(spoilt))
        assert run("status", str(folder), "--verify", monkeypatch=monkeypatch) == 1
        said = capsys.readouterr().err
        assert "shard-00001.parquet" in said
        assert "run the same harvest again" in said
        assert "1 file damaged" in said
    (folder / "shard-00001.parquet").write_bytes(data)
    (folder / "manifest.json").unlink()
    assert run("status", str(folder), "--verify", monkeypatch=monkeypatch) == 0


HOSTILE = """
import json, sys, time
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.verification import verify
from contrans_dist.errors import UserError
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def read(folder):
    found = ActivationSet.open(folder)
    found.read_columns(found.columns)
    return "nothing"
def verified(folder):
    return max(verify(Location.parse(folder)), key=lambda told: "expected at most" in told)
for folder in sys.argv[1:]:
    for look in (read, verified):
        open("/proc/self/clear_refs", "w").write("5")
        before, began = peak(), time.monotonic()
        try:
            said = look(folder)
        except UserError as error:
            said = str(error)
        print(json.dumps([said, (peak() - before) / 1024, time.monotonic() - began]))
"""


def hostile_sets(parent: Path) -> dict[str, str]:
    """Sets of a stranger's that would fill the memory, and what is said of each."""
    plain = {
        "row": pa.array(range(1000), pa.int64()), "text_id": ["a"] * 1000, "text": ["b"] * 1000,
        "n_tokens": pa.array([1] * 1000, pa.int32()), "token_id": pa.array([1] * 1000, pa.int32()),
    }  # fmt: skip
    kind = pa.list_(pa.float32(), D)
    block = {"block_000": pa.array([[0.0] * D] * 1000, kind)}
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * (2 << 20)]))
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(64 << 20, np.float32)), 65_536)
    own = {"format": 1, "fingerprint": "f", "start": 0}
    nothing = pa.nulls(1000)
    zstd = {"compression": "zstd", "compression_level": 3, "row_group_size": 1000}
    small = {"row_group_size": 1, "write_statistics": False}
    tables: dict[str, tuple[pa.Table, dict[str, Any]]] = {
        "columns": (pa.table({**plain, **block, **{f"c{i}": nothing for i in range(70_000)}}), zstd),
        "groups": (pa.concat_tables([pa.table({**plain, **block})] * 12), small),
        "metadata": (pa.table({**plain, **block}).replace_schema_metadata({"x": "y" * (20 << 20)}), zstd),
        "dictionary": (pa.table({**plain, **block, "text": ["x" * (128 << 10)] * 1000}), zstd),
        "labels": (pa.table({**plain, **block, "label": words}), zstd),
        "zeros": (pa.table({**plain, "block_000": wide[:1000]}), zstd),
    }  # fmt: skip
    for name, (table, options) in tables.items():
        folder = parent / name
        folder.mkdir()
        d = table.schema.field("block_000").type.list_size
        kept = {**(table.schema.metadata or {}), b"contrans": json.dumps(own).encode()}
        write_shard(folder / "s.parquet", table.replace_schema_metadata(kept), **options)
        columns = [*plain, *(["label"] if name == "labels" else [])]
        manifest = {
            "format": 1, "kind": "activations", "fingerprint": "f", "identity": {"model": "m"}, "rows": 1000,
            "d": d, "n_blocks": 1, "blocks": [0], "norms": {"0": 1.0},
            "columns": columns, "shards": [{"name": "s.parquet", "start": 0, "rows": 1000}],
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
    for name, count in (("million", 1_000_000), ("many", 300_000)):
        (parent / name).mkdir()
        entries = ",".join(f'{{"name":"{i:07d}","start":{i},"rows":1}}' for i in range(count))
        text = f'{{"format":1,"kind":"activations","rows":{count},"shards":[{entries}]}}'
        (parent / name / "manifest.json").write_text(text)
    return {
        "columns": "footer", "groups": "footer", "metadata": "footer", "dictionary": "expected at most",
        "labels": "expected at most", "zeros": "blocks unfold to", "million": "expected at most",
        "many": "shards: 300,000 entries",
    }  # fmt: skip


def test_hostile_sets_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    said = hostile_sets(tmp_path)
    lines = subprocess.run(
        [sys.executable, "-c", HOSTILE, *(str(tmp_path / name) for name in said)],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    looks = [item for item in said.items() for _ in range(2)]
    for (name, wanted), line in zip(looks, lines, strict=True):
        found, megabytes, seconds = json.loads(line)
        assert wanted in found, name
        assert str(tmp_path / name) in found, name
        assert "\n" not in found
        assert megabytes < 200, name
        assert seconds < 30, name  # a second or two
