"""Trying again what may pass by itself, with growing pauses."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from contrans_dist.console import note
from contrans_dist.errors import NoAnswerError, PassingError

P = ParamSpec("P")
T = TypeVar("T")

PAUSES = (5.0, 20.0, 60.0)
"""Seconds before each further try."""
_BUDGET_SECONDS = 120.0
"""After which there is no further try: each may have waited for silence. With the longest try it is less than
the time after which an actor is taken to hang for good, so that it can say what it waited for."""
_PATIENT: ContextVar[bool] = ContextVar("patient", default=False)
"""Whether what fails is left to a caller."""
_BRIEF: ContextVar[bool] = ContextVar("brief", default=False)
"""Whether each request is to be made once, and waited for but seconds."""


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


@contextmanager
def briefly() -> Iterator[None]:
    """`once`, and with seconds for each request: for what need not be done, as cleaning up."""
    token = _BRIEF.set(True)
    try:
        with once():
            yield
    finally:
        _BRIEF.reset(token)


def brief() -> bool:
    """Whether this is within `briefly`."""
    return _BRIEF.get()


def patiently(work: Callable[P, T]) -> Callable[P, T]:
    """`work`, tried again after a PassingError; what it calls is tried again with it, not by itself.

    Raises:
        NoAnswerError: When it has not passed in the end.
    """

    @wraps(work)
    def tried(*args: P.args, **named: P.kwargs) -> T:
        if _PATIENT.get():
            return work(*args, **named)
        began = time.monotonic()
        with once():
            for tries in range(1, len(PAUSES) + 2):
                try:
                    return work(*args, **named)
                except PassingError as error:
                    left = _BUDGET_SECONDS - (time.monotonic() - began)
                    if tries > len(PAUSES) or left <= 0:
                        raise NoAnswerError(
                            f"{error}; tried {tries} times: run the same command again"
                        ) from error
                    seconds = min(pause(tries), left)
                    note(f"{error}; trying again in {seconds:.0f} s")
                    time.sleep(seconds)
            raise AssertionError("either returned or raised")

    return tried
