"""Parquet tables of an evaluation and of a run's analyses: what their rows hold, written and read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist.config.limits import PART_BYTES, RESULT_BYTES, check_size
from contrans_dist.errors import UserError, one_line
from contrans_dist.store import schema
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location
from contrans_dist.store.patience import patiently
from contrans_dist.store.provenance import version

RESULTS, EXAMPLES, TOKENS = "results.parquet", "examples.parquet", "tokens.parquet"
ANALYSES, SIMILARITIES = "analyses", "map-similarity.parquet"
"""The folder of a run's analyses, and the file of `SimilarityRow`s in it; see also `PointRow`."""
R = TypeVar("R")
Kind = Literal["text", "number", "whole"]
_KINDS = {"text": pa.string(), "number": pa.float64(), "whole": pa.int64()}
_BATCH_ROWS = 256


@dataclass(frozen=True)
class ContinuationRow:
    """A row of `examples.parquet`: a prompt, continued under one condition.

    Rows of `results.parquet` hold the same where a benchmark has the model continue its prompts.
    """

    concept: str
    item: str
    prompt: str
    condition: str
    strength: float
    continuation: str
    kind: str | None = None
    group: str | None = None
    toxicity: float | None = None
    """The classifier's probability that it is toxic, where it was asked."""


@dataclass(frozen=True)
class TokenRow:
    """A row of `tokens.parquet`: a token that is often among those that rise, or fall, most."""

    concept: str
    condition: str
    strength: float
    direction: str
    """`up` or `down`"""
    token_text: str
    count: int
    """Prompts in which it is among them."""
    n_prompts: int
    token_id: int | None = None


@dataclass(frozen=True)
class PointRow:
    """A row of `analyses/states-<side>.parquet` or `differences-<side>.parquet`: one state, or the difference
    of one contrast pair, in the plane of a t-SNE."""

    model: str
    block: int
    concept: str
    x: float
    y: float
    side: str | None = None
    """`source` or `target`"""


@dataclass(frozen=True)
class SimilarityRow:
    """A row of `analyses/map-similarity.parquet`: the cosine between the maps of two concepts."""

    a: str
    b: str
    similarity: float


def columns_of(row: type) -> tuple[dict[str, Kind], dict[str, Kind]]:
    """(needed, others): columns of a row's class, and their kinds; those with a default may be missing."""
    needed: dict[str, Kind] = {}
    others: dict[str, Kind] = {}
    hints = get_type_hints(row)
    for field in fields(row):
        types = str(hints[field.name])
        kind: Kind = "text" if "str" in types else "whole" if "int" in types else "number"
        (needed if field.default is MISSING else others)[field.name] = kind
    return needed, others


def rows_of(table: pa.Table, row: type[R]) -> list[R]:
    """A table's rows. A text that is null is empty; a row without a number that it needs is left out."""
    needed, others = columns_of(row)
    names = [name for name in (*needed, *others) if name in table.column_names]
    texts = [name for name, kind in needed.items() if kind == "text"]
    numbers = [name for name in needed if name not in texts]
    return [
        row(**{**values, **{name: values[name] or "" for name in texts}})
        for values in table.select(names).to_pylist()
        if all(values[name] is not None for name in numbers)
    ]


def read_rows(location: Location, row: type[R]) -> list[R]:
    """The rows of a table of ours. Raises UserError for a damaged file, and for one that lacks a column."""
    needed, others = columns_of(row)
    table = read_columns(location, needed, others)
    if table is None:
        raise UserError(f"{location}: expected columns {', '.join(needed)}")
    return rows_of(table, row)


def table_of(rows: Sequence[Any], row: type) -> pa.Table:
    """Rows as a table; a column of which no row has a value is left out."""
    needed, others = columns_of(row)
    content = [asdict(values) for values in rows]
    kinds = needed | {
        name: kind for name, kind in others.items() if any(values[name] is not None for values in content)
    }
    layout = pa.schema([(name, _KINDS[kind]) for name, kind in kinds.items()])
    return pa.Table.from_pylist(content, schema=layout)


def write_table(location: Location, table: pa.Table, facts: Mapping[str, Any] | None = None) -> None:
    """Publish a table; `facts` and the version of this program stand in its metadata."""
    metadata = {schema.METADATA_KEY: json.dumps({**(facts or {}), "contrans_dist": version()})}
    with location.staged() as path:
        pq.write_table(
            table.replace_schema_metadata(metadata), path, compression="zstd", write_page_checksum=True
        )


@patiently
def read_table(location: Location) -> pa.Table:
    """A table of ours, whole. Raises UserError for one that is damaged or above `limits.PART_BYTES`."""
    try:
        with location.open() as source:
            file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=not location.is_local)
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            check_size(str(location), sum(group.total_byte_size for group in groups), PART_BYTES)
            table = _bounded(location, file, file.schema_arrow.names, PART_BYTES)
            return table.combine_chunks()
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{location}: the file is damaged ({one_line(error)}); remove it to make it again"
        ) from error


def facts_of(table: pa.Table) -> dict[str, Any]:
    """The facts in the metadata that `write_table` gave a table; empty for a table without."""
    metadata = table.schema.metadata or {}
    try:
        facts = parse_json(metadata.get(schema.METADATA_KEY, b"{}"), "facts")
    except UserError:
        return {}
    if not isinstance(facts, dict):
        return {}
    return {key: value for key, value in facts.items() if key != "contrans_dist"}


@patiently
def read_columns(
    location: Location, needed: Mapping[str, Kind], others: Mapping[str, Kind] | None = None
) -> pa.Table | None:
    """Columns of a Parquet file, as strings, float64 and int64.

    Args:
        location: The file.
        needed: Columns and their kinds.
        others: Those that may be missing.

    Returns:
        What there is of them; None where a needed column is missing.

    Raises:
        UserError: For a damaged file, columns of another kind, and more than `limits.RESULT_BYTES`.
    """
    try:
        with location.open() as source:
            file = pq.ParquetFile(source, pre_buffer=not location.is_local)
            layout = file.schema_arrow
            if not set(needed) <= set(layout.names):
                return None
            kinds = {
                **needed,
                **{name: kind for name, kind in (others or {}).items() if name in layout.names},
            }
            for name, kind in kinds.items():
                _check_kind(location, layout, name, kind)
            table = _bounded(location, file, list(kinds), RESULT_BYTES)
        for place, name in enumerate(table.column_names):
            table = table.set_column(place, name, table.column(name).cast(_KINDS[kinds[name]]))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{location}: expected a Parquet file, this one is damaged ({one_line(error)})"
        ) from error
    return table


def _check_kind(location: Location, layout: pa.Schema, name: str, kind: Kind) -> None:
    if layout.names.count(name) > 1:
        raise UserError(f"{location}: column {name!r}: expected one, there are several")
    stored = layout.field(name).type
    inner = stored.value_type if pa.types.is_dictionary(stored) else stored
    text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    whole = pa.types.is_integer(inner)
    right = {"text": text, "whole": whole, "number": whole or pa.types.is_floating(inner)}[kind]
    if not (right or pa.types.is_null(inner)):
        raise UserError(f"{location}: column {name!r}: expected {kind} values, found {stored}")


def _bounded(location: Location, file: pq.ParquetFile, columns: list[str], most: int) -> pa.Table:
    """The columns, read batch by batch up to the limit."""
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        check_size(str(location), size, most)
    stored = file.schema_arrow
    layout = pa.schema([stored.field(name) for name in columns], metadata=stored.metadata)
    return pa.Table.from_batches(batches).select(columns) if batches else layout.empty_table()
