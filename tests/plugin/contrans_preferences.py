"""Preferences: of two endings of a text, does the steered model find the wanted one likelier?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa

from contrans_dist.benchmarks import (
    Benchmark,
    Continuations,
    Metric,
    ValidatedEvaluation,
    mean,
    result_table,
)
from contrans_dist.benchmarks.choices import answer_ids
from contrans_dist.benchmarks.statistics import wilcoxon
from contrans_dist.data.texts import read_texts, records
from contrans_dist.errors import UserError

if TYPE_CHECKING:  # a report reads the names below without torch
    from contrans_dist.engine.scoring import Intervention
    from contrans_dist.models import LanguageModel


class PreferenceEvaluation(ValidatedEvaluation):
    """What a recipe may set; `texts` and `validation` are inherited, as is all that evaluations share."""

    benchmark: Literal["preferences"] = "preferences"
    template: str = "{text}"
    """Prompt around each text."""


@dataclass(frozen=True)
class Preference:
    """A text with two endings."""

    id: str
    scenario: str
    prompt: str
    endings: tuple[str, str]
    """The wanted one, and the other."""
    concept: str = ""
    """Empty: scored under the vectors of every concept."""


@dataclass(frozen=True)
class PreferenceBenchmark(Benchmark[PreferenceEvaluation, Preference]):
    """Texts from a file with the columns `text`, `wanted` and `other`."""

    all_items: list[Preference]

    settings_class = PreferenceEvaluation
    metrics = (
        Metric("preferred", "Wanted ending preferred", items="texts"),
        Metric("margin", "Margin of the wanted ending", "", mean, wilcoxon, percent=False, items="texts"),
    )
    noun = "texts"

    @classmethod
    def load(cls, settings: PreferenceEvaluation) -> Self:
        """Read the file. Raises UserError for one that is missing or has other columns."""
        if settings.texts is None:
            raise UserError("preferences: expected `texts`, a file with columns text, wanted and other")
        rows = records(read_texts(settings.texts), settings.texts, ["text", "wanted", "other"])
        return cls(
            settings,
            [
                Preference(
                    f"text/{number:04d}",
                    row["text"],
                    settings.template.format(text=row["text"]),
                    (row["wanted"], row["other"]),
                )
                for number, row in enumerate(rows)
            ],
        )

    def items(self) -> list[Preference]:
        """Every text, in the file's order."""
        return self.all_items

    def calls(self, lm: LanguageModel, items: Sequence[Preference]) -> list[Continuations]:
        """Both endings of each text, one after the other."""
        owners = [place for place in range(len(items)) for _ in range(2)]
        pairs = answer_ids(
            lm,
            [items[place].prompt for place in owners],
            [ending for item in items for ending in item.endings],
        )
        return [Continuations([context for context, _ in pairs], [ending for _, ending in pairs], owners)]

    def score(
        self, lm: LanguageModel, items: Sequence[Preference], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """A row for each intervention and text: whether the wanted ending is likelier, and by how much."""
        (call,) = self.calls(lm, items)
        scores = call.run(lm, items, interventions, self.batch_tokens)
        rows: list[list[dict[str, Any]]] = []
        for sums in scores.sums:  # log-likelihoods under one intervention
            margins = (sums[0::2] - sums[1::2]).tolist()
            rows.append([{"preferred": margin > 0, "margin": margin} for margin in margins])
        return result_table(items, interventions, rows, [("preferred", pa.bool_()), ("margin", pa.float64())])
