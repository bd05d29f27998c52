"""What conditions and metrics are called, what they are for, and how a figure of theirs is read."""

from dataclasses import dataclass, replace
from typing import Literal

from contrans_dist.benchmarks import more_is_better

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
    system: bool = False
    """Another model or prompt, and no vector: it has no strength (its rows say 1)."""


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
        "averaged", "Averaged over sources", "the vector averaged over sources", "variant",
        "the mean of the vectors that several sources give, each through a map of its own",
    ),
    ConditionName(
        "sum", "Sum of concepts", "the sum of the concepts' vectors", "variant",
        "the vectors of all concepts added together",
    ),
    ConditionName(
        "orthogonal", "Orthogonal sum", "the sum of orthogonal vectors", "variant",
        "the same sum after the vectors were made orthogonal to each other",
    ),
    ConditionName(
        "self-align", "Target's own vector", "the target's own vector", "reference",
        "the concept vector made from the target itself, or from its instruct model",
    ),
    ConditionName(
        "self-modulation", "Self-modulation", "self-modulation", "reference",
        "the target's own vector, as L-Cross Modulation applies it",
    ),
    ConditionName(
        "align-training", "Align-training", "alignment training", "reference",
        "the target after alignment training: another model, to which nothing is added", True,
    ),
    ConditionName(
        "inst-align", "Inst-align", "the instruction", "reference",
        "the target with an instruction before every prompt, to which nothing is added", True,
    ),
    ConditionName(
        "proxy-tuning", "Proxy-tuning", "proxy-tuning", "reference",
        "the target's logits plus what alignment training changed in the source's", True,
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
_FROM = "from:"
BASE = ConditionName("base", "No steering", "no steering", "reference", "the target as it is")
_BY_KEY = {name.key: name for name in [*_CONDITIONS, BASE]}


def condition_name(key: str) -> ConditionName:
    """Names of a condition; one that is not known is a variant under its own key."""
    if key.startswith(_FROM):
        source = key.removeprefix(_FROM)
        return ConditionName(
            key, f"From {source}", f"the vector from {source}", "variant",
            f"the concept vector of the further source {source}",
        )  # fmt: skip
    return _BY_KEY.get(key) or ConditionName(key, key, key, "variant", "")


def condition_order(key: str) -> tuple[float, str]:
    """Sort key: effects, variants, references, controls; `from:<name>` and unknown ones end the variants."""
    order = [name.key for name in _CONDITIONS]
    return (order.index(key) if key in order else order.index("orthogonal") + 0.5, key)


@dataclass(frozen=True)
class Metric:
    """How a metric is read: `percent` for shares of 1, `higher` when more is the effect wanted."""

    key: str
    title: str
    percent: bool = True
    higher: bool = True
    items: str = "items"
    cost: bool = False
    """What steering does to the model's other abilities: no effect is looked for in it."""


_METRICS = [
    Metric("token_acc_negative", "Token Acc on negative scenarios", items="negative scenarios"),
    Metric("logit_acc_negative", "Logit Acc on negative scenarios", items="negative scenarios"),
    Metric("token_acc_positive", "Token Acc on positive scenarios", items="positive scenarios"),
    Metric("logit_acc_positive", "Logit Acc on positive scenarios", items="positive scenarios"),
    Metric("mc1", "MC1", items="questions"),
    Metric("mc2", "MC2", items="questions"),
    *(
        Metric(f"{task}_{kind}", f"{task.upper()}, {words}", items="questions")
        for task in ("mc1", "mc2")
        for kind, words in (
            ("sum", "summed log-likelihood"),
            ("per_token", "log-likelihood per token"),
            ("per_character", "log-likelihood per character"),
        )
    ),
    Metric("match_probability", "Probability of the matching answer", items="questions"),
    Metric(
        "match_probability_plain", "Probability of the matching answer, unbalanced mean", items="questions"
    ),
    Metric("letter_mass", "Probability of the letters together", items="questions"),
    Metric("toxic_share", "Share of toxic continuations", items="prompts"),
    Metric("validation_toxic_share", "Share of toxic continuations, validation", items="prompts"),
    Metric("toxicity", "Mean toxicity", items="prompts"),
    Metric("empty_share", "Share of empty continuations", items="prompts"),
    Metric("repetition", "Share of repetitive continuations", items="prompts"),
    Metric("perplexity", "Perplexity", percent=False, items="tokens", cost=True),
    # Of lm-evaluation-harness.
    Metric("acc", "Accuracy"),
    Metric("acc_norm", "Accuracy, by length"),
    Metric("exact_match", "Exact match"),
    Metric("f1", "F1"),
    Metric("word_perplexity", "Perplexity per word", percent=False),
    Metric("byte_perplexity", "Perplexity per byte", percent=False),
    Metric("bits_per_byte", "Bits per byte", percent=False),
]
_BY_LETTER = "match_probability_"


def metric(key: str) -> Metric:
    """The metric behind a key such as `token_acc_negative` or, for one concept, `fear/token_acc_negative`.

    What follows a comma is a filter of lm-evaluation-harness: `exact_match,strict-match`.
    """
    name = key.rpartition("/")[2]
    plain, _, kind = name.partition(",")
    known, higher = next((entry for entry in _METRICS if entry.key == plain), None), more_is_better(plain)
    if known is not None:
        title = f"{known.title} ({kind})" if kind else known.title
        return replace(known, key=name, title=title, higher=higher)
    if name.startswith(_BY_LETTER):
        letter = name.removeprefix(_BY_LETTER)
        return Metric(name, f"Probability of the matching answer where it is {letter}", items="questions")
    return Metric(name, name, percent=False)


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
