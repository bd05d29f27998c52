"""What is chosen between, block pairs or strengths: each tried on validation items, under a budget; or on
contrast prompts."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from contrans_dist.benchmarks import about, load_benchmark, metric_of
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings, evaluation_class
from contrans_dist.data.contamination import overlap, unit_hashes
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis.names import COST, VALIDATION
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering
from contrans_dist.store.location import Location
from contrans_dist.store.results import MetricsFile, SearchFile, Trial


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
        "benchmark": COST, "texts": search.perplexity, "limit": search.limit, "strengths": strengths,
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
) -> SearchFile:
    """Every condition of `steering` at every strength on the evaluation's validation items.

    Nothing is chosen yet. Under `settings.search` with a text for the budget its perplexity is measured
    beside. `replace`: as in `evaluate`. Raises UserError when a validation item is scored too: what was
    chosen on it has seen it.
    """
    chosen_on = validation_of(settings, strengths)
    _check_apart(settings, chosen_on)
    return all_tried(model, settings, chosen_on, steering, out, cluster, title, replace)


def all_tried(
    model: ModelSettings,
    settings: EvaluationSettings,
    chosen_on: EvaluationSettings,
    steering: Steering,
    out: Location,
    cluster: ClusterSettings,
    title: str,
    replace: bool = True,
) -> SearchFile:
    """Every trial on the items of `chosen_on`, and under the budget of `settings`, which may be the same."""
    strengths, criterion = chosen_on.strengths, about(settings.benchmark).headline()
    validation = evaluate(model, chosen_on, steering, out / VALIDATION, cluster, replace, title, trials=True)
    scores = _scores(validation, f"validation_{criterion}") or _scores(validation, criterion)
    text, perplexities = budget_text(settings, strengths), {}
    if text is not None:
        title = "perplexity of the strengths"
        cost = evaluate(model, text, steering, out / COST, cluster, replace, title, trials=True)
        perplexities = _scores(cost, about(COST).headline())
    names = dict.fromkeys(name for conditions in steering.rows.values() for name in conditions)
    return SearchFile(
        criterion=criterion,
        lost=[trial for trial in product(names, filter(None, strengths)) if trial not in scores],
        higher=metric_of(criterion, settings.benchmark).higher,
        budget=settings.search.budget if settings.search is not None and perplexities else None,
        base_perplexity=next((value for (_, strength), value in perplexities.items() if strength == 0), None),
        candidates=[
            Trial(
                condition=condition,
                strength=strength,
                score=score,
                perplexity=perplexities.get((condition, strength)),
            )
            for (condition, strength), score in scores.items()
        ],
        chosen={},
    )


def check_tried(settings: EvaluationSettings) -> None:
    """Read all that `search` scores. Raises UserError for data that are missing, wrong, or scored too, and
    where there is no strength to try."""
    if not any(settings.strengths):
        raise UserError("search: expected a strength other than 0 among `strengths`")
    chosen_on = validation_of(settings, settings.strengths)
    text = budget_text(settings, settings.strengths)
    for evaluation in (settings, chosen_on, *([text] if text is not None else [])):
        load_benchmark(evaluation).identity()  # of a judge as well
    _check_apart(settings, chosen_on)


def _check_apart(settings: EvaluationSettings, chosen_on: EvaluationSettings) -> None:
    if not settings.drawn_apart:
        check_unscored(chosen_on, {"": settings})


def check_unscored(chosen_on: EvaluationSettings, scored: Mapping[str, EvaluationSettings]) -> None:
    """Raise UserError where one of several evaluations, by name, scores items that are chosen on."""
    tried = _scenarios(chosen_on)
    for name, settings in scored.items():
        both = overlap(tried, unit_hashes(_scenarios(settings)))
        if both:
            by = f" by evaluations.{name}" if name else ""
            some = f"{len(both)} of {len(tried)} items are scored too{by}, such as {both[0]!r}"
            raise UserError(f"validation: {some}; name others")


def _scenarios(settings: EvaluationSettings) -> list[str]:
    # Where validation items are drawn from the same data, a benchmark holds both.
    benchmark, apart = load_benchmark(settings), settings.drawn_apart
    return [item.scenario for item in benchmark.items() if not apart or benchmark.scores(item)]


def _scores(metrics: MetricsFile, name: str) -> dict[tuple[str, float], float]:
    return {
        (entry.condition, entry.strength): entry.metrics[name].value
        for entry in metrics.conditions
        if name in entry.metrics
    }
