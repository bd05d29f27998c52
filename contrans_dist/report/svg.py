"""From a matplotlib figure to SVG that can stand in a page: clean, deterministic, ids of its own."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_RULE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
"""Its selector would reach the whole page; the style of the element does the same."""
_TAG = re.compile(r"<[^>]*>")
_ID = re.compile(r'\bid="|href="#|url\(#')

_STYLE: dict[Any, Any] = {
    # Text stays text: searchable, small, and a reader's font has letters that ours may lack.
    "svg.fonttype": "none",
    # Names come from users: a dollar sign is a dollar sign.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#444",
    "axes.edgecolor": "#999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e0",
    "grid.linewidth": 0.8,
    "xtick.color": "#999",
    "ytick.color": "#999",
    "xtick.labelcolor": "#444",
    "ytick.labelcolor": "#444",
    "text.color": "#1c1c1a",
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


@contextmanager
def style() -> Iterator[None]:
    """The page's look, for everything drawn and saved inside."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def label(text: str, most: int = 26) -> str:
    """A user's text as a label: one line, only characters that XML allows, shortened with an ellipsis."""
    clean = " ".join(_NOT_XML.sub("\ufffd", text).split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element without XML head, size or date; every id begins with `name`.

    `name` must be unique within the page. The same figure gives the same bytes.
    """
    with mpl.rc_context({"svg.hashsalt": name}):
        target = io.StringIO()
        FigureCanvasSVG(figure).print_svg(target, metadata=_NO_METADATA)
    _, _, drawn = target.getvalue().partition("<svg")
    _, _, content = _RULE.sub("", drawn).partition(">")
    content = _TAG.sub(lambda tag: _ID.sub(rf"\g<0>{name}-", tag[0]), content)
    width, height = (72 * inches for inches in figure.get_size_inches())
    # One scale for all figures, so that their letters have one size; a phone scrolls rather than squints.
    style = f"min-width:{0.76 * width:.0f}px;max-width:{1.6 * width:.0f}px;stroke-linejoin:round"
    title = escape(label(description, 300))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" style="{style}" role="img" aria-label="{title}">{content}'
    ).strip()
