"""The two ways in which the program ends without success."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. One line that names the file, line, field or flag and what was expected; exit code 2."""


class UnwritableError(UserError):
    """A place where nothing can be written, or not any more; a store that refuses what is asked of it."""


class ClaimedError(UnwritableError):
    """A place where another run is at work, under other settings."""


class NoGpuError(UserError):
    """A GPU that torch cannot compute on: neither more of them nor another try helps."""


class RunError(Exception):
    """A failure while running. One line that names what is missing and how to go on; exit code 1."""


class PassingError(RunError):
    """A failure that may pass by itself, as a server that is too busy: worth another try."""


class OverflowedError(RunError):
    """Logits of a model that are no numbers, under some interventions: another try finds the same."""

    lost: frozenset[tuple[str, float]] = frozenset()
    """Condition and strength of each."""


class NoAnswerError(RunError):
    """A server or store has not answered in all the tries it was given, or grants no more what it did, or a
    disk is full: what else needs it would fail too."""


def meant(name: str, names: Sequence[str]) -> str:
    """What somebody who wrote an unknown name is told: the nearest of those there are, else all of them."""
    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"


def one_line(content: object) -> str:
    """What an error of others, or anything else, says: one line of at most 300 characters."""
    text = " ".join(str(content).split()).rstrip(".") or type(content).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def short(value: object, most: int = 60) -> str:
    """A value as Python writes it, in a message: of a long one the beginning."""
    shown = repr(value)
    return shown if len(shown) <= most else f"{shown[:most]}..."


def listed(names: Iterable[str]) -> str:
    """Names that a stranger chose, in a message: one that cannot be printed as Python writes it; of many the
    first."""
    return ", ".join(name if name.isprintable() else repr(name) for name in names)[:200]


def first_line(error: BaseException) -> str:
    """The first line of what an exception of others says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
