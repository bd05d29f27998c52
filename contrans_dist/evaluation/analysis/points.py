"""Which condition of an evaluation is under test, and at which strength each one is read."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from contrans_dist.evaluation.analysis.scores import Evaluation, Reported
from contrans_dist.evaluation.conditions import BASE, condition_of
from contrans_dist.store.results import Score

Way = Literal["chosen", "reported", "best", "greatest", "given"]
"""How a strength came about: chosen on validation items; that of the run's main evaluation; the best of the
sweep; the greatest of it; asked for."""


def main_condition(evaluation: Evaluation) -> str | None:
    """The condition under test: the one that others were tested against, else by what conditions are for."""
    if evaluation.file.reference in evaluation.conditions:
        return evaluation.file.reference
    names = [condition_of(key) for key in evaluation.conditions]
    for role in ("tested", "variant", "yardstick", "baseline"):
        condition = next((name.name for name in names if name.role == role), None)
        if condition:
            return condition
    return None


class Point(NamedTuple):
    """Where a condition is read in a metric."""

    strength: float
    score: Score
    way: Way
    """How the strength came about."""


def best_point(evaluation: Evaluation, condition: str, key: str) -> Point | None:
    """Where a condition is read in a metric; None where it was not scored.

    At the strength that was chosen for it, else the one at which it does most, the lowest among equals. A
    cost is read at the strength that the run's main evaluation reports, else at the greatest. Base: at 0.
    """
    if condition == BASE.name:
        base = evaluation.base(key)
        return Point(0.0, base, "given") if base else None
    kind = evaluation.metric(key)
    scores = {at: score for at, score in evaluation.curve(condition, key) if at != 0}
    if not scores:
        return None
    chosen = evaluation.search.chosen.get(condition) if evaluation.search else None
    if chosen is not None and chosen in scores:
        return Point(chosen, scores[chosen], "chosen")
    if kind.cost:
        reported = evaluation.reported.get(condition)
        if reported and reported.strength in scores:
            return Point(reported.strength, scores[reported.strength], "reported")
        greatest = max(scores, key=abs)
        return Point(greatest, scores[greatest], "greatest")
    sign = 1 if kind.higher else -1
    best = max(scores, key=lambda at: (sign * scores[at].value, -at))
    return Point(best, scores[best], "best")


def reported_strengths(evaluations: Iterable[Evaluation]) -> dict[str, Reported]:
    """The strength of each condition in the first evaluation of a run that steers it and is no cost."""
    strengths: dict[str, Reported] = {}
    for evaluation in evaluations:
        key = next(iter(evaluation.metrics), None)
        if key is None or evaluation.metric(key).cost:
            continue
        for condition in evaluation.conditions:
            point = best_point(evaluation, condition, key)
            if point:
                strengths.setdefault(condition, Reported(point.strength, evaluation.name))
    return strengths
