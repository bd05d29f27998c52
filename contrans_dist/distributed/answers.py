"""What comes back from tasks and actors: values, errors as they were raised, and what was lost."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from contrans_dist.console import note
from contrans_dist.distributed.workers import MAX_ATTEMPTS
from contrans_dist.errors import RunError, UserError, first_line


def answer(ask: Callable[[], Any]) -> Any:
    """The values behind the references that `ask` makes of tasks. What was lost, with a node or for want of
    memory, is asked for again.

    Raises a task's UserError or RunError as they are, any other error as RunError.
    """
    reason = ""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return value(ask())
        except RayError as error:
            reason = first_line(error)
            if attempt == MAX_ATTEMPTS:
                raise RunError(
                    f"work was lost {attempt} times ({reason}); run the same command again"
                ) from error
            note(f"work was lost ({reason}); it is done again")
    raise AssertionError("either returned or raised")


def value(references: Any) -> Any:
    """The values behind references of tasks. Raises a task's UserError or RunError as they are, any other
    error of it as RunError; and RayError for what was lost."""
    try:
        return ray.get(references)
    except RayError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError) and cause.cause is not None:
            cause = cause.cause
        if isinstance(cause, UserError | RunError):
            raise cause from None
        if not isinstance(cause, RayError) or isinstance(cause, RayTaskError):
            raise RunError(first_line(cause)) from error
        raise cause from None
