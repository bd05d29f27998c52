"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def until(
    true: Callable[..., object], what: str | Callable[[], str] = "", seconds: float = 600, pause: float = 0.02
) -> None:
    """Wait until it is. Raises AssertionError after so many seconds, with `what` is waited for, or what it
    gives."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause)
