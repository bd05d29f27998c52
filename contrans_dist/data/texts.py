"""Texts in: a table of texts with their other columns, and identities of texts."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist.config.characters import check_whole
from contrans_dist.config.limits import CELLS, COLUMNS, TEXT_BYTES, TEXTS, check_size
from contrans_dist.data.table_hash import python_values
from contrans_dist.data.text_files import lines, read_json, read_json_lines, read_parquet
from contrans_dist.errors import UserError, listed, one_line
from contrans_dist.store import schema
from contrans_dist.store.location import Location

_TABLES = ("csv", "tsv")


def text_id(text: str) -> str:
    """Identity of a text: 32 hexadecimal digits of its BLAKE2b hash."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_texts(source: "Location | str") -> pa.Table:
    """Texts with their other columns.

    Args:
        source: A file, by its ending. `.txt`: one text a line. `.jsonl` and `.parquet`: a `text` column.
            `.json`: a ConTrans file (`pos` and `neg` lists, giving `label` and `pair_id`), a list of texts,
            or a list of objects with a `question`. Blank lines are no texts: in `.jsonl` they are passed
            over, in `.txt` they may stand at the end.

    Returns:
        In input order: `row`, `text_id`, `text`, then what the file had.

    Raises:
        UserError: With file and line, for a text that is empty, is not UTF-8 or is missing, for a column
            whose name is ours or that Parquet cannot hold, and beyond the limits.
    """
    location = Location.parse(source)
    suffix = location.name.rpartition(".")[2].lower()
    where = str(location)
    if suffix == "txt":
        return _of_lines(location)
    if suffix == "jsonl":
        columns, numbers = read_json_lines(location)
        return text_table(columns, where, [f"line {number}" for number in numbers])
    if suffix == "json":
        return text_table(_of_json(read_json(location), location), where)
    if suffix == "parquet":
        return text_table(read_parquet(location), where)
    if not location.exists():
        raise UserError(f"{location}: no such file")
    table = "; pandas makes one of a table: read_csv(...).to_parquet(...)" if suffix in _TABLES else ""
    raise UserError(f"{location}: expected a .txt, .jsonl, .json or .parquet file{table}")


def _of_lines(location: Location) -> pa.Table:
    texts: list[str] = []
    for number, text in lines(location):
        texts.append(text)
        if number != len(texts):  # a file of paragraphs, or one whose lines belong to those of another
            raise UserError(
                f"{location}, line {len(texts)}: the text is empty; expected one text a line, blank lines at "
                "the end alone"
            )
    return text_table({"text": texts}, str(location))


def text_table(
    columns: dict[str, list[Any]] | pa.Table, where: str = "texts", rows: Sequence[str] | None = None
) -> pa.Table:
    """Give texts their keys: `row` from 0, `text_id`; other columns are kept.

    Args:
        columns: The texts in `text`, and whatever goes with them.
        where: What messages call them all.
        rows: What messages call each row, such as `line 3`; without it `row` and its number from 1.

    Raises:
        UserError: As `read_texts`.
    """
    table = columns if isinstance(columns, pa.Table) else _to_arrow(columns, where)
    kept = [i for i, name in enumerate(table.column_names) if name not in ("row", "text_id")]
    table = table.select(kept)
    _check_names(table, where)
    if table.num_rows == 0:
        raise UserError(f"{where}: expected at least one text")
    check_size(where, table.num_rows, TEXTS, "texts")
    check_size(where, table.num_columns, COLUMNS, "columns")
    check_size(where, table.num_rows * table.num_columns, CELLS, "cells")
    others = [name for name in table.column_names if name != "text"]
    for name in others:
        _check_held(table.column(name), name, where)
    texts: list[str] = []
    for index, text in enumerate(_strings(table.column("text"), where)):
        if text is None or not text.strip() or len(text) * 4 > TEXT_BYTES:
            row = rows[index] if rows is not None else f"row {index + 1}"
            if text is None or not text.strip():
                raise UserError(f"{where}, {row}: the text is empty; expected one text a row")
            check_size(f"{where}, {row}", len(text.encode()), TEXT_BYTES)
        texts.append(text)
    return pa.table(
        {
            "row": pa.array(range(len(texts)), pa.int64()),
            "text_id": pa.array([text_id(text) for text in texts], pa.string()),
            "text": pa.array(texts, pa.string()),
            **{name: table.column(name) for name in others},
        }
    )


def _check_names(table: pa.Table, where: str) -> None:
    names = table.column_names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: the column {twice[0]!r} is there twice; rename one")
    if "text" not in names:
        raise UserError(f"{where}: expected a column `text`, found {listed(names) or 'none'}")
    for name in names:
        if not name:
            raise UserError(f"{where}: a column has no name; give it one")
        if schema.reserved(name):
            raise UserError(f"{where}: column {name!r} is one that a harvest writes itself; rename it")


def _to_arrow(columns: dict[str, list[Any]], where: str) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        check_whole(name, f"{where}: a column's name")
        try:
            arrays[name] = pa.array(values)
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: column {name!r} holds half a character; expected whole ones"
            ) from error
        except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{where}: column {name!r} mixes types ({one_line(error)})") from error
    return pa.table(arrays)


def _check_held(column: pa.ChunkedArray, name: str, where: str) -> None:
    """Raise UserError for a column that Parquet cannot hold: better before a model has run than after."""
    try:
        column.validate(full=True)
        pq.write_table(pa.table({name: column}), pa.MockOutputStream(), compression="none")
    except (pa.ArrowException, ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{where}: Parquet cannot hold the column {name!r} ({one_line(error)}); leave it out, or "
            "give its objects a key"
        ) from error


def _strings(column: pa.ChunkedArray, where: str) -> list[str | None]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{where}: column `text` is of type {one_line(kind)}; expected strings")
    try:
        column.validate(full=True)
        return list(column.to_pylist())
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{where}: column `text`: expected UTF-8 ({one_line(error)})") from error


def _of_json(content: Any, location: Location) -> dict[str, list[Any]]:
    if _all_texts(content):
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
    # What every entry has, the first one has.
    names = [
        name
        for name in (entries[0] if entries else ())
        if name not in ("text", "question") and all(isinstance(entry.get(name), str) for entry in entries)
    ]
    texts = [entry.get("text", entry.get("question")) for entry in entries]
    return {"text": texts, **{name: [entry[name] for entry in entries] for name in names}}


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def texts_hash(texts: Iterable[str]) -> str:
    """SHA-256 (hex) over texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def records(table: pa.Table, where: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as dictionaries. Raises UserError when a needed column is missing."""
    names = table.column_names
    for name in needed:
        if name not in names:
            raise UserError(f"{where}: expected a column {name!r}, found {listed(names)}")
    columns = [python_values(table.column(name)) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
