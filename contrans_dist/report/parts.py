"""The pieces a page is put together from: tables, bars and drawings, as plain data for the template."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import pyarrow as pa
import pyarrow.csv
from markupsafe import Markup
from matplotlib.figure import Figure

from contrans_dist.evaluation.analysis import number
from contrans_dist.report.svg import style, to_svg
from contrans_dist.store.location import Location
from contrans_dist.store.results import Score


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a text, a smaller note under it, and a CSS class (`best`, `warn`, `quiet`).

    `link` leads to another page beside this one; `aside` is what somebody else found.
    """

    text: str
    note: str = ""
    kind: str = ""
    span: int = 1
    link: str = ""
    aside: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; `numbers` aligns the others to the right.

    `compact` keeps it as narrow as its content.
    """

    head: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    numbers: bool = True
    compact: bool = False

    def with_columns(self, wanted: Sequence[bool]) -> "Table":
        """The same with those columns alone that are wanted."""
        rows = [list(compress(row, wanted)) for row in self.rows]
        return replace(self, head=list(compress(self.head, wanted)), rows=rows)


@dataclass(frozen=True)
class Bar:
    """A value as a bar with its interval; positions in percent of the width."""

    title: str
    value: str
    note: str
    width: float
    whisker: tuple[float, float] | None
    """None where there is no interval."""
    colour: str
    main: bool


@dataclass(frozen=True)
class Drawing:
    """A figure in the page, and the files it is kept in."""

    svg: Markup
    caption: str
    data_file: str


@dataclass
class Studio:
    """Draws figures, names them uniquely within the page, and keeps what is to be written beside it."""

    files: dict[str, bytes] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def name(self, *parts: str) -> str:
        """A file name and id from texts of any kind, never given out twice."""
        plain = "-".join(slug for part in parts if (slug := _slug(part))) or "figure"
        candidate, count = plain, 1
        while candidate in self._names:
            count += 1
            candidate = f"{plain}-{count}"
        self._names.add(candidate)
        return candidate

    def draw(self, parts: Sequence[str], make: Callable[[], Figure], data: pa.Table, caption: str) -> Drawing:
        """Draw a figure, named by `parts` as `name` does; `data` is what it shows."""
        name = self.name(*parts)
        with style():
            svg = to_svg(make(), name, caption)
        self.files[f"{name}.svg"] = svg.encode()
        self.files[f"{name}.csv"] = csv_bytes(data)
        return Drawing(Markup(svg), caption, f"figures/{name}.csv")

    def publish(self, folder: Location) -> None:
        """Write every figure and its data into a folder; those of an earlier page that are gone go too."""
        for name, data in sorted(self.files.items()):
            (folder / name).write_bytes(data)
        for name in (name for name in folder.names() if name.endswith(".svg") and name not in self.files):
            # `to_svg` put the name into the figure; a file that somebody else laid here has no such mark.
            if f'id="{name.removesuffix(".svg")}-figure_1"'.encode() in (folder / name).read_bytes():
                (folder / name).delete()
                (folder / f"{name.removesuffix('.svg')}.csv").delete()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def csv_bytes(table: pa.Table) -> bytes:
    """A table as CSV with a header line."""
    target = io.BytesIO()
    pyarrow.csv.write_csv(table, target)
    return target.getvalue()


def interval_text(score: Score, as_percent: bool) -> str:
    """`[74.1, 81.5]`, in the unit of the value beside it; `no interval` where there is none."""
    if score.interval is None:
        return "no interval"
    scale, digits = (100, 1) if as_percent else (1, 2)
    low, high = score.interval
    return f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def score_cell(score: Score | None, as_percent: bool, show_n: bool, kind: str = "") -> Cell:
    """A score with its interval, and its n where it differs from cell to cell."""
    if score is None:
        return Cell("–", kind="quiet")
    note = interval_text(score, as_percent) + (f" n\u202f{score.n or 0}" if show_n else "")
    return Cell(number(score.value, as_percent, 1 if as_percent else 2), note, kind)


def seconds_text(seconds: float) -> str:
    """A duration for people: `31 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.1f}\u202fs" if seconds < 10 else f"{seconds:.0f}\u202fs"
    return f"{seconds / 60:.0f}\u202fmin" if seconds < 5400 else f"{seconds / 3600:.1f}\u202fh"


def count_text(count: float) -> str:
    """A count with thin spaces between the thousands."""
    return f"{count:,.0f}".replace(",", "\u202f")
