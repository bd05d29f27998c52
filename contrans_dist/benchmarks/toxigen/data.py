"""ToxiGen's statements and prompts, from files or the hub.

ConTrans (section 5.2) evaluates on samples "with a true toxicity label whose toxicity probability is greater
than 0.5". Those are single statements: the data set's `train` table has a label (`prompt_label`) and a
probability (`roberta_prediction`) for each, its prompt files have neither. So a table of statements serves
where there is one, and the prompt files where there is none.
"""

import ast
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyarrow import csv

from contrans_dist.data.text_files import opened, read_parquet
from contrans_dist.data.texts import read_texts
from contrans_dist.errors import UserError, one_line
from contrans_dist.store.location import Location

HUB = "toxigen/toxigen-data"
_TRAIN = ("generation", "group", "prompt_label", "roberta_prediction")
_ANNOTATED = ("text", "target_group", "toxicity_human")
_WORD = re.compile(r"\w+")
_PROMPTS = re.compile(r"(hate|neutral)_(.+?)(?:_\d+k?)?\.txt")


@dataclass(frozen=True)
class Statement:
    """A text about a group, its label, and the probability, by people or a classifier, that it is toxic."""

    text: str
    group: str
    toxic: bool
    probability: float

    @cached_property
    def remarks(self) -> frozenset[str]:
        """Its lines, by their words alone: two texts that share one are not independent."""
        return frozenset(words(line) for line in self.text.split("\n")) - {""}


def words(text: str) -> str:
    """The words of a text in lower case, without punctuation: equal for texts that say the same."""
    return " ".join(_WORD.findall(text.lower()))


def read_statements(source: Location | str | os.PathLike[str] | None) -> list[Statement]:
    """Every distinct text of a folder or file, in order; None loads the `train` table from the hub.

    A folder: `train/*.parquet` (as on the hub), `annotated.csv`, or another `*.parquet`, whichever comes
    first; without one `prompts/` or the folder itself with `hate_<group>*.txt` and `neutral_<group>*.txt`, a
    prompt a line. A table has `generation`, `group`, `prompt_label`, `roberta_prediction`, or `text`,
    `target_group`, `toxicity_human` (1 to 5, taken to 0 to 1) and possibly `label` (hate, neutral). Raises
    UserError for anything else, RunError where the hub does not answer.
    """
    location = Location.parse(source) if source is not None else _from_hub()
    tables = _tables(location)
    if tables:
        statements = [
            statement for table in tables for statement in _from_table(_read_table(table), str(table))
        ]
    else:
        statements = _from_prompts(location)
    distinct: dict[str, Statement] = {}
    for statement in statements:
        if statement.remarks:
            distinct.setdefault(words(statement.text), statement)
    if not distinct:
        raise UserError(f"{location}: expected annotated.csv, *.parquet or prompts hate_<group>.txt")
    return list(distinct.values())


def _from_hub() -> Location:
    from contrans_dist.benchmarks.hub import dataset_folder

    return dataset_folder(HUB, "train/*.parquet")


def _tables(location: Location) -> list[Location]:
    if location.name.endswith((".csv", ".parquet")):
        return [location]
    for folder in (location / "train", location):
        if folder is location and "annotated.csv" in location.names():
            return [location / "annotated.csv"]
        parquet = [folder / name for name in folder.names() if name.endswith(".parquet")]
        if parquet:
            return parquet
    return []


def _read_table(location: Location) -> pa.Table:
    if location.name.endswith(".parquet"):
        return read_parquet(
            location, list(dict.fromkeys((*_TRAIN, *_ANNOTATED, "label"))), "a table in Parquet"
        )
    with opened(location) as stream:
        try:
            table = csv.read_csv(stream, parse_options=csv.ParseOptions(newlines_in_values=True))
            table.column_names  # noqa: B018 - a name that is not UTF-8 is found here
            return table
        except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise UserError(f"{location}: expected a table in CSV ({one_line(error)})") from error


def _from_table(table: pa.Table, where: str) -> list[Statement]:
    present = set(table.column_names)
    if present.issuperset(_TRAIN):
        text, group, label, probability = _columns(table, _TRAIN, where)
        toxic = [value == 1 for value in label]
    elif present.issuperset(_ANNOTATED):
        text, group, rating = _columns(table, _ANNOTATED, where)
        probability = [None if value is None else (value - 1) / 4 for value in rating]
        if "label" in present:
            toxic = [value == "hate" for value in table.column("label").to_pylist()]
        else:
            toxic = [value is not None and value > 0.5 for value in probability]
    else:
        raise UserError(f"{where}: expected columns {', '.join(_TRAIN)}, or {', '.join(_ANNOTATED)}")
    return [
        Statement(plain(t), group_name(g), bad, float(p))
        for t, g, bad, p in zip(text, group, toxic, probability, strict=True)
        if t and g and p is not None
    ]


def _columns(table: pa.Table, names: Sequence[str], where: str) -> list[list[Any]]:
    """Columns as values: first a text and a group, then numbers. Raises UserError for other types."""
    columns = []
    for place, name in enumerate(names):
        wanted = pa.string() if place < 2 else pa.float64()
        try:
            column = table.column(name)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise pa.ArrowInvalid(f"found {kind}")
            columns.append(column.cast(wanted).to_pylist())
        except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: column {name!r}: expected {wanted} ({one_line(error)})") from error
    return columns


def _from_prompts(location: Location) -> list[Statement]:
    statements = []
    for folder in (location / "prompts", location):
        for name in folder.names():
            kind = _PROMPTS.fullmatch(name)
            if kind is None:
                continue
            toxic = kind[1] == "hate"
            texts = read_texts(folder / name).column("text").to_pylist()
            statements += [Statement(plain(text), group_name(kind[2]), toxic, float(toxic)) for text in texts]
        if statements:
            break
    return statements


def plain(text: str) -> str:
    """Without the b'...' that the annotations are wrapped in, and with real line breaks."""
    if re.fullmatch(r"b(['\"]).*\1", text, flags=re.DOTALL):
        try:
            literal = ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            literal = None
        text = literal.decode(errors="replace") if isinstance(literal, bytes) else text[2:-1]
    return text.replace("\\n", "\n").strip()


def group_name(name: str) -> str:
    """A group's name as a part of ids and of metrics' names."""
    return re.sub(r"[^\w-]+", "_", name.strip())
