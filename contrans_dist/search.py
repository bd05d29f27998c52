"""The strength of each condition, chosen on validation items under a perplexity budget (ConTrans, 5.2)."""

from collections.abc import Callable, Mapping
from typing import Any

from contrans_dist.benchmarks import headline
from contrans_dist.conditions import CONTROLS, Steering
from contrans_dist.config import (
    ClusterSettings,
    EmotionEvaluation,
    EvaluationSettings,
    ModelSettings,
    PerplexityEvaluation,
    SearchSettings,
    ToxigenEvaluation,
)
from contrans_dist.errors import UserError
from contrans_dist.evaluate import evaluate
from contrans_dist.progress import note
from contrans_dist.storage import Location

FILE = "search.json"
VALIDATION, BUDGET = "validation", "perplexity"


def search(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: Location,
    cluster: ClusterSettings,
    place: Callable[[str], str] = str,
) -> dict[str, float]:
    """The strength of every condition, written to `search.json` with all that was tried.

    Each condition that is no control is tried at every strength on the validation items, and on the text of
    the budget; the controls follow `vector`. Raises UserError for a benchmark without validation items.
    """
    asked = settings.search
    assert asked is not None
    tried = steering.only([name for name in _conditions(steering) if name not in CONTROLS])
    measure = headline(settings.benchmark)
    validation = evaluate(
        model, _validation(settings, asked, place), tried, out / VALIDATION, cluster, replace=True,
        title=f"choose strengths on {settings.benchmark}",
    )  # fmt: skip
    perplexities = cost_of(model, settings, tried, out / BUDGET, cluster, place)
    scores = _scores(validation, f"validation_{measure.metric}") or _scores(validation, measure.metric)
    base = next((value for (_, strength), value in perplexities.items() if strength == 0), None)
    chosen = {}
    for condition in _conditions(tried):
        own = {strength: value for (name, strength), value in scores.items() if name == condition}
        costs = {strength: value for (name, strength), value in perplexities.items() if name == condition}
        strength, within = choose_strength(own, costs, base, asked.budget, measure.higher)
        chosen[condition] = strength
        rest = "" if within else f"; none keeps the perplexity within {asked.budget:g} times the base's"
        note(f"{condition}: strength {strength:g} chosen, {measure.metric} {own[strength]:.3g}{rest}")
    main = chosen.get("vector", next(iter(chosen.values()), 1.0))
    chosen |= {name: main for name in _conditions(steering) if name in CONTROLS}
    (out / FILE).write_json(
        {
            "criterion": measure.metric,
            "higher": measure.higher,
            "budget": asked.budget,
            "base_perplexity": base,
            "candidates": [
                {"condition": name, "strength": strength, "score": value,
                 "perplexity": perplexities.get((name, strength))}
                for (name, strength), value in scores.items()
            ],
            "chosen": chosen,
        }
    )  # fmt: skip
    return chosen


def cost_of(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: Location,
    cluster: ClusterSettings,
    place: Callable[[str], str] = str,
) -> dict[tuple[str, float], float]:
    """Perplexity of the budget's text under each condition and strength; empty where there is no budget."""
    asked = settings.search
    if asked is None or asked.perplexity is None:
        return {}
    text = PerplexityEvaluation(
        texts=place(asked.perplexity), strengths=settings.strengths, conditions=(), limit=asked.limit
    )
    found = evaluate(model, text, steering, out, cluster, replace=True, title="perplexity of the strengths")
    return _scores(found, "perplexity")


def choose_strength(
    scores: Mapping[float, float],
    perplexities: Mapping[float, float],
    base_perplexity: float | None,
    budget: float,
    higher: bool,
) -> tuple[float, bool]:
    """(strength, whether it is within the budget): the best score, the weaker of two that are equal.

    Only strengths whose perplexity is at most `budget` times the base's are considered; where there is none,
    the weakest. Without perplexities all are. ValueError without a strength other than 0.
    """
    strengths = sorted((strength for strength in scores if strength != 0), key=abs)
    if not strengths:
        raise ValueError("no strength other than 0 was tried")
    within = strengths
    if base_perplexity is not None:
        most = budget * base_perplexity
        within = [s for s in strengths if s in perplexities and perplexities[s] <= most]
    if not within:
        return strengths[0], False
    sign = 1 if higher else -1
    return max(within, key=lambda s: (sign * scores[s], -abs(s))), True


def _conditions(steering: Steering) -> list[str]:
    return list(dict.fromkeys(name for conditions in steering.rows.values() for name in conditions))


def _validation(
    settings: EvaluationSettings, asked: SearchSettings, place: Callable[[str], str]
) -> EvaluationSettings:
    """The same evaluation on validation items."""
    given = asked.texts or getattr(settings, "validation", None)
    changes: dict[str, Any] = {"search": None, "conditions": (), "only_unseen": False}
    if isinstance(settings, ToxigenEvaluation):
        changes["kinds"] = ("validation",)
    elif given is None:
        raise UserError(f"search: benchmark {settings.benchmark} needs validation items, as search.texts")
    if given is not None:
        changes["texts"] = place(given)
    if isinstance(settings, EmotionEvaluation):
        changes["kinds"] = ("negative",)
    return settings.model_copy(update=changes)


def _scores(metrics: dict[str, Any], name: str) -> dict[tuple[str, float], float]:
    return {
        (entry["condition"], entry["strength"]): entry["metrics"][name]["value"]
        for entry in metrics["conditions"]
        if name in entry["metrics"]
    }
