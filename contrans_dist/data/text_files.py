"""Files of texts by others: lines, JSON and Parquet, within limits that hold while they are read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from contrans_dist.config.limits import (
    CELLS,
    COLUMNS,
    JSON_BYTES,
    TEXT_BYTES,
    TEXT_FILE_BYTES,
    TEXTS,
    check_size,
    raised,
)
from contrans_dist.errors import UserError, one_line
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location
from contrans_dist.store.unpacked import unpacked_bytes

_CHUNK = 1 << 20
_ROWS = 1024
"""Between one look at the number of cells and the next."""
_BOM = b"\xef\xbb\xbf"
_FOREIGN_BOMS = (b"\xff\xfe", b"\xfe\xff")
_MOST_CHUNKS = 1 << 18
"""Row groups times columns of a Parquet file: each is looked at before anything is read."""
_IN_UTF16 = "expected UTF-8, this looks like UTF-16; save it as UTF-8"


@contextmanager
def opened(location: Location) -> Iterator[pa.NativeFile]:
    """A file of texts, not too large. Raises UserError, also where this user may not read it."""
    if location.info().type is fs.FileType.Unknown:
        raise UserError(f"{location}: expected a file, this is a device or a pipe")
    with location.open() as stream:
        check_size(str(location), stream.size(), TEXT_FILE_BYTES)
        yield stream


def lines(location: Location) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1, without line break and byte order mark.

    Raises UserError, with file and line, for what is not UTF-8, and beyond the limits.
    """
    number, read, rest, where = 0, 0, b"", str(location)
    most = raised(TEXT_BYTES)
    with opened(location) as stream:
        while chunk := stream.read(_CHUNK):
            if not read and chunk.startswith(_FOREIGN_BOMS):
                raise UserError(f"{location}: {_IN_UTF16}")
            rest += chunk if read else chunk.removeprefix(_BOM)
            read += len(chunk)
            check_size(where, read, TEXT_FILE_BYTES)  # a device has no size of its own
            *whole, rest = rest.split(b"\n")
            check_size(where, number + len(whole), TEXTS, "lines")
            for line in whole:
                number += 1
                if len(line) > most:
                    check_size(f"{where}, line {number}", len(line), TEXT_BYTES)
                text = _text(line, where, number)
                if text.strip():
                    yield number, text
            check_size(f"{where}, line {number + 1}", len(rest), TEXT_BYTES)
        text = _text(rest, where, number + 1)
        if text.strip():
            yield number + 1, text


def _text(line: bytes, where: str, number: int) -> str:
    if b"\0" in line:
        raise UserError(f"{where}, line {number}: expected text, found a NUL; save UTF-16 as UTF-8")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at {error.start}"
        raise UserError(f"{where}, line {number}: expected UTF-8, found {byte}") from error


def read_document(location: Location) -> str:
    """A whole file as one text, with its line breaks. Raises UserError when it is empty or not UTF-8."""
    with opened(location) as stream:
        data = stream.read()
    if data.startswith(_FOREIGN_BOMS):
        raise UserError(f"{location}: {_IN_UTF16}")
    try:
        text = str(data.removeprefix(_BOM), "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: expected UTF-8, found another byte at {error.start}") from error
    if not text.strip():
        raise UserError(f"{location}: expected a text, found none")
    return text


def read_json(location: Location) -> Any:
    """A whole file of JSON. Raises UserError as `parse_json`, and for a file that is too large."""
    with opened(location) as stream:
        check_size(str(location), stream.size(), JSON_BYTES)
        data = stream.read(raised(JSON_BYTES))
    return parse_json(data, str(location), finite=False)


def read_json_lines(location: Location) -> tuple[dict[str, list[Any]], list[int]]:
    """Columns of the objects, one a line, with None where one lacks a key; and the number of each line.

    Raises UserError, with file and line, for anything else.
    """
    columns: dict[str, list[Any]] = {"text": []}
    numbers: list[int] = []
    for number, line in lines(location):
        where = f"{location}, line {number}"
        record = parse_json(line, where, "a JSON object", finite=False)
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            keys = ", ".join(map(repr, record))[:80] if isinstance(record, dict) else ""
            found = f", found {keys}" if keys else ""
            raise UserError(f"{where}: expected a JSON object with a string `text`{found}")
        for name, value in record.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = []
                check_size(f"{where}: {name!r}", len(columns), COLUMNS, "columns")
            column += [None] * (len(numbers) - len(column))
            column.append(value)
        numbers.append(number)
        if not len(numbers) % _ROWS:
            check_size(str(location), len(numbers) * len(columns), CELLS, "cells")
    for column in columns.values():
        column += [None] * (len(numbers) - len(column))
    return columns, numbers


def read_parquet(
    location: Location, columns: Sequence[str] | None = None, expected: str = "a Parquet file"
) -> pa.Table:
    """A table of texts, or some of its columns. Raises UserError for a file that is no Parquet, has a column
    twice, or unpacks to more than the limits; what a file says of itself is not believed."""
    with opened(location) as stream:
        # What fails from here on is the file's fault, and not the store's.
        source = stream if location.is_local else pa.BufferReader(stream.read())
        try:
            return _parquet(source, location, columns)
        except (pa.ArrowException, OSError, ValueError, MemoryError, RecursionError) as error:
            raise UserError(f"{location}: expected {expected} ({one_line(error)})") from error


def _parquet(source: pa.NativeFile, location: Location, columns: Sequence[str] | None) -> pa.Table:
    most = {
        "thrift_string_size_limit": raised(JSON_BYTES),
        "thrift_container_size_limit": raised(_MOST_CHUNKS),
    }
    file = pq.ParquetFile(source, **most)
    facts, where = file.metadata, str(location)
    for name, count in Counter(file.schema_arrow.names).items():
        if count > 1:
            raise UserError(f"{location}: the column {name!r} is there {count} times; expected each once")
    check_size(where, facts.num_rows, TEXTS, "texts")
    check_size(where, facts.num_columns, COLUMNS, "columns")
    check_size(where, facts.num_columns * facts.num_row_groups, _MOST_CHUNKS, "column chunks")
    if columns is not None:
        columns = [name for name in columns if name in file.schema_arrow.names]
    cells = size = 0
    for group in map(facts.row_group, range(facts.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            cells, size = cells + chunk.num_values, size + chunk.total_uncompressed_size
    check_size(where, cells, CELLS, "cells")
    check_size(where, size, TEXT_FILE_BYTES, "bytes unpacked")
    # A text that is kept once and named a million times is counted before it is written out as often.
    leaves = [file.schema.column(i) for i in range(facts.num_columns)]
    coded = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    source.seek(0)
    short = pq.ParquetFile(source, read_dictionary=coded, **most)
    parts, size = [], 0
    for index in range(facts.num_row_groups):
        size += sum(map(unpacked_bytes, short.read_row_group(index, columns).columns))
        check_size(where, size, TEXT_FILE_BYTES, "bytes unpacked")
        parts.append(file.read_row_group(index, columns))
    return pa.concat_tables(parts) if parts else file.read(columns)
