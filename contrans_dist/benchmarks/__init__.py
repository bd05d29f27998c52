"""Benchmarks: each says what is scored under which interventions, and how the scores are summed up."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from contrans_dist.models import LanguageModel
from contrans_dist.scoring import Intervention

__all__ = ["Benchmark", "ScoredItem"]


class ScoredItem(Protocol):
    """One thing to score, small enough to send to another process."""

    @property
    def id(self) -> str:
        """Unique among the benchmark's items, and the same in every run."""

    @property
    def concept(self) -> str:
        """The concept whose interventions apply to it; empty where a benchmark knows only one."""

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
        condition.
        """

    def summarise(self, table: pa.Table) -> dict[str, Any]:
        """`conditions`, a list of `{condition, strength, metrics, p_vs_vector, p_vs_base}`, and `notes`.

        `metrics` maps a name to `{value, low, high, n}`; a p-value belongs to the metric of its name.
        """
