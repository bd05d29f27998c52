"""Tasks of a call of the pool, and the actors that have them in hand."""

from dataclasses import dataclass, field
from typing import Any

MAX_ATTEMPTS = 3
"""At work that fails, or is lost."""


@dataclass(frozen=True)
class Task:
    """A unit of work for an actor's `run`."""

    name: str
    """No two tasks of a call have the same."""
    payload: Any
    size: float = 1.0
    """How much work it is, in a unit that all tasks of the call have."""
    attempts: int = MAX_ATTEMPTS
    """After so many failures it is given up."""


@dataclass
class Outcome:
    """What became of all tasks."""

    failures: dict[str, str] = field(default_factory=dict)
    """Task name to the reason of its last failure."""
    deaths: set[str] = field(default_factory=set)
    """Those of them at which an actor died last, by itself."""
    lost_actors: int = 0
    began: float = 0.0
    """When the first actor was up, by `time.monotonic`."""


@dataclass
class Given:
    """A task in an actor's hands."""

    task: Task
    since: float
    hangs: bool = False
    """Whether it was given to another as well."""


@dataclass(eq=False)
class Worker:
    """One place for an actor: the actor that fills it now, and what that one is at."""

    actor: Any
    """None until it is started again."""
    running: dict[Any, Given] = field(default_factory=dict)
    """By the reference of the result to come."""
    up: bool = False
    node: str = ""
    """Where it is, once it is up."""
    leaving: bool = False
    """Whether its node is about to go: it gets nothing more to do."""
    given_up: bool = False
    refused: int = 0
    """How often its construction has failed."""
    ending: bool = False
    """Whether its process has been told to end, and another to take its place."""
    question: tuple[Any, float] | None = None
    """A question how far it is that it has not answered, and since when."""
    told: float = 0.0
    """Its last answer."""

    def has_room(self, slots: int, attempts: dict[str, int]) -> bool:
        """Whether it may be given one more. A task that has failed runs alone: should it take the actor down
        again, it takes no other task with it."""
        alone = any(attempts.get(given.task.name) or given.hangs for given in self.running.values())
        return self.up and not (self.ending or self.leaving) and len(self.running) < slots and not alone
