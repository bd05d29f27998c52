"""What is chosen between, block pairs or strengths: each tried on validation items, under a budget."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from contrans_dist.benchmarks import about, load_benchmark, metric_of
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings, evaluation_class
from contrans_dist.data.contamination import overlap, unit_hashes
from contrans_dist.errors import UserError
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering
from contrans_dist.store.location import Location

VALIDATION, BUDGET = "validation", "perplexity"
"""Folders of the two sweeps. That of the budget is named by the benchmark that it is measured on."""


@dataclass(frozen=True)
class Trial:
    """A condition at a strength: its score on the validation items, and the perplexity under it."""

    condition: str
    strength: float
    score: float
    perplexity: float | None = None


@dataclass(frozen=True)
class Trials:
    """Everything that was tried, and what decides: the headline metric, and how far perplexity may grow."""

    criterion: str
    higher: bool
    budget: float | None
    """As a factor of `base_perplexity`."""
    base_perplexity: float | None
    tried: list[Trial]

    def within(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those whose perplexity is at most `budget` times the base's; all where there is no budget.

        A trial without a perplexity is not within a budget.
        """
        if self.budget is None or self.base_perplexity is None:
            return list(trials)
        most = self.budget * self.base_perplexity
        return [each for each in trials if each.perplexity is not None and each.perplexity <= most]

    def gain(self, trial: Trial) -> float:
        """The score, with its sign turned where less is wanted."""
        return trial.score if self.higher else -trial.score


def validation_of(settings: EvaluationSettings, strengths: tuple[float, ...]) -> EvaluationSettings:
    """The same evaluation on its validation items, asked in the same way.

    Raises UserError where it has none.
    """
    if not settings.has_validation:
        raise UserError(f"benchmark {settings.benchmark}: expected validation items to choose on")
    changes: dict[str, Any] = {
        "strengths": strengths, "conditions": (), "only_unseen": False, "search": None,
        "examples": 0, "token_changes": 0,
    }  # fmt: skip
    return settings.on_validation().model_copy(update=changes)


def budget_text(settings: EvaluationSettings, strengths: tuple[float, ...]) -> EvaluationSettings | None:
    """The evaluation of what strengths cost, under `settings.search`; None where that sets no budget."""
    search = settings.search
    if search is None or search.perplexity is None:
        return None
    content = {
        "benchmark": BUDGET, "texts": search.perplexity, "limit": search.limit, "strengths": strengths,
        "conditions": (),
    }  # fmt: skip
    return evaluation_class(content).model_validate(content)


def try_out(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    strengths: tuple[float, ...],
    out: Location,
    cluster: ClusterSettings,
    title: str,
    replace: bool = True,
) -> Trials:
    """Every condition of `steering` at every strength on the evaluation's validation items.

    Under `settings.search` with a text for the budget its perplexity is measured beside. `replace`: as in
    `evaluate`. Raises UserError when a validation item is scored too: what was chosen on it has seen it.
    """
    criterion = about(settings.benchmark).headline()
    chosen_on = validation_of(settings, strengths)
    _check_apart(settings, chosen_on)
    validation = evaluate(model, chosen_on, steering, out / VALIDATION, cluster, replace, title)
    scores = _scores(validation, f"validation_{criterion}") or _scores(validation, criterion)
    text, perplexities = budget_text(settings, strengths), {}
    if text is not None:
        perplexities = _scores(
            evaluate(model, text, steering, out / BUDGET, cluster, replace, "perplexity of the strengths"),
            about(BUDGET).headline(),
        )
    return Trials(
        criterion=criterion,
        higher=metric_of(criterion, settings.benchmark).higher,
        budget=settings.search.budget if settings.search is not None and perplexities else None,
        base_perplexity=next((value for (_, strength), value in perplexities.items() if strength == 0), None),
        tried=[
            Trial(condition, strength, score, perplexities.get((condition, strength)))
            for (condition, strength), score in scores.items()
        ],
    )


def check_tried(settings: EvaluationSettings) -> None:
    """Read all that `search` scores. Raises UserError for data that are missing, wrong, or scored too."""
    chosen_on = validation_of(settings, settings.strengths)
    text = budget_text(settings, settings.strengths)
    for each in (settings, chosen_on, *([text] if text is not None else [])):
        load_benchmark(each)
    _check_apart(settings, chosen_on)


def _check_apart(settings: EvaluationSettings, chosen_on: EvaluationSettings) -> None:
    if settings.drawn_apart:
        return
    scored, tried = (
        [item.scenario for item in load_benchmark(each).items()] for each in (settings, chosen_on)
    )
    both = overlap(tried, unit_hashes(scored))
    if both:
        some = f"{len(both)} of {len(tried)} items are scored too, such as {both[0]!r}"
        raise UserError(f"validation: {some}; name others")


def _scores(metrics: dict[str, Any], name: str) -> dict[tuple[str, float], float]:
    return {
        (entry["condition"], entry["strength"]): entry["metrics"][name]["value"]
        for entry in metrics["conditions"]
        if name in entry["metrics"]
    }
