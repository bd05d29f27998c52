"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def until(
    true: Callable[..., object], what: str | Callable[[], str] = "", seconds: float = 600, pause: float = 0.02
) -> None:
    """Wait until it is. `what` says what is waited for, or why it may not come: an assertion holds it."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause)
