"""JSON from anywhere as plain data."""

import json
import math
from typing import Any

from contrans_dist.errors import UserError


def parse_json(data: bytes | str, where: str) -> Any:
    """JSON as plain data. Raises UserError, which begins with `where`, for anything else, NaN included."""
    try:
        value = json.loads(data, parse_constant=_finite, parse_float=_finite)
        if (b"\\ud" if isinstance(data, bytes) else "\\ud") in data.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UserError(f"{where}: expected JSON, found lists in lists without end") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: expected JSON, found half of a surrogate pair") from error
    except ValueError as error:  # a UnicodeDecodeError is one
        raise UserError(f"{where}: expected JSON ({error})") from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number
