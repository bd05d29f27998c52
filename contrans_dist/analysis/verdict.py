"""What an evaluation shows: whether steering did something that its controls do not do as well."""

from dataclasses import dataclass
from typing import Literal

from contrans_dist.analysis.names import ConditionName, condition_name, metric, number, strength_text
from contrans_dist.analysis.scores import Evaluation, Score

Status = Literal["clear", "partly", "shared", "none", "unchecked", "cost"]

SIGNIFICANT = 0.05
GOOD_PART = 0.5
"""A control that brings this share of the rise or more makes the effect one that is partly shared."""

_RULE = (
    "A control is told apart when its interval lies wholly on the wrong side of the vector's, or when it "
    "does less and the paired test on the same items at the vector's strength gives p < 0.05. One control "
    "that is not told apart is enough for “not distinguishable”; one that brings half of the effect or more "
    "is named."
)
_AT_BEST = (
    "The vector is taken at its best strength, each control at its own best. {rule} The best strength is "
    "chosen on the same items that are scored, which favours the vector and its controls alike."
)
_AT_CHOSEN = (
    "The vector is taken at the strength that was chosen for it on validation items, and the controls at the "
    "same. {rule}"
)


def rule(evaluation: Evaluation) -> str:
    """How the verdict of an evaluation is made, for people."""
    return (_AT_CHOSEN if evaluation.search else _AT_BEST).format(rule=_RULE)


@dataclass(frozen=True)
class Rival:
    """Another condition beside the effect: at its own best strength, and whether it is told apart."""

    name: ConditionName
    strength: float
    score: Score
    p: float | None
    """Paired test at the effect's strength, where known."""
    told_apart: bool
    share: float
    """Part of the effect's rise over base that this condition brings too."""


@dataclass(frozen=True)
class Verdict:
    """The answer for one metric of one evaluation."""

    status: Status
    metric: str
    effect: ConditionName
    strength: float
    score: Score
    base: Score | None
    controls: list[Rival]
    references: list[Rival]


def main_condition(evaluation: Evaluation) -> str | None:
    """The condition under test: `vector`, else the first effect, else the first that is no control."""
    names = [condition_name(key) for key in evaluation.conditions]
    for role in ("effect", "variant", "reference"):
        found = next((name.key for name in names if name.role == role), None)
        if found:
            return found
    return None


def best_point(evaluation: Evaluation, condition: str, key: str) -> tuple[float, Score] | None:
    """Strength and score at which a condition does most; the lowest strength among equals.

    A cost is read at the greatest strength.
    """
    sign = 1 if metric(key).higher else -1
    points = [point for point in evaluation.curve(condition, key) if point[0] != 0]
    if metric(key).cost:
        return max(points, key=lambda point: abs(point[0]), default=None)
    return max(points, key=lambda point: (sign * point[1].value, -point[0]), default=None)


def judge(evaluation: Evaluation, key: str, strength: float | None = None) -> Verdict | None:
    """Judge one metric (`token_acc_negative`, `fear/token_acc_negative`), at a given or the best strength.

    Returns None when nothing was steered or the metric is not there.
    """
    effect = main_condition(evaluation)
    if effect is None:
        return None
    best = best_point(evaluation, effect, key)
    if best is not None and strength is not None:
        given = evaluation.score(effect, strength, key)
        best = (strength, given) if given else None
    if best is None:
        return None
    base = evaluation.base(key)
    rivals = [
        rival
        for condition in evaluation.conditions
        if condition != effect and (rival := _rival(evaluation, key, condition, best, base))
    ]
    controls = [rival for rival in rivals if rival.name.role == "control"]
    status = _status(key, best[1], base, controls, _p_vs_base(evaluation, effect, best[0], key))
    others = [rival for rival in rivals if rival.name.role != "control"]
    return Verdict(status, key, condition_name(effect), best[0], best[1], base, controls, others)


def _rival(
    evaluation: Evaluation, key: str, condition: str, effect: tuple[float, Score], base: Score | None
) -> Rival | None:
    point = best_point(evaluation, condition, key)
    if point is None:
        return None
    same = evaluation.row(condition, effect[0])
    p = same.p("vector", key) if same else None
    apart = _above(effect[1], point[1], key)
    lower = _gain(effect[1], point[1], key) > 0
    told_apart = apart or (lower and p is not None and p < SIGNIFICANT)
    rise = _gain(effect[1], base, key) if base else 0.0
    share = _gain(point[1], base, key) / rise if base and rise > 0 else 0.0
    return Rival(condition_name(condition), point[0], point[1], p, told_apart, share)


def _p_vs_base(evaluation: Evaluation, condition: str, strength: float, key: str) -> float | None:
    row = evaluation.row(condition, strength)
    return row.p("base", key) if row else None


def _gain(score: Score, other: Score, key: str) -> float:
    return (score.value - other.value) * (1 if metric(key).higher else -1)


def _above(score: Score, other: Score, key: str) -> bool:
    """Whether the two intervals are apart, in the direction that is wanted."""
    return score.low > other.high if metric(key).higher else score.high < other.low


def _status(key: str, score: Score, base: Score | None, controls: list[Rival], p: float | None) -> Status:
    if metric(key).cost:
        return "cost"
    if base and not (
        _above(score, base, key) or (_gain(score, base, key) > 0 and p is not None and p < SIGNIFICANT)
    ):
        return "none"
    if not controls:
        return "unchecked"
    if not all(control.told_apart for control in controls):
        return "shared"
    return "partly" if any(control.share >= GOOD_PART for control in controls) else "clear"


def sentence(verdict: Verdict, pair: str = "") -> str:
    """The verdict in one sentence; `pair` names the blocks, such as `block 3 → 4`."""
    kind = metric(verdict.metric)
    value = number(verdict.score.value, kind.percent)
    if verdict.status == "cost":
        return _cost_sentence(verdict, pair)
    at = f"at strength {strength_text(verdict.strength)}" + (f" ({pair})" if pair else "")
    effect = verdict.effect.phrase
    before = f"from {number(verdict.base.value, kind.percent)} " if verdict.base else ""
    does = f"{'raises' if kind.higher else 'lowers'} {kind.title} {before}to {value} {at}"
    own = _reach(verdict.references, kind.percent)
    if verdict.status == "none" and verdict.base:
        stays = number(verdict.base.value, kind.percent)
        text = (
            f"No effect: at best {effect} brings {kind.title} to {value} {at}, without steering it is {stays}"
        )
        return f"{text}; {own}." if own else f"{text}."
    if verdict.status == "shared":
        same = [control for control in verdict.controls if not control.told_apart]
        shared = _reach(same, kind.percent)
        text = f"Not distinguishable from its controls: {effect} {does}, but {shared} as well"
        return f"{text}; {own}." if own else f"{text}."
    if verdict.status == "unchecked":
        text = f"{effect[0].upper()}{effect[1:]} {does}, but no control was run, so the cause is open"
        return f"{text}; {own}." if own else f"{text}."
    everything = _reach([*verdict.controls, *verdict.references], kind.percent)
    if verdict.status == "partly":
        most = max(verdict.controls, key=lambda control: control.share)
        rest = f"so {round(100 * most.share)}\u202f% of the rise is not the concept's own"
        return f"Partly shared by a control: {effect} {does}; {everything}, {rest}."
    return f"{effect[0].upper()}{effect[1:]} {does}; {everything}."


def _cost_sentence(verdict: Verdict, pair: str) -> str:
    kind, base = metric(verdict.metric), verdict.base

    def times(score: Score) -> str:
        grown = f", {score.value / base.value:.2f} times" if base and base.value else ""
        return f"{number(score.value, kind.percent)}{grown}"

    before = f" from {number(base.value, kind.percent)}" if base else ""
    at = f"at strength {strength_text(verdict.strength)}" + (f" ({pair})" if pair else "")
    others = "".join(
        f"; {rival.name.phrase}: {times(rival.score)}" for rival in [*verdict.controls, *verdict.references]
    )
    return f"Under {verdict.effect.phrase} {at}, {kind.title} goes{before} to {times(verdict.score)}{others}."


def _reach(rivals: list[Rival], as_percent: bool) -> str:
    """`a random direction reaches 1 %, the shuffled map 4 %`."""
    parts = [f"{rival.name.phrase} {number(rival.score.value, as_percent)}" for rival in rivals]
    if parts:
        first = rivals[0]
        parts[0] = f"{first.name.phrase} reaches {number(first.score.value, as_percent)}"
    return ", ".join(parts)
