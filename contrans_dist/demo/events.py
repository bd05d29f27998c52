"""What can happen in the demo's world: event patterns for each of the six emotions, and neutral ones.

A line of `patterns/<emotion>.txt` is a clause in the past tense. `[a|b]` is a choice; `{I}`, `{me}`, `{my}`
and `{was}` stand for the person it happens to ("you ... your ... were", "Mia ... her ... was"). Every way of
filling a pattern's choices is one event, so that an event can be held out while its words are known from
other events. No pattern names an emotion.
"""

from pathlib import Path

EMOTIONS = ("happiness", "sadness", "anger", "fear", "disgust", "surprise")


def patterns(name: str) -> list[str]:
    """The patterns of an emotion, or the `neutral` ones."""
    return (Path(__file__).parent / "patterns" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


OPENINGS = (
    "",
    "one day",
    "yesterday",
    "last week",
    "this morning",
    "on Monday",
    "on Friday evening",
    "after lunch",
    "before breakfast",
    "in the afternoon",
    "at the weekend",
    "during the holidays",
    "when {I} {was} on the way home",
    "after work",
    "on a quiet day",
    "as {I} arrived in town",
    "later that day",
    "in spring",
)
CLOSINGS = (
    "",
    "",
    "",
    "just before dinner",
    "while {my} neighbour looked on",
    "at about nine",
    "as the clock struck four",
    "and people stopped to look",
    "not far from home",
    "and it took only a minute",
)
