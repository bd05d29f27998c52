"""What an evaluation shows: whether steering did something that its controls do not do as well."""

from dataclasses import dataclass
from typing import Literal

from contrans_dist.benchmarks import Metric
from contrans_dist.evaluation.analysis.names import number, strength_text
from contrans_dist.evaluation.analysis.points import Point, Way, best_point, main_condition
from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.evaluation.conditions import Condition, condition_of
from contrans_dist.store.results import Score

Status = Literal["clear", "partly", "shared", "none", "unchecked", "untested", "cost"]

SIGNIFICANT = 0.05
GOOD_PART = 0.5
"""A control that brings this share of the rise or more makes the effect one that is partly shared."""

_RULE = (
    "A control is told apart when its interval lies wholly on the wrong side of the vector's, or when it "
    "does less and a paired test on the same items gives p < 0.05, each at the strength it is read at. "
    "Without an interval there is the test alone. One control that is not told "
    "apart is enough for “not distinguishable”; one that brings half of the effect or more is named."
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

    condition: Condition
    strength: float
    score: Score
    p: float | None
    """Paired test against the effect, each at its strength here, where known."""
    told_apart: bool
    share: float
    """Part of what the effect moves that this condition moves too."""


@dataclass(frozen=True)
class Verdict:
    """The answer for one metric of one evaluation."""

    status: Status
    metric: str
    kind: Metric
    """How the metric is read in this evaluation."""
    effect: Condition
    strength: float
    score: Score
    base: Score | None
    controls: list[Rival]
    references: list[Rival]
    way: Way = "given"
    """How the effect's strength came about."""
    reported_by: str = ""
    """The run's main evaluation, where the strength is the one that it reports."""


def judge(evaluation: Evaluation, key: str, strength: float | None = None) -> Verdict | None:
    """Whether steering did something in one metric that its controls do not do as well.

    Args:
        evaluation: What was scored.
        key: The metric, such as `token_acc_negative` or `fear/token_acc_negative`.
        strength: At which the condition under test is read; None takes that of `best_point`.

    Returns:
        The verdict; None when nothing was steered or the metric is not there.
    """
    effect = main_condition(evaluation)
    if effect is None:
        return None
    best = best_point(evaluation, effect, key)
    if best is not None and strength is not None:
        given = evaluation.score(effect, strength, key)
        best = Point(strength, given, "given") if given else None
    if best is None:
        return None
    base, kind, row = evaluation.base(key), evaluation.metric(key), evaluation.row(effect, best.strength)
    assert row is not None
    rivals = [
        _rival(condition, point, best.score, base, kind, row.p(condition, key, point.strength))
        for condition in evaluation.conditions
        if condition != effect and (point := best_point(evaluation, condition, key))
    ]
    controls = [rival for rival in rivals if rival.condition.role == "control"]
    return Verdict(
        status=_status(kind, best.score, base, controls, row.p("base", key)),
        metric=key,
        kind=kind,
        effect=condition_of(effect),
        strength=best.strength,
        score=best.score,
        base=base,
        controls=controls,
        references=[rival for rival in rivals if rival.condition.role != "control"],
        way=best.way,
        reported_by=evaluation.reported[effect].evaluation if best.way == "reported" else "",
    )


def _rival(
    condition: str,
    point: Point,
    effect: Score,
    base: Score | None,
    kind: Metric,
    p: float | None,
) -> Rival:
    lower = _gain(effect, point.score, kind) > 0
    told_apart = bool(_above(effect, point.score, kind)) or (lower and p is not None and p < SIGNIFICANT)
    moved = _gain(effect, base, kind) if base else 0.0
    share = _gain(point.score, base, kind) / moved if base and moved > 0 else 0.0
    return Rival(condition_of(condition), point.strength, point.score, p, told_apart, share)


def _gain(score: Score, other: Score, kind: Metric) -> float:
    return (score.value - other.value) * (1 if kind.higher else -1)


def _above(score: Score, other: Score, kind: Metric) -> bool | None:
    """Whether the two intervals are apart, in the direction that is wanted; None where one is missing."""
    if score.interval is None or other.interval is None:
        return None
    if kind.higher:
        return score.interval[0] > other.interval[1]
    return score.interval[1] < other.interval[0]


def _status(kind: Metric, score: Score, base: Score | None, controls: list[Rival], p: float | None) -> Status:
    if kind.cost:
        return "cost"
    if base:
        above = _above(score, base, kind)
        if above is None and p is None and _gain(score, base, kind) > 0:
            return "untested"
        if not (above or (_gain(score, base, kind) > 0 and p is not None and p < SIGNIFICANT)):
            return "none"
    if not controls:
        return "unchecked"
    if not all(control.told_apart for control in controls):
        return "shared"
    return "partly" if any(control.share >= GOOD_PART for control in controls) else "clear"


def sentence(verdict: Verdict, pair: str = "") -> str:
    """The verdict in one sentence; `pair` names the blocks, such as `block 3 → 4`."""
    kind = verdict.kind
    value = number(verdict.score.value, kind.percent)
    if verdict.status == "cost":
        return _cost_sentence(verdict, pair)
    at = f"at strength {strength_text(verdict.strength)}" + (f" ({pair})" if pair else "")
    effect = verdict.effect.phrase
    before = f"from {number(verdict.base.value, kind.percent)} " if verdict.base else ""
    does = f"{'raises' if kind.higher else 'lowers'} {kind.title} {before}to {value} {at}"
    references = _reach(verdict.references, kind.percent)
    if verdict.status == "none" and verdict.base:
        stays = number(verdict.base.value, kind.percent)
        best = "at best " if verdict.way == "best" else ""
        brings = f"{best}{effect} brings {kind.title} to {value} {at}"
        text = f"No effect: {brings}; without steering it is {stays}"
        if kind.percent and verdict.base.value == (1.0 if kind.higher else 0.0):
            text += f" and cannot {'rise' if kind.higher else 'fall'}"
        return _ended(text, references)
    if verdict.status == "shared":
        same = [control for control in verdict.controls if not control.told_apart]
        shared = _reach(same, kind.percent)
        text = f"Not distinguishable from its controls: {effect} {does}, but {shared} as well"
        return _ended(text, references)
    if verdict.status == "unchecked":
        text = f"{effect[0].upper()}{effect[1:]} {does}, but no control was run, so the cause is open"
        return _ended(text, references)
    everything = _reach([*verdict.controls, *verdict.references], kind.percent)
    if verdict.status == "untested":
        text = f"With neither interval nor test, nothing can be told apart: {effect} {does}"
        return _ended(text, everything)
    if verdict.status == "partly":
        most = max(verdict.controls, key=lambda control: control.share)
        moved = "rise" if kind.higher else "fall"
        rest = f"so {round(100 * most.share)}\u202f% of the {moved} is not the concept's own"
        return f"Partly shared by a control: {effect} {does}; {everything}, {rest}."
    text = f"{effect[0].upper()}{effect[1:]} {does}; {everything}."
    return f"{text} {verdict.effect.caveat}" if verdict.effect.caveat else text


def _ended(text: str, others: str) -> str:
    """A sentence, with what others reach behind it."""
    return f"{text}; {others}." if others else f"{text}."


def _cost_sentence(verdict: Verdict, pair: str) -> str:
    kind, base = verdict.kind, verdict.base

    def times(score: Score) -> str:
        grown = f", {score.value / base.value:.2f} times" if base and base.value else ""
        return f"{number(score.value, kind.percent)}{grown}"

    before = f" from {number(base.value, kind.percent)}" if base else ""
    at = f"at strength {strength_text(verdict.strength)}" + (f" ({pair})" if pair else "")
    at += f", as {verdict.reported_by} reports it" if verdict.reported_by else ""
    others = "".join(
        f"; {rival.condition.phrase}{_elsewhere(rival, verdict)}: {times(rival.score)}"
        for rival in [*verdict.controls, *verdict.references]
    )
    return f"Under {verdict.effect.phrase} {at}, {kind.title} goes{before} to {times(verdict.score)}{others}."


def _elsewhere(rival: Rival, verdict: Verdict) -> str:
    """A strength that is not the effect's."""
    same = rival.condition.no_vector or rival.strength == verdict.strength
    return "" if same else f" at {strength_text(rival.strength)}"


def _reach(rivals: list[Rival], as_percent: bool) -> str:
    """`a random direction reaches 1 %, the shuffled map 4 %`."""
    parts = [f"{rival.condition.phrase} {number(rival.score.value, as_percent)}" for rival in rivals]
    if parts:
        first = rivals[0]
        parts[0] = f"{first.condition.phrase} reaches {number(first.score.value, as_percent)}"
    return ", ".join(parts)
