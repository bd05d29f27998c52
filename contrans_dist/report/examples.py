"""Continuations before and after, side by side, and the tokens that rise and fall."""

from dataclasses import dataclass

from contrans_dist.benchmarks import about
from contrans_dist.evaluation.analysis import (
    Evaluation,
    Verdict,
    number,
    read_examples,
    read_tokens,
    strength_text,
)
from contrans_dist.evaluation.conditions import BASE, condition_of
from contrans_dist.report.parts import Cell, Table
from contrans_dist.store.tables import ContinuationRow

_MOST_LETTERS = 700
_OPEN = 6
"""Examples that are shown at once; the others are folded."""


@dataclass(frozen=True)
class Said:
    """One continuation as it is shown."""

    title: str
    text: str
    note: str
    kind: str


@dataclass(frozen=True)
class Shown:
    """A prompt with its continuations side by side."""

    group: str
    prompt: str
    said: list[Said]


@dataclass(frozen=True)
class Examples:
    """Examples of an evaluation; offensive ones are all folded behind a warning."""

    first: list[Shown]
    rest: list[Shown]
    offensive: bool
    caption: str


def examples_of(evaluation: Evaluation, verdict: Verdict) -> Examples | None:
    """Examples at the strengths of the verdict: unsteered, under the effect, and what it is compared with."""
    points = {verdict.effect.name: verdict.strength}
    points |= {
        rival.condition.name: rival.strength
        for rival in [*verdict.references, *verdict.controls]
        if rival.condition.role != "control" or rival.condition.drawn
    }
    found = [
        Shown(
            " · ".join(part for part in (each.group, each.kind) if part and part != "evaluation"),
            _cut(each.prompt),
            [_said(continuation) for continuation in each.continuations],
        )
        for each in read_examples(evaluation, points)
    ]
    if not found:
        return None
    offensive = about(evaluation.benchmark).offensive
    first = 0 if offensive else _OPEN
    return Examples(
        found[:first],
        found[first:],
        offensive,
        "The first prompts of each group, whatever came of them: none is picked by its outcome.",
    )


def _said(continuation: ContinuationRow) -> Said:
    name = condition_of(continuation.condition) if continuation.strength else BASE
    at = continuation.strength and not name.no_vector
    judged = continuation.toxicity
    return Said(
        title=name.title + (f", {strength_text(continuation.strength)}" if at else ""),
        text=_cut(continuation.continuation) or "(nothing)",
        note="" if judged is None else f"toxic with probability {number(judged, True, 0)}",
        kind="base" if name is BASE else name.role,
    )


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"


def token_table(evaluation: Evaluation, verdict: Verdict) -> Table | None:
    """Table 8: for each concept the tokens that rise most and fall most, with the number of prompts."""
    found = read_tokens(evaluation, verdict.effect.name, verdict.strength)
    if not found:
        return None
    rows = [
        [
            Cell(moved.concept, f"{moved.n_prompts} prompts"),
            Cell(_tokens(moved.up)),
            Cell(_tokens(moved.down)),
        ]
        for moved in found
    ]
    first = found[0]
    return Table(
        ["Concept", "Rise most", "Fall most"],
        rows,
        f"{condition_of(first.condition).title} at strength {strength_text(first.strength)}. The number is "
        "of prompts in which a token is among those whose probability rises, or falls, most. "
        "␣: a space before the word.",
        numbers=False,
    )


def _tokens(tokens: list[tuple[str, int]]) -> str:
    return " · ".join(f"{_visible(text)}\u00a0{count}" for text, count in tokens) or "–"


def _visible(text: str) -> str:
    """A token with its whitespace visible: what differs must look different."""
    shown = text.replace("\n", "↵").replace("\t", "⇥")
    start = len(shown) - len(shown.lstrip(" "))
    return "␣" * start + shown[start:]
