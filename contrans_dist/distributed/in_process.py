"""An actor of the driver's own process, for work that takes less time than Ray takes to start."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from contrans_dist.distributed.watch import watch
from contrans_dist.distributed.workers import MAX_ATTEMPTS, Outcome, Task
from contrans_dist.errors import NoAnswerError, OverflowedError, RunError, UserError, first_line

_ASK_SECONDS = 1.0


class InProcess:
    """What `Actors` is on a cluster: made when it is first needed, there until `end`."""

    def __init__(self, actor_class: Any, arguments: Sequence[Any]) -> None:
        self._make = lambda: actor_class(*arguments)
        self._actor: Any = None

    def end(self) -> None:
        if hasattr(self._actor, "end"):
            self._actor.end()
        self._actor = None

    def run(
        self,
        tasks: Sequence[Task],
        on_result: Callable[[Task, Any], None],
        shared: Any = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Outcome:
        """Every task in turn, in the calling thread, so that a signal finds it; arguments and errors as of
        `pool.run_tasks`."""
        if self._actor is None:
            self._actor = self._made()
        outcome, attempts, unanswered = Outcome(began=time.monotonic()), Counter[str](), 0
        common, left = () if shared is None else (shared,), deque(tasks)
        watch().actors = 1
        with _asked(self._actor, on_progress):
            while left:
                task, began = left.popleft(), time.monotonic()
                try:
                    result = self._actor.run(task.payload, *common)
                except (UserError, OverflowedError):
                    raise  # bad input stays bad
                except Exception as error:
                    attempts[task.name] += 1
                    if isinstance(error, NoAnswerError):
                        unanswered += 1
                        if unanswered >= MAX_ATTEMPTS:  # each waited for minutes
                            raise
                    if attempts[task.name] < task.attempts:
                        left.append(task)
                    else:
                        outcome.failures[task.name] = first_line(error)
                        watch().gave_up(task.name, first_line(error))
                else:
                    unanswered = 0
                    watch().done(task.name, time.monotonic() - began)
                    on_result(task, result)
        return outcome

    def _made(self) -> Any:
        try:
            return self._make()
        except (UserError, RunError):
            raise
        except Exception as error:
            kind = type(error).__name__
            raise RunError(f"{kind}: {first_line(error)}; run the same command again to go on") from error


@contextmanager
def _asked(actor: Any, on_progress: Callable[[float], None] | None) -> Iterator[None]:
    """`on_progress` is called every second or so with how far the actor's running task is."""
    if on_progress is None:
        yield
        return
    over = threading.Event()

    def ask() -> None:
        while not over.wait(_ASK_SECONDS):
            on_progress(actor.progress())

    asking = threading.Thread(target=ask, name="progress", daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
