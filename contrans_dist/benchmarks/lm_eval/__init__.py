"""Any task of lm-evaluation-harness on the steered engine (extra `lm-eval`): the harness asks and judges, the
engine answers, under every intervention at once. Its documents are the items.

Nothing here imports the harness before it is needed; actors never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field

from contrans_dist.benchmarks.base import Benchmark, result_table
from contrans_dist.benchmarks.lm_eval.answering import Answer, answers, layout
from contrans_dist.benchmarks.lm_eval.documents import Document, HarnessRequest
from contrans_dist.benchmarks.lm_eval.summary import Figure, figures, headings, mean_over_concepts, p_values
from contrans_dist.benchmarks.lm_eval.tasks import Tasks
from contrans_dist.benchmarks.summary import Cell, Metric, condition_entries, in_order
from contrans_dist.config import EvaluationSettings

if TYPE_CHECKING:
    from contrans_dist.benchmarks.calls import Call
    from contrans_dist.engine.scoring import Intervention
    from contrans_dist.models import LanguageModel

__all__ = ["Answer", "Document", "HarnessBenchmark", "HarnessEvaluation", "HarnessRequest", "answers"]

_FIELDS = [
    ("task", pa.string()), ("logprobs", pa.list_(pa.float64())), ("greedy", pa.list_(pa.bool_())),
    ("texts", pa.list_(pa.string())),
]  # fmt: skip


class HarnessEvaluation(EvaluationSettings):
    """Any task of lm-evaluation-harness (the extra `contrans_dist[lm-eval]`)."""

    benchmark: Literal["lm-eval"] = "lm-eval"
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, or of groups of tasks."""
    include: str | None = None
    """A folder with task files of one's own."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question; None is the task's own number."""
    limit: int | None = Field(None, ge=1)
    """Only the first items of each task."""

    files: ClassVar[tuple[str, ...]] = ("texts", "include")


def _falling(name: str, title: str) -> Metric:
    return Metric(name, title, percent=False, higher=False)


@dataclass(frozen=True)
class HarnessBenchmark(Benchmark[HarnessEvaluation, Document]):
    """What settings ask of the harness; other processes get the settings alone."""

    tasks: Tasks | None = field(default=None, compare=False, repr=False)
    """Only where they were loaded: the harness's objects do not travel."""

    settings_class = HarnessEvaluation
    # Those of its metrics whose names say little; which way is better, a task itself tells.
    metrics = (
        Metric("acc", "Accuracy"),
        Metric("acc_norm", "Accuracy, by length"),
        Metric("exact_match", "Exact match"),
        Metric("f1", "F1"),
        _falling("perplexity", "Perplexity"),
        _falling("word_perplexity", "Perplexity per word"),
        _falling("byte_perplexity", "Perplexity per byte"),
        _falling("bits_per_byte", "Bits per byte"),
    )
    group = ("Task", "tasks")

    @classmethod
    def load(cls, settings: HarnessEvaluation) -> Self:
        """Load tasks and data and build every request. Raises UserError: see `Tasks.load`."""
        return cls(settings, Tasks.load(settings))

    def __reduce__(self) -> Any:
        return HarnessBenchmark, (self.settings,)

    @classmethod
    def headline(cls, names: Sequence[str] = ()) -> str:
        """The metric that the task lists first."""
        return next(iter(names), "")

    @classmethod
    def metric(cls, name: str) -> Metric | None:
        """What follows a comma is a filter of the harness: `exact_match,strict-match`."""
        plain, _, kind = name.partition(",")
        known = super().metric(plain)
        return (
            known if known is None or not kind else replace(known, name=name, title=f"{known.title} ({kind})")
        )

    def items(self) -> list[Document]:
        """Every document, task by task."""
        return self._tasks().documents

    def identity(self) -> dict[str, Any]:
        """How groups are summed up, and the code of one's own tasks; the rest is in the documents."""
        return self._tasks().identity()

    def calls(self, lm: LanguageModel, items: Sequence[Document]) -> list[Call]:
        """Every request of every document; does not need the harness."""
        return [part.call for part in layout(lm, items, self.settings.seed)]

    def score(
        self, lm: LanguageModel, items: Sequence[Document], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and document; does not need the harness.

        Columns besides the common ones: `task`, and with an entry for each of the document's requests
        `logprobs` (natural logarithm, of the whole continuation), `greedy` (whether the model itself would
        have written it), `texts`; null is what was not asked for. Raises UserError for a request that the
        model cannot hold.
        """
        answered = answers(lm, items, interventions, batch_tokens=self.batch_tokens, seed=self.settings.seed)
        rows = [
            [
                {
                    "task": item.task,
                    "logprobs": [answer.logprob for answer in given],
                    "greedy": [answer.greedy for answer in given],
                    "texts": [answer.text for answer in given],
                }
                for item, given in zip(items, of_items, strict=True)
            ]
            for of_items in answered
        ]
        return result_table(items, interventions, rows, _FIELDS)

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """`conditions`, `reference` and `notes`, and how each task was run (`tasks`).

        Metrics are the harness's own, in the order in which the task lists them. `<task>/<metric>`: over all
        steered concepts the mean; `<concept>/<task>/<metric>` where there are several; `<metric>` alone the
        mean over the tasks asked for.
        """
        tasks = self._tasks()
        given = _answers_in(table)
        results = {key: tasks.evaluate(answered) for key, answered in given.items()}
        by_condition: dict[Cell, dict[str, dict[str, Figure]]] = {}
        for (condition, strength, concept), result in results.items():
            leaves = {name: tasks.leaves(name) for name in result["results"]}
            by_condition.setdefault((condition, strength), {})[concept] = figures(result, leaves)
        top = tasks.top_level
        over = {key: _over_concepts(by_concept, top) for key, by_concept in by_condition.items()}
        headed = any("/" not in name for means in over.values() for name in means)
        apart = f"{', '.join(top)} have no metric in common that could head the rest"
        return {
            **condition_entries(
                list(over),
                lambda cell: {name: figure.entry() for name, figure in over[cell].items()},
                lambda cell, other: p_values(over[cell], over[other]),
                reference,
            ),
            "tasks": _described(next(iter(results.values()))),
            "notes": [] if headed else [apart],
        }

    def _tasks(self) -> Tasks:
        if self.tasks is None:
            object.__setattr__(self, "tasks", Tasks.load(self.settings))
        assert self.tasks is not None
        return self.tasks


def _over_concepts(by_concept: Mapping[str, dict[str, Figure]], tasks: Sequence[str]) -> dict[str, Figure]:
    """The figures of one condition: the tasks' means over concepts, with heading metrics first."""
    names = list(dict.fromkeys(name for figures in by_concept.values() for name in figures))
    over = {
        name: mean_over_concepts([figures[name] for figures in by_concept.values() if name in figures])
        for name in names
    }
    if len(by_concept) == 1:
        return {**headings(over, tasks), **over}
    single = {
        f"{concept}/{name}": figure
        for concept, figures in by_concept.items()
        for name, figure in figures.items()
    }
    return {**headings(over, tasks), **over, **single}


def _answers_in(table: pa.Table) -> dict[tuple[str, float, str], dict[str, list[Answer]]]:
    """(condition, strength, concept) -> document -> its answers."""
    given: dict[tuple[str, float, str], dict[str, list[Answer]]] = {}
    for row in table.to_pylist():
        answered = given.setdefault((row["condition"], row["strength"], row["concept"]), {})
        answered[row["item"]] = [
            Answer(*fields) for fields in zip(row["logprobs"], row["greedy"], row["texts"], strict=True)
        ]
    return {key: given[key] for key in in_order(given)}


def _described(result: Mapping[str, Any]) -> dict[str, Any]:
    """How each task was run: its version, examples before each question, and which way is better."""
    return {
        name: {
            "version": result["versions"].get(name),
            "num_fewshot": result["n-shot"].get(name),
            "higher_is_better": result["higher_is_better"].get(name),
        }
        for name in result["results"]
    }
