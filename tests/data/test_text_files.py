"""Files of texts as strangers make them: odd columns, odd encodings, hostile sizes; a refusal is a line."""

import decimal
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.config import limits
from contrans_dist.data import text_files as textfiles
from contrans_dist.data.table_hash import table_hash
from contrans_dist.data.templates import prompts, template_fields
from contrans_dist.data.texts import read_texts, records, text_table
from contrans_dist.errors import UserError

ONE = b'{"text": "one"'
BIG = "x" * (1 << 20)


def refused(path: Path) -> str:
    """What is said of a file: one line, with its name."""
    with pytest.raises(UserError) as error:
        read_texts(str(path))
    said = str(error.value)
    assert "\n" not in said
    assert path.name in said
    return said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", ONE + b', "meta": {}}\n', "cannot hold the column 'meta'"),
        ("t.jsonl", ONE + b', "turns": [{}]}\n', "cannot hold the column 'turns'"),
        ("t.jsonl", ONE + b', "a": {"b": {}}}\n', "cannot hold the column 'a'"),
        ("t.jsonl", ONE + b', "n": 1' + b"0" * 40 + b"}\n", "column 'n' mixes types"),
        ("t.jsonl", ONE + b', "n": 1' + b"0" * 5000 + b"}\n", "line 1: expected a JSON object"),
        ("t.jsonl", ONE + b', "text": "two"}\n', "line 1: expected a JSON object (the key 'text' is"),
        ("t.jsonl", ONE + b', "": 1}\n', "a column has no name"),
        ("t.jsonl", ONE + b', "block_\xc2\xb2": 1, "TEXT_ID": 2, "row": 3}\n', ""),
        ("t.jsonl", ONE + b'}\n\n{"text": "\\ud83d"}\n', "line 3: expected whole characters, found half"),
        ("t.jsonl", ONE + b', "tag": ["a\\udc00"]}\n', "line 1: expected whole characters"),
        ("t.jsonl", ONE + b', "\\ud83d": 1}\n', "line 1: expected whole characters"),
        ("t.jsonl", ONE + b', "x": ' + b"[" * 100_000 + b"\n", "line 1: expected a JSON object, found lists"),
        ("t.jsonl", ONE + b"}\n\n   \n" + b'{"text": " "}', "line 4: the text is empty"),
        ("t.jsonl", b"[1, 2]\n", "line 1: expected a JSON object with a string `text`"),
        ("t.json", b'["a", "\\ud83d"]', "found half of one (\\ud83d) after '[\"a\", \"'"),
        ("t.json", b'["a", "\xed\xa0\xbd"]', "expected whole characters"),
        ("t.json", b"[" * 100_000, "found lists in lists without end"),
        ("t.json", b'{"pos": ["a"], "pos": ["b"], "neg": []}', "the key 'pos' is there twice"),
        ("t.json", b"[]", "expected at least one text"),
        ("t.txt", b"one\n \n\ntwo\n", "line 2: the text is empty; expected one text a line"),
        ("t.txt", b"\none\n", "line 1: the text is empty"),
        ("t.txt", "zwei\nWörter".encode("utf-16"), "looks like UTF-16"),
        ("t.txt", "zwei\nWörter".encode("utf-16-le"), "save UTF-16 as UTF-8"),
        ("t.txt", "zwei\nWörter".encode("latin-1"), "line 2: expected UTF-8, found byte 0xf6 at 1"),
        ("t.txt", b"\xed\xa0\xbd", "line 1: expected UTF-8"),
        ("t.txt", b"a\nb\0c", "line 2: expected text, found a NUL"),
    ],
)  # fmt: skip
def test_each_fault_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if said:
        assert said in refused(path)
    else:
        read_texts(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", b"one\ntwo\n\n  \n\n"),
        ("t.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\n"),
        ("t.jsonl", b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two"}\r\n\n'),
        ("t.json", b'\xef\xbb\xbf["one", "two"]'),
        ("t.json", '["one", "two"]'.encode("utf-16")),
        ("t.json", b'[{"question": "one"}, {"text": "two"}]'),
    ],
)
def test_marks_and_blank_lines_are_no_texts(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_texts(str(tmp_path / name)).column("text").to_pylist() == ["one", "two"]


TEXTS = ["one", "two", "one"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_of_every_kind_are_texts(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(TEXTS).cast(kind)
    pq.write_table(pa.table({"text": column, "other": column}), tmp_path / "t.parquet")
    table = read_texts(str(tmp_path / "t.parquet"))
    assert table.column("text").type == pa.string()
    assert table.column("text").to_pylist() == table.column("other").to_pylist() == TEXTS


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": pa.array([b"a", b"b"])}, "column `text` is of type binary; expected strings"),
        ({"text": pa.array([1, 2])}, "column `text` is of type int64"),
        ({"text": pa.nulls(2)}, "column `text` is of type null"),
        ({"text": pa.array([["a"], ["b"]])}, "column `text` is of type list<"),
        ({"text": pa.array(["a", None])}, "row 2: the text is empty"),
        ({"text": pa.array([b"a", b"\xff"]).view(pa.string())}, "column `text`: expected UTF-8"),
        ({"text": ["a", "b"], "x": pa.array([b"a", b"\xff"]).view(pa.string())}, "the column 'x'"),
        ({"texts": ["a", "b"]}, "expected a column `text`, found texts"),
        ({"\n": ["a"], "\x1b[2J": ["b"]}, r"expected a column `text`, found '\n', '\x1b[2J'"),
        ({"text": ["a", "b"], "": [1, 2]}, "a column has no name"),
    ],
)
def test_columns_that_are_no_texts_are_named(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert said in refused(tmp_path / "t.parquet")


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    names = ["text", "label", "label"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=names), tmp_path / "t.parquet")
    assert "the column 'label' is there 2 times" in refused(tmp_path / "t.parquet")


ODD = {
    "tags": [["x", None], [], None],
    "when": pa.array([1, None, 3], pa.timestamp("ns", "Europe/Berlin")),
    "far": pa.array([10**15, 0, 1], pa.timestamp("s")),
    "day": pa.array([0, 1, 2], pa.date32()),
    "price": [decimal.Decimal("1.10"), None, decimal.Decimal("2.00")],
    "raw": [b"\xff", b"", None],
    "of": pa.array(["a", None, "a"]).dictionary_encode(),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "nested": [{"a": [{"b": 1}]}, None, {"a": []}],
    "nothing": pa.nulls(3),
    "half": pa.array([1.0, 2.0, 3.0], pa.float16()),
    "nan": [float("nan"), None, 1.0],
    "Text": ["other", "case", "kept"],
    "a.b": [1, 2, 3],
}


def test_odd_columns_are_kept_and_hashed(tmp_path: Path) -> None:
    table = text_table(pa.table({"text": TEXTS, **ODD}))
    assert table.column_names == ["row", "text_id", "text", *ODD]
    pq.write_table(table, tmp_path / "t.parquet")
    again = read_texts(str(tmp_path / "t.parquet"))
    assert again.column_names == table.column_names
    seconds = pq.read_table(tmp_path / "t.parquet").schema.field("far").type  # Parquet has no seconds
    assert table_hash(again.drop_columns(["far"])) == table_hash(table.drop_columns(["far"]))
    assert seconds == pa.timestamp("ms")
    assert len(records(table, "t", ["tags"])) == 3
    assert prompts(table, "{Text}: {text}") == ["other: one", "case: two", "kept: one"]
    assert "29" not in prompts(table, "{day} {text}")[0]


DIFFERENT = [
    pa.array(["1.10"]), pa.array([decimal.Decimal("1.10")]), pa.array([1.1]), pa.array([1]), pa.array([1.0]),
    pa.array([True]), pa.array([None], pa.int64()), pa.array([float("nan")]), pa.array(["NaN"]),
    pa.array([""]),
    pa.array([b"1.10"]), pa.array(["b'1.10'"]), pa.array([b""]), pa.array([b"\xff"]),
    pa.array([1], pa.timestamp("ns")), pa.array([2], pa.timestamp("ns")), pa.array([1], pa.timestamp("us")),
    pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.date32()), pa.array(["1970-01-02"]),
    pa.array([1], pa.duration("s")), pa.array([["a", "b"]]), pa.array([["a,b"]]), pa.array([["ab"]]),
    pa.array([[b"a"]]), pa.array([{"bytes": "61"}]), pa.array([{"when": datetime(2020, 1, 1, tzinfo=UTC)}]),
    pa.array([{"when": datetime(2020, 1, 1)}]), pa.array([10**17], pa.timestamp("s")),
]  # fmt: skip


def test_no_two_values_hash_alike() -> None:
    hashes = [table_hash(pa.table({"text": ["a"], "x": each})) for each in DIFFERENT]
    assert len(set(hashes)) == len(DIFFERENT)


def test_hashes_of_sets_that_are_there_stay_as_they_are() -> None:
    """A harvest that was begun goes on: for what JSON can say, the hash is that of its JSON."""
    import hashlib

    n = 10_000
    columns = {
        "text": [f"täxt {i}" for i in range(n)], "n": [1, None] * (n // 2),
        "f": [0.1, float("nan")] * (n // 2),
        "tags": [["x", None], None] * (n // 2), "m": [{"a": True, "b": [1]}] * n, "z": [None] * n,
    }  # fmt: skip
    table = pa.table(columns)
    whole = hashlib.sha256(
        b"".join(json.dumps([name, table.column(name).to_pylist()]).encode() for name in columns)
    )
    assert table_hash(table) == whole.hexdigest()
    halves = pa.concat_tables([table.slice(0, 17), table.slice(17)])
    assert table_hash(halves) == whole.hexdigest()


@pytest.mark.parametrize(
    "template",
    [
        "{text:>1000000000}", "{text.__class__}", "{text[0]}", "{0} {text}", "{} {text}", "{text!r}",
        "{text:}}",
        "{text:{n}}", "{text", "no place", "{text} \ud83d", "{text} {a.b}", "{text:.2f}",
    ],
)  # fmt: skip
def test_a_template_names_columns_and_nothing_else(template: str) -> None:
    table = text_table({"text": ["a"], "n": [1]})
    for use in (template_fields, lambda t: prompts(table, t)):
        with pytest.raises(UserError, match="template") as error:
            use(template)
        str(error.value).encode()
        assert "\n" not in str(error.value)


def test_a_row_without_the_value_that_a_template_names_is_named() -> None:
    """It said "None: b" to the model."""
    table = text_table({"text": ["a", "b"], "who": ["Ann", None]})
    with pytest.raises(UserError, match="column 'who' has no value in row 2"):
        prompts(table, "{who}: {text}")
    assert prompts(table, "{{who}} {text}") == ["{who} a", "{who} b"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Files that would fill memory, and what is to be said of each."""
    folder = tmp_path_factory.mktemp("hostile")
    found: dict[Path, str] = {}

    def sparse(name: str, size: int, start: bytes, said: str) -> None:
        (folder / name).write_bytes(start)
        os.truncate(folder / name, size)
        found[folder / name] = said

    sparse("line.jsonl", 500 << 20, b'{"text": "', "line 1: 17,")
    sparse("line.txt", 500 << 20, b"one\ntwo\n", "line 3: 17,")
    sparse("large.txt", 40 << 30, b"one\n", "bytes, expected at most 1,073,741,824")
    sparse("large.json", 1 << 30, b"[", "expected at most 33,554,432")
    sparse("large.parquet", 40 << 30, b"PAR1", "bytes, expected at most 1,073,741,824")
    (folder / "short.txt").write_bytes(b"a\n" * (5 << 20))
    found[folder / "short.txt"] = "lines, expected at most 4,194,304"
    wide = {"text": "a", **{f"k{i}": 1 for i in range(2000)}}
    (folder / "wide.jsonl").write_text(json.dumps(wide))
    found[folder / "wide.jsonl"] = "1,025 columns, expected at most 1,024"
    each = [json.dumps({"text": "a", f"k{i}": 1}) for i in range(20_000)]
    (folder / "other.jsonl").write_text("\n".join(each))
    found[folder / "other.jsonl"] = "line 1024: 'k1023': 1,025 columns"
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(6000, np.int32)), pa.array([BIG]))
    pq.write_table(pa.table({"text": rows}), folder / "coded.parquet")
    found[folder / "coded.parquet"] = "bytes unpacked, expected at most 1,073,741,824"
    lists = pa.ListArray.from_arrays(pa.array([0, 3000, 6000], pa.int32()), rows)
    pq.write_table(pa.table({"text": ["a", "b"], "x": lists}), folder / "nested.parquet")
    found[folder / "nested.parquet"] = "bytes unpacked, expected at most 1,073,741,824"
    many = pa.array(np.zeros(5 << 20, np.int8))
    pq.write_table(pa.table({"text": many}), folder / "rows.parquet")
    found[folder / "rows.parquet"] = "5,242,880 texts, expected at most 4,194,304"
    _lie_of_a_page(folder / "page.parquet")
    found[folder / "page.parquet"] = "expected a Parquet file (Corrupt ZSTD compressed data"
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "zero.json").symlink_to("/dev/zero")
    found |= {folder / name: "this is a device or a pipe" for name in ("zero.txt", "zero.json")}
    os.mkfifo(folder / "pipe.txt")
    found[folder / "pipe.txt"] = "this is a device or a pipe"
    return found


def _lie_of_a_page(path: Path) -> None:
    """Write one page of texts that says of itself that it unpacks to 2 GB: so many are reserved, and never
    touched. The number has five bytes in the page's own size, too, so that nothing behind it moves."""
    table = pa.table({"text": ["a" * (135 << 20)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    data = bytearray(path.read_bytes())
    said = data.index(b"\x15", 5) + 1
    assert data[said + 3] & 0x80
    assert not data[said + 4] & 0x80
    data[said : said + 5] = b"\xfe\xff\xff\xff\x0f"
    path.write_bytes(data)


READ = """
import json, resource, sys, time
from contrans_dist.errors import UserError
from contrans_dist.data.texts import read_texts
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = {}
for path in sys.argv[1:]:
    before, began = peak(), time.process_time()
    try:
        said = str(read_texts(path))[:50]
    except UserError as error:
        said = str(error)
    found[path] = said, peak() - before, time.process_time() - began
print(json.dumps(found))
"""


def test_hostile_files_are_refused_at_once(hostile: dict[Path, str]) -> None:
    """In a process of its own, that its memory can be measured."""
    command = [sys.executable, "-c", READ, *map(str, hostile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path, (said, megabytes, seconds) in json.loads(done.stdout).items():
        assert hostile[Path(path)] in said, said
        assert "\n" not in said
        assert megabytes < 200, (path, megabytes)
        assert seconds < 30, (path, seconds)  # a second or two; minutes, were it read


def test_compressed_texts_are_counted_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"text": [BIG + str(i) for i in range(20)]})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    monkeypatch.setattr(textfiles, "TEXT_FILE_BYTES", 10 << 20)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)  # nothing is read
    assert "bytes unpacked, expected at most 10,485,760" in refused(tmp_path / "t.parquet")


def test_limits_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "TEXTS", 3)
    (tmp_path / "t.txt").write_bytes(b"a\n" * 5)
    assert "5 lines, expected at most 3; `contrans --limits 10 ...` allows more" in refused(
        tmp_path / "t.txt"
    )
    monkeypatch.setenv(limits.VARIABLE, "2")
    assert read_texts(str(tmp_path / "t.txt")).num_rows == 5
