"""Texts in: reading them with their other columns, prompt templates, and identities of texts."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist import schema
from contrans_dist.errors import UserError
from contrans_dist.storage import Location


def text_id(text: str) -> str:
    """Identity of a text: 32 hexadecimal digits of its BLAKE2b hash."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_texts(source: "Location | str") -> pa.Table:
    """Texts with their other columns, in input order: `row`, `text_id`, `text`, then what the file had.

    `.txt`: one text a line. `.jsonl` and `.parquet`: a `text` column. `.json`: a ConTrans file (`pos` and
    `neg` lists, giving `label` and `pair_id`), a list of texts, or a list of objects with a `question`.
    Raises UserError, with file and line, for a text that is empty, is not UTF-8 or is missing, and for a
    column name that we write ourselves.
    """
    location = Location.parse(source)
    suffix = location.name.rpartition(".")[2].lower()
    readers = {"txt": _read_lines, "jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet}
    if suffix not in readers:
        raise UserError(f"{location}: expected a .txt, .jsonl, .json or .parquet file")
    return text_table(readers[suffix](location), where=str(location))


def text_table(columns: dict[str, list[Any]] | pa.Table, where: str = "texts") -> pa.Table:
    """Give texts their keys: `row` from 0, `text_id`; other columns are kept. Checks as `read_texts`."""
    table = columns if isinstance(columns, pa.Table) else _to_arrow(columns, where)
    table = table.drop_columns([name for name in ("row", "text_id") if name in table.column_names])
    if "text" not in table.column_names:
        raise UserError(f"{where}: expected a column `text`, found {', '.join(table.column_names) or 'none'}")
    clashes = [name for name in table.column_names if schema.reserved(name)]
    if clashes:
        raise UserError(f"{where}: column {clashes[0]!r} is one that a harvest writes itself; rename it")
    if table.num_rows == 0:
        raise UserError(f"{where}: expected at least one text")
    texts = table.column("text").to_pylist()
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}, line {index + 1}: the text is empty; expected one text a row")
    others = [name for name in table.column_names if name != "text"]
    return pa.table(
        {
            "row": pa.array(range(len(texts)), pa.int64()),
            "text_id": pa.array([text_id(text) for text in texts], pa.string()),
            "text": pa.array(texts, pa.string()),
            **{name: table.column(name) for name in others},
        }
    )


def _to_arrow(columns: dict[str, list[Any]], where: str) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"{where}: column {name!r} mixes types ({error})") from error
    return pa.table(arrays)


def _decoded_lines(location: Location) -> list[str]:
    lines = location.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            byte = line[error.start]
            message = f"{location}, line {number}: expected UTF-8, found byte 0x{byte:02x} at {error.start}"
            raise UserError(message) from error
    return decoded


def _read_lines(location: Location) -> dict[str, list[Any]]:
    return {"text": _decoded_lines(location)}


def _read_jsonl(location: Location) -> dict[str, list[Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_decoded_lines(location), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{location}, line {number}: expected a JSON object ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UserError(f"{location}, line {number}: expected a JSON object with a string `text`")
        records.append(record)
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in names}


def _read_json(location: Location) -> dict[str, list[Any]]:
    try:
        content = json.loads(location.read_bytes().decode())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{location}: expected JSON in UTF-8 ({error})") from error
    if isinstance(content, list) and all(isinstance(text, str) for text in content):
        return {"text": content}
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        return _questions(content, location)
    if (
        not isinstance(content, dict)
        or not _all_texts(content.get("pos"))
        or not _all_texts(content.get("neg"))
    ):
        raise UserError(
            f"{location}: expected a list of texts or questions, or an object with lists `pos` and `neg`"
        )
    positive, negative = content["pos"], content["neg"]
    return {
        "text": positive + negative,
        "label": ["positive"] * len(positive) + ["negative"] * len(negative),
        "pair_id": [*range(len(positive)), *range(len(negative))],
    }


def _questions(entries: list[dict[str, Any]], location: Location) -> dict[str, list[Any]]:
    """Objects with a `text` or a `question`, as TruthfulQA and the CAA sets have them, and what else is a
    plain string there."""
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry.get("text", entry.get("question")), str):
            raise UserError(f"{location}, entry {number}: expected a string `text` or `question`")
    names = [
        name
        for name in dict.fromkeys(name for entry in entries for name in entry)
        if name not in ("text", "question") and all(isinstance(entry.get(name), str) for entry in entries)
    ]
    texts = [entry.get("text", entry.get("question")) for entry in entries]
    return {"text": texts, **{name: [entry[name] for entry in entries] for name in names}}


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _read_parquet(location: Location) -> pa.Table:
    try:
        with location.open() as source:
            return pq.read_table(source)
    except pa.ArrowInvalid as error:
        raise UserError(f"{location}: expected a Parquet file ({error})") from error


def template_fields(template: str) -> list[str]:
    """Column names a template asks for. Raises UserError for one that is malformed or lacks `{text}`."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"template {template!r}: {error}") from error
    if "text" not in fields:
        raise UserError(f"template {template!r}: expected a place for the text, `{{text}}`")
    return fields


def prompts(table: pa.Table, template: str | None) -> list[str]:
    """The prompt of each row: the text itself, or the template filled with the row's columns.

    A two-character `\\n` in a template given on a command line stands for a line break. Raises UserError
    when the template names a column that the texts lack.
    """
    if template is None:
        return list(table.column("text").to_pylist())
    template = template.replace("\\n", "\n")
    fields = template_fields(template)
    missing = [name for name in fields if name not in table.column_names]
    if missing:
        raise UserError(f"template {template!r}: the texts have no column {missing[0]!r}")
    return [template.format(**record) for record in table.select(list(dict.fromkeys(fields))).to_pylist()]


def table_hash(table: pa.Table) -> str:
    """Identity of a whole input: every text and every other column, in order."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(json.dumps([name, table.column(name).to_pylist()], default=str).encode())
    return digest.hexdigest()


def texts_hash(texts: Iterable[str]) -> str:
    """SHA-256 (hex) over texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def records(table: pa.Table, where: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as dictionaries. Raises UserError when a needed column is missing."""
    for name in needed:
        if name not in table.column_names:
            raise UserError(f"{where}: expected a column {name!r}, found {', '.join(table.column_names)}")
    return list(table.to_pylist())
