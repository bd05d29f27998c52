"""Trying again what may pass by itself, with growing pauses."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from contrans_dist.errors import NoAnswerError, PassingError
from contrans_dist.progress import note

P = ParamSpec("P")
T = TypeVar("T")

PAUSES = (5.0, 20.0, 60.0)
"""Seconds before each further try."""
_PATIENT: ContextVar[bool] = ContextVar("patient", default=False)
"""Whether what fails is left to a caller."""


def pause(tries: int) -> float:
    """Seconds to wait after so many failures; drawn, so that many processes do not come back at once."""
    return PAUSES[min(tries, len(PAUSES)) - 1] * random.uniform(0.75, 1.5)


@contextmanager
def once() -> Iterator[None]:
    """In here nothing is tried again: what fails raises its PassingError."""
    token = _PATIENT.set(True)
    try:
        yield
    finally:
        _PATIENT.reset(token)


def patiently(work: Callable[P, T]) -> Callable[P, T]:
    """`work`, tried again after a PassingError; NoAnswerError when it has not passed in the end.

    What it calls is tried again with it, not by itself.
    """

    @wraps(work)
    def tried(*args: P.args, **named: P.kwargs) -> T:
        if _PATIENT.get():
            return work(*args, **named)
        with once():
            for tries in range(1, len(PAUSES) + 2):
                try:
                    return work(*args, **named)
                except PassingError as error:
                    if tries > len(PAUSES):
                        raise NoAnswerError(
                            f"{error}; tried {tries} times: run the same command again"
                        ) from error
                    seconds = pause(tries)
                    note(f"{error}; trying again in {seconds:.0f} s")
                    time.sleep(seconds)
            raise AssertionError("either returned or raised")

    return tried
