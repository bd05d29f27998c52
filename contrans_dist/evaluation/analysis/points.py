"""Which condition of an evaluation is under test, and at which strength each one is read."""

from collections.abc import Iterable
from typing import Literal

from contrans_dist.evaluation.analysis.scores import Evaluation, Reported
from contrans_dist.evaluation.conditions import condition_of
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


def best_point(evaluation: Evaluation, condition: str, key: str) -> tuple[float, Score] | None:
    """Strength and score at which a condition is read in a metric; None where it was not scored.

    The strength that was chosen for it, else the one at which it does most, the lowest among equals. A cost
    is read at the strength that the run's main evaluation reports, else at the greatest.
    """
    point = _point(evaluation, condition, key)
    return point[:2] if point else None


def way_of(evaluation: Evaluation, condition: str, key: str) -> Way | None:
    """How the strength of `best_point` came about."""
    point = _point(evaluation, condition, key)
    return point[2] if point else None


def _point(evaluation: Evaluation, condition: str, key: str) -> tuple[float, Score, Way] | None:
    kind = evaluation.metric(key)
    points = {at: score for at, score in evaluation.curve(condition, key) if at != 0}
    if not points:
        return None
    chosen = evaluation.search.chosen.get(condition) if evaluation.search else None
    if chosen is not None and chosen in points:
        return chosen, points[chosen], "chosen"
    if kind.cost:
        reported = evaluation.reported.get(condition)
        if reported and reported.strength in points:
            return reported.strength, points[reported.strength], "reported"
        greatest = max(points, key=abs)
        return greatest, points[greatest], "greatest"
    sign = 1 if kind.higher else -1
    best = max(points, key=lambda at: (sign * points[at].value, -at))
    return best, points[best], "best"


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
                strengths.setdefault(condition, Reported(point[0], evaluation.name))
    return strengths
