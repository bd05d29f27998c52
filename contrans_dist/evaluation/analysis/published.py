"""What a paper found, beside what a run found: `published` of a recipe."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from contrans_dist.benchmarks import Metric, metric_of
from contrans_dist.config.benchmarks import DEFAULT
from contrans_dist.evaluation.analysis.names import COST
from contrans_dist.evaluation.analysis.points import Point, best_point
from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.evaluation.conditions import BASE
from contrans_dist.store.results import Score
from contrans_dist.store.run_recipe import RunRecipe

Values = dict[str, dict[str, float]]
"""condition -> metric -> value"""
ALONE = "all"
"""Name of the run of a recipe that has only one."""


@dataclass(frozen=True)
class Figures:
    """What a paper has for one evaluation, in the units of the metrics."""

    run: str
    """The paper's run that they are of."""
    source: str
    """Where they stand."""
    benchmark: str
    """The evaluation's, by which its metrics are read; empty where the recipe does not say."""
    of_this_run: bool
    """Whether that is the run beside which they stand; else another stands in, and no figures can agree."""
    values: Values

    def metric(self, name: str) -> Metric:
        """How a figure is read: as the evaluation's benchmark has it, but for the cost beside it."""
        return metric_of(name, COST if name == COST else self.benchmark)

    @property
    def title(self) -> str:
        """`Paper`, with the run's name where another one stands in."""
        return "Paper" if self.of_this_run or self.run == ALONE else f"Paper ({self.run})"


@dataclass(frozen=True)
class Published:
    """The figures of a paper, to be set beside one run."""

    source: str
    remarks: str
    values: list[tuple[str, Figures]]
    """Evaluation and figures, run by run of the paper."""

    def figures(self, evaluation: str) -> Figures | None:
        """Those of the run's own name; where that has none at all, of the first run with this evaluation."""
        of_run = [entry for entry in self.values if entry[1].of_this_run]
        return next((figures for name, figures in of_run or self.values if name == evaluation), None)

    def has_any(self, evaluations: Iterable[str]) -> bool:
        """Whether one of these evaluations has figures for the very run."""
        return any((figures := self.figures(name)) and figures.of_this_run for name in evaluations)


@dataclass(frozen=True)
class Beside:
    """One figure of the paper, and ours where its condition is read (`points.best_point`)."""

    condition: str
    metric: str
    kind: Metric
    """How the metric is read."""
    paper: float
    ours: Point | None

    @property
    def agrees(self) -> bool | None:
        """Whether the paper's value lies in our interval; None without one."""
        return self.ours.score.holds(self.paper) if self.ours else None


def published_for(recipe: RunRecipe, run: str) -> Published | None:
    """What is published of a recipe, for one of its runs; None where nothing is."""
    published = recipe.published
    if published is None:
        return None
    benchmarks = {name: given.benchmark or DEFAULT for name, given in (recipe.evaluations or {}).items()}
    every = [
        (evaluation, Figures(of_run, published.source, benchmarks.get(evaluation, ""), of_run == run, values))
        for of_run, evaluations in published.values.items()
        for evaluation, values in evaluations.items()
        if values
    ]
    return Published(published.source, published.remarks, every)


def beside(figures: Figures, evaluation: Evaluation, companions: Sequence[Evaluation] = ()) -> list[Beside]:
    """Every published figure of an evaluation with ours, in the recipe's order.

    `companions` are perplexity evaluations under the same steering: there a `perplexity` is looked for.
    """
    headline = next(iter(evaluation.metrics), "")
    points = {condition: best_point(evaluation, condition, headline) for condition in figures.values}
    costs = companion_scores(companions, {name: point.strength for name, point in points.items() if point})
    comparisons = []
    for condition, metrics in figures.values.items():
        for name, paper in metrics.items():
            kind = metric_of(COST, COST) if name == COST else evaluation.metric(name)
            ours, point = our_point(evaluation, condition, name), points[condition]
            if ours is None and name == COST and point and condition in costs:
                ours = point._replace(score=costs[condition])
            comparisons.append(Beside(condition, name, kind, paper, ours))
    return comparisons


def companion_scores(companions: Sequence[Evaluation], points: Mapping[str, float]) -> dict[str, Score]:
    """Perplexity of conditions at strengths (`base`: 0), all on one text so that they can be compared.

    Of the companion that knows the most of them, the first among equals.
    """

    def known(companion: Evaluation) -> dict[str, Score]:
        perplexities = {
            condition: companion.score(condition, at, COST) if at else companion.base(COST)
            for condition, at in points.items()
        }
        return {condition: score for condition, score in perplexities.items() if score}

    return max(map(known, companions), key=len, default={})


def our_point(evaluation: Evaluation, condition: str, name: str) -> Point | None:
    """Where a condition is read; in a metric of a group where the metric is over all groups, if it is."""
    if condition == BASE.name:
        return best_point(evaluation, condition, name)
    whole = name.rpartition("/")[2]
    point = best_point(evaluation, condition, whole) or best_point(evaluation, condition, name)
    score = evaluation.score(condition, point.strength, name) if point else None
    return point._replace(score=score) if point and score else None
