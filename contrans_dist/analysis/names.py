"""What conditions and metrics are called, what they are for, and how a figure of theirs is read."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["effect", "reference", "control", "variant"]


@dataclass(frozen=True)
class ConditionName:
    """A condition of an evaluation: `role` says what its score may be compared with."""

    key: str
    title: str
    phrase: str
    """As it stands inside a sentence."""
    role: Role
    meaning: str


_CONDITIONS = [
    ConditionName(
        "vector", "Transplanted vector", "the transplanted vector", "effect",
        "the source's concept vector, sent through the map and added to the target",
    ),
    ConditionName(
        "lcross-own", "L-Cross, own concept", "the L-Cross vector", "effect",
        "the map fitted on the concept's own contrast prompts; close to memorising the target's own vector",
    ),
    ConditionName(
        "lcross-unrelated", "L-Cross, other concepts", "the L-Cross vector of unrelated prompts", "variant",
        "the map fitted on another concept's contrast prompts",
    ),
    ConditionName(
        "self-align", "Target's own vector", "the target's own vector", "reference",
        "the concept vector made from the target itself: what a perfect transplant would reach",
    ),
    ConditionName(
        "random", "Random direction", "a random direction", "control",
        "a random direction of the same norm, another for each scenario",
    ),
    ConditionName(
        "shuffled-map", "Shuffled map", "the shuffled map", "control",
        "the same vector through the map with its rows shuffled",
    ),
    ConditionName(
        "other-concept", "Another concept", "another concept's vector", "control",
        "the transplanted vector of another concept",
    ),
    ConditionName(
        "random-map", "Random map", "a random map", "control",
        "the same vector through a random map",
    ),
    ConditionName(
        "no-map", "Without a map", "the unmapped vector", "control",
        "the source's vector as it is, where the widths agree",
    ),
]  # fmt: skip
BASE = ConditionName("base", "No steering", "no steering", "reference", "the target as it is")
_BY_KEY = {name.key: name for name in [*_CONDITIONS, BASE]}


def condition_name(key: str) -> ConditionName:
    """Names of a condition; one that is not known is a variant under its own key."""
    return _BY_KEY.get(key) or ConditionName(key, key, key, "variant", "")


def condition_order(key: str) -> tuple[int, str]:
    """Sort key: effects, variants, references, controls; unknown ones behind the known of their role."""
    order = [name.key for name in _CONDITIONS]
    return (order.index(key) if key in order else len(order), key)


@dataclass(frozen=True)
class Metric:
    """How a metric is read: `percent` for shares of 1, `higher` when more is the effect wanted."""

    key: str
    title: str
    percent: bool = True
    higher: bool = True
    items: str = "items"


_METRICS = [
    Metric("token_acc_negative", "Token Acc on negative scenarios", items="negative scenarios"),
    Metric("logit_acc_negative", "Logit Acc on negative scenarios", items="negative scenarios"),
    Metric("token_acc_positive", "Token Acc on positive scenarios", items="positive scenarios"),
    Metric("logit_acc_positive", "Logit Acc on positive scenarios", items="positive scenarios"),
    Metric("mc1", "MC1", items="questions"),
    Metric("mc2", "MC2", items="questions"),
    Metric("match_probability", "Probability of the matching answer", items="questions"),
    Metric("toxic_share", "Share of toxic continuations", higher=False, items="prompts"),
    Metric("perplexity", "Perplexity", percent=False, higher=False, items="tokens"),
]


def metric(key: str) -> Metric:
    """The metric behind a key such as `token_acc_negative` or, for one concept, `fear/token_acc_negative`."""
    name = key.rpartition("/")[2]
    return next((known for known in _METRICS if known.key == name), Metric(name, name, percent=False))


def metric_order(key: str) -> tuple[int, str]:
    """Sort key: the metric an evaluation is headed by comes first."""
    known = [entry.key for entry in _METRICS]
    return (known.index(key) if key in known else len(known), key)


def number(value: float, as_percent: bool, digits: int | None = None) -> str:
    """A value for people: `78 %`, `1.2 %`, `14.3`. `digits` fixes the decimals."""
    if not as_percent:
        return f"{value:.{2 if digits is None else digits}f}"
    share = 100 * value
    decimals = (1 if 0 < abs(share) < 9.95 or 99 < share < 100 else 0) if digits is None else digits
    return f"{share:.{decimals}f}\u202f%"


def strength_text(strength: float) -> str:
    """A strength without needless zeros: `2`, `0.5`."""
    return f"{strength:g}"
