"""JSON from anywhere as plain data."""

import json
import math
from collections import Counter
from typing import Any

from contrans_dist.config.characters import check_whole
from contrans_dist.errors import UserError, one_line


def parse_json(data: bytes | str, where: str, expected: str = "JSON", *, finite: bool = True) -> Any:
    """JSON of whole characters, as plain data.

    Args:
        data: The text.
        where: What the message of an error begins with.
        expected: What the message says that it should have been.
        finite: Refuse NaN and numbers beyond float64, which texts of others may hold and files of ours not.

    Raises:
        UserError: For anything else, a key that is there twice and endless nesting included.
    """
    number = _finite if finite else float
    try:
        content = json.loads(data, object_pairs_hook=_distinct, parse_constant=number, parse_float=number)
    except RecursionError as error:
        raise UserError(f"{where}: expected {expected}, found lists in lists without end") from error
    except ValueError as error:  # a UnicodeDecodeError is one
        raise UserError(f"{where}: expected {expected} ({one_line(error)})") from error
    if isinstance(data, bytes) or "\\u" in data:
        check_whole(json.dumps(content, ensure_ascii=False), where)
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {name!r} is there twice")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number
