"""Benchmarks: each says what is scored under which interventions, and how the scores are summed up."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from contrans_dist.models import LanguageModel
from contrans_dist.models.classifier import Classifier
from contrans_dist.scoring import Intervention

__all__ = ["Benchmark", "Headline", "Judged", "ScoredItem", "headline"]


class Headline(NamedTuple):
    """The metric that an evaluation is headed by and chosen by, and whether more of it is wanted."""

    metric: str
    higher: bool


_HEADLINES = {
    "emotions": Headline("token_acc_negative", True),
    "truthfulqa": Headline("mc1", True),
    "behaviours": Headline("match_probability", True),
    "toxigen": Headline("toxic_share", False),
    "perplexity": Headline("perplexity", False),
}


def headline(benchmark: str, metrics: Sequence[str] = ()) -> Headline:
    """The headline of a benchmark; where it has none of its own (lm-eval), the first of `metrics`."""
    return _HEADLINES.get(benchmark) or Headline(next(iter(metrics), ""), True)


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

    def score(
        self, lm: LanguageModel, items: Sequence[Any], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """A row for each item and intervention: at least `item`, `concept`, `condition`, `strength`, `block`.

        The items are of one concept and the interventions that concept's; an intervention's name is the
        condition. An item of no concept gets rows without one: the driver knows whose vectors it gave.
        """

    def summarise(self, table: pa.Table) -> dict[str, Any]:
        """`conditions`, a list of `{condition, strength, metrics, p_vs_vector, p_vs_base}`, and `notes`.

        `metrics` maps a name to `{value, low, high, n}`; a p-value belongs to the metric of its name.
        """


@runtime_checkable
class Judged(Protocol):
    """A benchmark whose rows hold texts that another model judges, in actors of its own."""

    @property
    def classifier(self) -> str:
        """The judge: a sequence-classification model, by hub id, folder or `demo:` name."""

    def judge(self, classifier: Classifier, table: pa.Table) -> pa.Table:
        """The rows of `score`, with the judge's columns added."""
