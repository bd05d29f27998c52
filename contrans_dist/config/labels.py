"""Labels of nodes that are asked for, as Ray understands them."""

import re

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_WANTED = rf"!?{_VALUE}|!?in\({_VALUE}(?:, ?{_VALUE})*\)"
_PAIR = re.compile(rf"\s*({_NAME})\s*=\s*({_WANTED})\s*(?:,|$)")


def parse_selector(text: str | None) -> dict[str, str]:
    """`name=value,...` by name; a value is `H100`, `!H100`, `in(H100, A100)` or `!in(H100, A100)`.

    Raises ValueError for anything else.
    """
    found: dict[str, str] = {}
    at = 0
    while text and at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None or pair[1] in found:
            raise ValueError("expected name=value,... with a value as H100, !H100, in(H100, A100)")
        found[pair[1]] = pair[2].replace(" ", "")  # Ray takes a space behind a comma for part of the name
        at = pair.end()
    return found


def matches(label: str | None, wanted: str) -> bool:
    """Whether a label is what a selector wants; None is a label that is not there."""
    value = wanted.removeprefix("!")
    values = value[3:-1].split(",") if value.startswith("in(") else [value]
    return (label in values) != wanted.startswith("!")
