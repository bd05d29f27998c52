"""What is fit to print, log and store: without secrets, and without what steers a terminal."""

import json
import re
import unicodedata
from collections.abc import Callable

# Up to the last @ of the authority; a secret with a slash in it reaches beyond that, up to the last @ at all.
_CREDENTIALS = re.compile(r"(\w:/{1,2})(?:[^\s/\"<>]*@|[^\s/@:\"<>]*:(?!\d+(?:/|\s|$))[^\s\"<>]*@)")
_SECRET_OPTION = re.compile(
    r"([?&][^=&\s\"<>]*(?:token|secret|passw|key|sig|credential)[^=&\s\"<>]*=)[^&\s\"<>]+", re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """The text with user, password and secret options taken out of every URI in it."""
    return _SECRET_OPTION.sub(r"\1***", _CREDENTIALS.sub(r"\1", text))


def _as_python(letter: str) -> str:
    return repr(letter)[1:-1]


def printable(text: str, keep: str = "", escaped: Callable[[str], str] = _as_python) -> str:
    """The text with what moves the cursor, colours or hides `escaped`, as `\\x1b`; `keep` stays as it is."""
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else escaped(c)
        for c in text
    )


def shown(text: object, keep: str = "\n") -> str:
    """Anything as a person may be shown it: `without_credentials`, and `printable`."""
    return printable(without_credentials(str(text)), keep)


def json_line(value: object) -> str:
    """One line of JSON that a terminal takes for text as well. Raises ValueError for NaN."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return printable(line, escaped=lambda letter: json.dumps(letter)[1:-1])
