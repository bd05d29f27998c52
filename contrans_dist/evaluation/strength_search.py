"""The strength of each condition, chosen on validation items under a perplexity budget (ConTrans, 5.2)."""

from collections.abc import Sequence

from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings
from contrans_dist.console import note
from contrans_dist.errors import OverflowedError
from contrans_dist.evaluation.conditions import condition_of, reference_of
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.trials import try_out
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import made_by
from contrans_dist.store.results import SearchFile, Trial


def search(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: Location,
    cluster: ClusterSettings,
    replace: bool = True,
) -> SearchFile:
    """What `search.json` holds: `chosen`, the strength of every condition, and all that was tried.

    Each condition that is no control is tried at every strength on the validation items, and on the text of
    the budget; the controls follow the one under test; `check_tried` has found the settings good. Raises
    OverflowedError where logits are numbers at no strength.
    """
    names = list(dict.fromkeys(name for conditions in steering.rows.values() for name in conditions))
    searched = [name for name in names if condition_of(name).role != "control"]
    trials = try_out(
        model, settings, steering.only(searched), settings.strengths, out, cluster,
        f"choose strengths on {settings.benchmark}", replace,
    )  # fmt: skip
    chosen = {}
    for condition in searched:
        tried = [trial for trial in trials.candidates if trial.condition == condition]
        if not tried:
            raise OverflowedError(
                f"search: condition {condition}: the model's logits overflow at every strength; use smaller "
                "strengths, or bfloat16 or float32"
            )
        best, within = choose_strength(tried, trials)
        chosen[condition] = best.strength
        rest = "" if within else f"; none keeps the perplexity within {trials.budget:g} times the base's"
        note(f"{condition}: strength {best.strength:g} chosen, {trials.criterion} {best.score:.3g}{rest}")
    main = chosen.get(reference_of(searched) or "", 1.0)
    chosen |= {name: main for name in names if name not in searched}
    return trials.model_copy(update={"chosen": chosen, **made_by()})


def choose_strength(tried: Sequence[Trial], trials: SearchFile) -> tuple[Trial, bool]:
    """(trial, whether it is within the budget): the best score, the weaker of two that are equal.

    Where no strength is within the budget, the weakest. ValueError without a strength other than 0.
    """
    steered = sorted((trial for trial in tried if trial.strength != 0), key=lambda trial: abs(trial.strength))
    if not steered:
        raise ValueError("no strength other than 0 was tried")
    within = trials.within(steered)
    if not within:
        return steered[0], False
    return max(within, key=lambda trial: (trials.gain(trial), -abs(trial.strength))), True
