"""Benchmarks: each says what is scored under which interventions, and how the scores are summed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:  # reports are headed without torch
    import pyarrow as pa

    from contrans_dist.engine.scoring import Intervention
    from contrans_dist.models import LanguageModel
    from contrans_dist.models.classifier import Classifier

__all__ = ["Benchmark", "Headline", "Judged", "ScoredItem", "headline", "more_is_better"]


class Headline(NamedTuple):
    """The metric that an evaluation is headed by and chosen by, and whether more of it is wanted."""

    metric: str
    higher: bool


_HEADLINES = {
    "emotions": "token_acc_negative",
    "truthfulqa": "mc1",
    "behaviours": "match_probability",
    "toxigen": "toxic_share",
    "perplexity": "perplexity",
}
_FALLING = {
    "toxic_share", "validation_toxic_share", "toxicity", "empty_share", "repetition", "perplexity",
    "word_perplexity", "byte_perplexity", "bits_per_byte",
}  # fmt: skip


def more_is_better(metric: str) -> bool:
    """Whether more of a metric (`toxic_share`) is wanted; so it is of one that is not known."""
    return metric not in _FALLING


def headline(
    benchmark: str, metrics: Sequence[str] = (), higher: Mapping[str, bool] | None = None
) -> Headline:
    """The headline of a benchmark; where it has none of its own (lm-eval), the first of `metrics`.

    `higher`: whether more is wanted, for metrics of which the evaluation itself says so.
    """
    name = _HEADLINES.get(benchmark) or next(iter(metrics), "")
    return Headline(name, (higher or {}).get(name, more_is_better(name)))


class ScoredItem(Protocol):
    """One thing to score, small enough to send to another process."""

    @property
    def id(self) -> str:
        """Unique among the benchmark's items, and the same in every run."""

    @property
    def concept(self) -> str:
        """The concept whose interventions apply to it; empty where it is scored under every concept's."""

    @property
    def scenario(self) -> str:
        """The text by which the leak check knows it, without template and examples."""


@runtime_checkable
class Benchmark(Protocol):
    """What a driver needs: items to cut into splits, rows for a split, and numbers for all rows."""

    @property
    def name(self) -> str: ...

    def items(self) -> Sequence[Any]:
        """Every item (a `ScoredItem`), in an order that depends on the settings alone."""

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on besides the items and the settings of this benchmark, as JSON takes it.

        A key of the settings' takes that one's place.
        """

    def score(
        self, lm: LanguageModel, items: Sequence[Any], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """A row for each item and intervention: at least `item`, `concept`, `condition`, `strength`, `block`.

        The items are of one concept and the interventions that concept's; an intervention's name is the
        condition. An item of no concept gets rows without one: the driver knows whose vectors it gave.
        """

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """`reference`, the condition under test if there are rows of it; `conditions`; `notes` for people.

        `conditions` lists `{condition, strength, metrics, p_vs_base}`, and `p_vs` of the reference
        (`summary.table_of`). `metrics` maps a name to `{value, low, high, n}`, `p_vs_base` to a p-value, and
        `p_vs` another condition's name to such a mapping, `p_vs_elsewhere` to such a mapping by strength.
        """


@runtime_checkable
class Judged(Protocol):
    """A benchmark whose rows hold texts that another model judges, in actors of its own."""

    @property
    def classifier(self) -> str:
        """The judge: a sequence-classification model, by hub id, folder or `demo:` name."""

    def judge(self, classifier: Classifier, table: pa.Table) -> pa.Table:
        """The rows of `score`, with the judge's columns added."""
