"""The files of an evaluation and of a run: their names, and one model of each, for all who read them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, NonNegativeInt
from pydantic_core import PydanticCustomError

from contrans_dist.config import FileModel
from contrans_dist.config.limits import CONDITION_ROWS, RESULT_BYTES, check_size
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

RESULTS, METRICS, SEARCH = "results.parquet", "metrics.json", "search.json"
EXAMPLES, TOKENS = "examples.parquet", "tokens.parquet"
RECORD = "run.json"
PValues = dict[str, float]
"""By metric."""
F = TypeVar("F", bound=FileModel)
_BATCH_ROWS = 256
_COMMON = re.compile(r"(\.\./){0,3}activations/(?!\.\.?$)[^/\\\0]+")


class ScoreEntry(FileModel):
    """A metric: its value, 95 % interval and number of items."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: NonNegativeInt | None = None


class ConditionEntry(FileModel):
    """A condition at one strength."""

    condition: str
    strength: float
    metrics: dict[str, ScoreEntry]
    p_vs_base: PValues | None = None
    p_vs: dict[str, PValues] | None = None
    p_vs_elsewhere: dict[str, dict[float, PValues]] | None = None


class LeakEntry(FileModel):
    """What the leak check found."""

    evaluated: NonNegativeInt
    overlap_vector: NonNegativeInt | None = None
    overlap_map: NonNegativeInt | None = None
    examples: list[str] | None = None


class TaskEntry(FileModel):
    """How a task of lm-evaluation-harness was run."""

    higher_is_better: dict[str, bool | None] | None = None


class MetricsFile(FileModel):
    """`metrics.json`."""

    benchmark: str
    model: str
    conditions: list[ConditionEntry]
    reference: str | None = None
    protocol: str | None = None
    block: NonNegativeInt | None = None
    blocks: list[NonNegativeInt] | None = None
    strengths: list[float] | None = None
    leak: LeakEntry | None = None
    notes: list[str] | None = None
    costs: dict[str, dict[str, float]] | None = None
    throughput: dict[str, int | float | str] | None = None
    rows: dict[str, NonNegativeInt] | None = None
    tasks: dict[str, TaskEntry] | None = None
    identity: dict[str, Any] | None = None
    fingerprint: str | None = None
    versions: dict[str, str] | None = None
    command: str | None = None
    git_commit: str | None = None
    created: str | None = None


class CandidateEntry(FileModel):
    """A condition at a strength that was tried."""

    condition: str
    strength: float
    score: float | None
    perplexity: float | None = None


class SearchFile(FileModel):
    """`search.json`."""

    criterion: str
    higher: bool
    budget: float | None = None
    base_perplexity: float | None = None
    candidates: list[CandidateEntry]
    chosen: dict[str, float]


class StageEntry(FileModel):
    """A stage of a run."""

    name: str
    seconds: Annotated[float, Field(ge=0)]


def _common(path: str) -> str:
    if not _COMMON.fullmatch(path):
        raise PydanticCustomError("place", "a folder in the common activations/ of a recipe's runs")
    return path


class RunFile(FileModel):
    """`run.json`."""

    name: str | None = None
    description: str | None = None
    command: str | None = None
    git_commit: str | None = None
    versions: dict[str, str] | None = None
    started: str | None = None
    finished: str | None = None
    stages: list[StageEntry] | None = None
    activations: dict[str, Annotated[str, AfterValidator(_common)]] | None = None
    """Activation sets that runs share, by name, as seen from the run's folder."""


def read_file(location: Location, model: type[F]) -> F:
    """A JSON file as its model. Raises UserError that names file and field."""
    return validated(model, location.read_json(), str(location))


def read_metrics(folder: Location) -> MetricsFile:
    """The `metrics.json` of an evaluation's folder. Raises UserError that names file and field."""
    found = read_file(folder / METRICS, MetricsFile)
    check_size(f"{folder / METRICS}: conditions", len(found.conditions), CONDITION_ROWS, "entries")
    return found


Kind = Literal["text", "number", "whole"]
_KINDS = {"text": pa.string(), "number": pa.float64(), "whole": pa.int64()}


def read_columns(
    location: Location, needed: Mapping[str, Kind], also: Mapping[str, Kind] | None = None
) -> pa.Table | None:
    """Columns of a Parquet file as strings, float64 and int64: `needed`, and those of `also` that are there.

    None where a needed column is missing. Raises UserError for a damaged file, columns of another kind, and
    more than `limits.RESULT_BYTES`.
    """
    try:
        with location.open() as source:
            file = pq.ParquetFile(source)
            there = file.schema_arrow
            if not set(needed) <= set(there.names):
                return None
            wanted = {**needed, **{name: kind for name, kind in (also or {}).items() if name in there.names}}
            for name, kind in wanted.items():
                _check_kind(location, there, name, kind)
            table = _bounded(location, file, list(wanted))
        for place, name in enumerate(table.column_names):
            table = table.set_column(place, name, table.column(name).cast(_KINDS[wanted[name]]))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{location}: expected a Parquet file, this one is damaged ({reason})") from error
    return table


def _check_kind(location: Location, there: pa.Schema, name: str, kind: Kind) -> None:
    if there.names.count(name) > 1:
        raise UserError(f"{location}: column {name!r}: expected one, there are several")
    found = there.field(name).type
    inner = found.value_type if pa.types.is_dictionary(found) else found
    text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    whole = pa.types.is_integer(inner)
    right = {"text": text, "whole": whole, "number": whole or pa.types.is_floating(inner)}[kind]
    if not (right or pa.types.is_null(inner)):
        raise UserError(f"{location}: column {name!r}: expected {kind} values, found {found}")


def _bounded(location: Location, file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """The columns, read batch by batch up to the limit."""
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        check_size(str(location), size, RESULT_BYTES)
    schema = pa.schema([file.schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(batches).select(columns) if batches else schema.empty_table()
