"""The values of a table of texts, of whatever type, and the identity that they give it."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_ROWS = 4096
"""Hashed at a time."""


def table_hash(table: pa.Table) -> str:
    """Identity of a whole input: every text and every other column, in order."""
    digest = hashlib.sha256()
    for name in table.column_names:
        for piece in _pieces(name, table.column(name)):
            digest.update(piece.encode())
    return digest.hexdigest()


def _pieces(name: str, column: pa.ChunkedArray) -> Iterator[str]:
    """A column as JSON, some rows at a time. One of a type that JSON has not says which it is."""
    told = "" if _in_json(column.type) else f", {json.dumps(str(column.type))}"
    column = column.cast(_countable(column.type)) if told else column
    yield f"[{json.dumps(name)}, ["
    for start in range(0, len(column), _ROWS):
        values = json.dumps(column.slice(start, _ROWS).to_pylist(), default=_tagged)
        yield (", " if start else "") + values[1:-1]
    yield f"]{told}]"


def _in_json(kind: pa.DataType) -> bool:
    """Whether JSON tells every two values of a type apart."""
    if pa.types.is_nested(kind):
        return all(_in_json(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _in_json(kind.value_type)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in (*plain, *texts))


def _countable(kind: pa.DataType) -> pa.DataType:
    """The type with numbers in place of times, all of which Python can hold."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_countable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _countable(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_countable(kind.key_type), _countable(kind.item_type))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_time64(kind):
        return pa.int64()
    return pa.int64() if pa.types.is_date64(kind) else pa.int32() if pa.types.is_date32(kind) else kind


def _tagged(value: Any) -> dict[str, str]:
    """A value that JSON has no form for, so that no two are alike."""
    return {type(value).__name__: value.hex() if isinstance(value, bytes) else repr(value)}


def python_values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; times that Python has no form for (nanoseconds, the year 30000) as Arrow writes
    them."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [value.as_py() for value in column.cast(pa.string())]
