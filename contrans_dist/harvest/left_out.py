"""Texts that a model cannot run: named, and left out of a set if that is accepted."""

from collections.abc import Sequence
from itertools import islice

import pyarrow as pa

from contrans_dist.console import note
from contrans_dist.data.text_files import lines
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.runnable import FATAL, SPOILT
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Skipped

_SHOWN = 3
_WORDS = 60
_BY_LINE = (".txt", ".jsonl")


def check_left_out(
    out: Location, skipped: Sequence[Skipped], texts: pa.Table, source: Location | None, accepted: bool
) -> None:
    """Say which of the texts are left out of the set, where that is accepted.

    Raises UserError otherwise, RunError where all that is wrong with them is NaN or infinity, or that their
    process dies.
    """
    if not skipped:
        return
    named = "; ".join(f"{place_of(texts, text.row, source)}: {text.reason}" for text in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    told = f"{out}: {len(skipped)} of {texts.num_rows:,} texts cannot be run: {named}{more}"
    if accepted and len(skipped) < texts.num_rows:
        note(f"{told}; they are left out")
        return
    way_out = "; the others are done: --skip-bad leaves these out" if len(skipped) < texts.num_rows else ""
    failed = all(text.reason.startswith((FATAL, SPOILT)) for text in skipped)
    raise (RunError if failed else UserError)(told + way_out)


def place_of(texts: pa.Table, row: int, source: Location | None) -> str:
    """Where a text stands, and how it begins."""
    words = " ".join(str(texts.column("text")[row].as_py()).split())
    shown = repr(words if len(words) <= _WORDS else words[:_WORDS] + "...")
    if source is None:
        return f"row {row} ({shown})"
    by_line = lines(source) if source.name.lower().endswith(_BY_LINE) else ()
    line = next((number for number, _ in islice(by_line, row, None)), None)
    return f"{source}, {f'row {row}' if line is None else f'line {line}'} ({shown})"
