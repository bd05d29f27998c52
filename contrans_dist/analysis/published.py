"""What a paper found, beside what a run found: `published` of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contrans_dist.analysis.scores import Evaluation, Score
from contrans_dist.analysis.verdict import best_point

Values = dict[str, dict[str, dict[str, float]]]
"""evaluation -> condition -> metric -> value"""


@dataclass(frozen=True)
class Published:
    """The figures of a paper for one run, in the units of the metrics."""

    source: str
    remarks: str
    values: Values
    every: dict[str, Values]
    """The figures of all runs that the paper has, by run."""


@dataclass(frozen=True)
class Beside:
    """One figure of the paper and ours: at the chosen strength, else at the best of the sweep."""

    condition: str
    metric: str
    paper: float
    ours: Score | None
    strength: float | None
    """None where nothing is added, and where ours is missing."""
    chosen: bool
    """Whether the strength was chosen on validation items."""

    @property
    def agrees(self) -> bool | None:
        """Whether the paper's value lies in our interval; None without one."""
        if self.ours is None or self.ours.low == self.ours.high:
            return None
        return self.ours.low <= self.paper <= self.ours.high


def read_published(recipe: dict[str, Any], run: str) -> Published | None:
    """What is published for a run of a recipe, read as plain data; None where nothing is published."""
    content = recipe.get("published")
    if not isinstance(content, dict):
        return None
    every: dict[str, Values] = content.get("values") or {}
    return Published(
        str(content.get("source") or ""), str(content.get("remarks") or ""), every.get(run) or {}, every
    )


def beside(
    published: Published, evaluation: Evaluation, companions: Sequence[Evaluation] = ()
) -> list[Beside]:
    """Every published figure of an evaluation with ours, in the recipe's order.

    `companions` are perplexity evaluations under the same steering: there a `perplexity` is looked for.
    """
    found = []
    for condition, metrics in (published.values.get(evaluation.name) or {}).items():
        for name, paper in metrics.items():
            strength, ours = our_point(evaluation, condition, name)
            if ours is None and name == "perplexity" and evaluation.metrics:
                strength, _ = our_point(evaluation, condition, evaluation.metrics[0])
                ours = companion_score(companions, condition, strength or 0.0)
            chosen = evaluation.search is not None and condition in evaluation.search.chosen
            found.append(Beside(condition, name, paper, ours, strength, chosen))
    return found


def companion_score(companions: Sequence[Evaluation], condition: str, strength: float) -> Score | None:
    """Perplexity of a condition at a strength (`base`: 0), from the first companion that knows it."""
    for companion in companions:
        base = condition == "base" or strength == 0
        score = companion.base("perplexity") if base else companion.score(condition, strength, "perplexity")
        if score:
            return score
    return None


def our_point(evaluation: Evaluation, condition: str, name: str) -> tuple[float | None, Score | None]:
    """(strength, score) of a condition: the only strength there is, else the best for this metric.

    A metric of a group is taken at the strength that is best over all groups.
    """
    if condition == "base":
        return None, evaluation.base(name)
    whole = name.rpartition("/")[2]
    best = best_point(evaluation, condition, whole) or best_point(evaluation, condition, name)
    if best is None:
        return None, None
    return best[0], evaluation.score(condition, best[0], name)
