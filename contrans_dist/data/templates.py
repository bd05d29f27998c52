"""Prompts: what a template makes of each row of a table of texts."""

from collections.abc import Sequence
from string import Formatter

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.config.characters import check_whole
from contrans_dist.data.table_hash import python_values
from contrans_dist.errors import UserError


def template_fields(template: str) -> list[str]:
    """Column names a template asks for. Raises UserError for one that is malformed, lacks `{text}`, or asks
    for anything but a column as it is: a width, a conversion, an attribute, an index."""
    check_whole(template, "template")
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"template {template!r}: {error}") from error
    for _, name, width, conversion in parts:
        if not name or width or conversion or name.isdecimal() or any(mark in name for mark in ".[]{}"):
            placeholder = (
                f"{{{name}{'!' if conversion else ''}{conversion or ''}{':' if width else ''}{width}}}"
            )
            raise UserError(f"template: expected names of columns such as {{text}}, found {placeholder!r}")
    fields = [str(name) for _, name, _, _ in parts]
    if "text" not in fields:
        raise UserError(f"template {template!r}: expected a place for the text, `{{text}}`")
    return fields


def prompts(table: pa.Table, template: str | None) -> list[str]:
    """The prompt of each row: the text itself, or the template filled with the row's columns.

    A two-character `\\n` in a template given on a command line stands for a line break.

    Raises:
        UserError: When the template names a column that the texts lack, or that has no value in some row.
    """
    if template is None:
        return list(table.column("text").to_pylist())
    template = template.replace("\\n", "\n")
    fields = template_fields(template)
    missing = [name for name in fields if name not in table.column_names]
    if missing:
        raise UserError(f"template {template!r}: the texts have no column {missing[0]!r}")
    return _filled(table, template, fields)


def frames(table: pa.Table, template: str) -> tuple[list[str], list[str]]:
    """What a template puts before and after the text of each row, in one that names it twice the first. As
    `prompts`."""
    template = template.replace("\\n", "\n")
    fields = template_fields(template)
    parts = [
        (text.replace("{", "{{").replace("}", "}}"), name) for text, name, *_ in Formatter().parse(template)
    ]
    whole = [text if name is None else f"{text}{{{name}}}" for text, name in parts]
    place = [name for _, name in parts].index("text")
    before, after = "".join(whole[:place]) + parts[place][0], "".join(whole[place + 1 :])
    return _filled(table, before, fields), _filled(table, after, fields)


def _filled(table: pa.Table, template: str, fields: Sequence[str]) -> list[str]:
    fields = list(dict.fromkeys(fields))
    for name in fields:
        if table.column(name).null_count:
            row = pc.index(table.column(name).is_null(), True).as_py()
            raise UserError(f"template {template!r}: column {name!r} has no value in row {row + 1}")
    columns = [python_values(table.column(name)) for name in fields]
    return [template.format(**dict(zip(fields, row, strict=True))) for row in zip(*columns, strict=True)]
