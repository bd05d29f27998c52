"""What a benchmark is: the base class that every one of them derives from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import pyarrow as pa

from contrans_dist.benchmarks.summary import Metric, summarise
from contrans_dist.config import BATCH_TOKENS, EvaluationSettings

if TYPE_CHECKING:  # reports and dry runs read a benchmark's settings and names without torch
    from contrans_dist.benchmarks.calls import Call
    from contrans_dist.engine.scoring import Intervention
    from contrans_dist.models import LanguageModel
    from contrans_dist.models.classifier import Classifier
    from contrans_dist.store.location import Location

Fields = Sequence[tuple[str, pa.DataType]]
"""Names and types of columns."""
_COMMON: Fields = (
    ("item", pa.string()), ("concept", pa.string()), ("condition", pa.string()), ("strength", pa.float64()),
    ("block", pa.int64()),
)  # fmt: skip


class ScoredItem(Protocol):
    """One thing to score, small enough to send to another process: a frozen dataclass of plain values."""

    @property
    def id(self) -> str:
        """Unique among the benchmark's items, and the same in every run."""

    @property
    def concept(self) -> str:
        """The concept whose interventions apply to it; empty where it is scored under every concept's."""

    @property
    def scenario(self) -> str:
        """The text by which the contamination check knows it, without template and examples."""

    @property
    def prompt(self) -> str:
        """What the model reads; a baseline that is an instruction stands before it."""


S = TypeVar("S", bound=EvaluationSettings)
I = TypeVar("I", bound=ScoredItem)  # noqa: E741 -- an item


@dataclass(frozen=True)
class Benchmark(Generic[S, I]):
    """Items to score, numbers from their scores, and what these are called.

    A subclass names the classes of its settings and items, says what stands below, and has at least `load`,
    `items`, `calls` and `score`. It travels to the actors, so it is plain data.
    """

    settings: S

    settings_class: ClassVar[type[EvaluationSettings]] = EvaluationSettings
    """Its field `benchmark` has the benchmark's name as default."""
    metrics: ClassVar[Sequence[Metric]] = ()
    """The first heads the evaluation, and is what blocks and strengths are chosen by."""
    noun: ClassVar[str] = "items"
    """What the items are called in a report, in the plural."""
    group: ClassVar[tuple[str, str]] = ("Concept", "concepts")
    """What the parts before the `/` of a metric's name are, as a heading and in the plural."""
    offensive: ClassVar[bool] = False
    """Whether texts are offensive by design, so that a report folds them away."""
    batch_tokens: ClassVar[int] = BATCH_TOKENS
    """Tokens of one forward pass, padding included."""
    contrast_by: ClassVar[tuple[str, ...]] = ()
    """Where its data hold contrast texts for a concept: the settings that decide which of them it scores."""

    @classmethod
    def load(cls, settings: S) -> Self:
        """Read the data that the settings name. Raises UserError for data that are missing or wrong."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """As recipes and `metrics.json` have it."""
        return str(self.settings.benchmark)

    def items(self) -> Sequence[I]:
        """Every item, in an order that depends on the settings alone."""
        raise NotImplementedError

    def scores(self, item: I) -> bool:
        """Whether an item is scored; the others are there for what they tell of those that are."""
        return True

    def kind(self, item: I) -> str:
        """Which kind of item it is, where there are several. One that is `positive` shows its concept as it
        is, so that nothing is to be seen of steering to it."""
        return ""

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on besides the items and the settings of this benchmark, as JSON takes it.

        A key of the settings' takes that one's place.
        """
        return {}

    def model_identity(self, tokenizer: Any, items: Sequence[I], name: str) -> dict[str, Any]:
        """What the numbers of one model, called `name`, depend on besides, such as what its chat template
        makes of the items."""
        return {}

    def calls(self, lm: LanguageModel, items: Sequence[I]) -> Sequence[Call]:
        """What the engine is asked for these items: what `score` runs, and what a plan counts.

        Args:
            lm: Needs no weights; tokenizer and configuration are enough.
            items: Of one concept.
        """
        raise NotImplementedError

    def calls_apart(self, lm: LanguageModel, items: Sequence[I]) -> Sequence[Call] | None:
        """What is asked in their place for interventions with a vector for each item; None where these are
        run with the others."""
        return None

    def score(self, lm: LanguageModel, items: Sequence[I], interventions: Sequence[Intervention]) -> pa.Table:
        """A row for each intervention and item (`result_table`), from what `calls` run.

        The items are of one concept and the interventions that concept's; an intervention's name is the
        condition. An item of no concept gets rows without one: the driver knows whose vectors it gave.
        """
        raise NotImplementedError

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """From all rows what `metrics.json` says of them: `reference`, `conditions`, and `notes` for people.

        Here by `metrics` alone; see `summary.condition_entries` for the form of `conditions`.

        Args:
            table: The rows of `score`, judged where the benchmark is `Judged`.
            reference: The condition under test, where there are rows of it.
        """
        there = [metric for metric in self.metrics if set(metric.of) <= set(table.column_names)]
        return summarise(table, there, reference)

    @classmethod
    def headline(cls, names: Sequence[str] = ()) -> str:
        """The metric that heads an evaluation; without `metrics` the first of those found in it."""
        return cls.metrics[0].name if cls.metrics else next(iter(names), "")

    @classmethod
    def metric(cls, name: str) -> Metric | None:
        """How a metric of this benchmark is read; None for one that it does not have."""
        return next((metric for metric in cls.metrics if metric.name == name), None)

    @classmethod
    def contrast_texts(cls, folder: Location, settings: S) -> dict[str, list[Any]]:
        """Contrast texts from a folder of this benchmark's data that an evaluation with these settings does
        not score, as columns `text`, `label` (positive, negative) and whatever else; see `contrast_by`."""
        raise NotImplementedError


@runtime_checkable
class Judged(Protocol):
    """A benchmark whose rows hold texts that another model judges, in actors of its own."""

    @property
    def classifier(self) -> str:
        """The judge: a sequence-classification model, by hub id, folder or `demo:` name."""

    def judge(self, classifier: Classifier, table: pa.Table) -> pa.Table:
        """The rows of `score`, with the judge's columns added."""


def result_table(
    items: Sequence[ScoredItem],
    interventions: Sequence[Intervention],
    rows: Sequence[Sequence[Mapping[str, Any]]],
    fields: Fields,
) -> pa.Table:
    """The rows of `Benchmark.score`, intervention by intervention.

    Args:
        items: What was scored.
        interventions: Under which each of them was.
        rows: `[interventions][items]`, each a mapping with a value for every one of `fields`.
        fields: Columns besides `item`, `concept`, `condition`, `strength` and `block` (the lowest one that is
            steered, null for none), which are filled in here.
    """
    made = [
        {"item": item.id, "concept": item.concept, **intervention.columns, **row}
        for intervention, of_items in zip(interventions, rows, strict=True)
        for item, row in zip(items, of_items, strict=True)
    ]
    return pa.Table.from_pylist(made, schema=pa.schema([*_COMMON, *fields]))
