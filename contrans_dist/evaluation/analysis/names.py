"""What metrics are called, and how a figure of theirs is read."""

from dataclasses import dataclass, replace

from contrans_dist.benchmarks import more_is_better


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
