"""From the harness's results to an evaluation's metrics: intervals, means over concepts, paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from contrans_dist.benchmarks.statistics import mcnemar, wilcoxon, wilson
from contrans_dist.benchmarks.summary import Estimate, estimate

_Z = 1.959963984540054  # half the width of a 95 % interval, in standard errors
_DESCRIPTIONS = ("name", "alias", "sample_len", "sample_count")


@dataclass(frozen=True)
class Figure:
    """A metric's value, with what the harness knows of its spread."""

    value: float
    error: float | None
    """Standard error; None where the harness gives none."""
    n: int
    per_document: dict[str, float] = field(default_factory=dict)
    """By the document's id; empty for a metric that is none of single documents (a perplexity, an F1)."""

    def entry(self) -> Estimate:
        """`{value, low, high, n}`: 95 % by the standard error; for hits alone, or none, by Wilson's interval,
        as their standard error is zero; without either, null."""
        if not self.error and self.n and self.is_share and self.value in (0.0, 1.0):
            return estimate(self.value, wilson(round(self.value * self.n), self.n), self.n)
        half = _Z * (float("nan") if self.error is None else self.error)
        return estimate(self.value, (self.value - half, self.value + half), self.n)

    @property
    def is_share(self) -> bool:
        """Whether it counts documents that hit."""
        return bool(self.per_document) and set(self.per_document.values()) <= {0.0, 1.0}


def figures(results: Mapping[str, Any], leaves: Mapping[str, Sequence[str]]) -> dict[str, Figure]:
    """`<task>/<metric>` -> figure, for every task and group with numbers in the harness's results.

    A metric behind a filter of its own is `<metric>,<filter>`. They come in the order in which their task
    lists them, so that the one it names first heads the rest. `leaves`: the tasks of each task or group.
    """
    values = _per_document(results["samples"])
    made = {}
    for name, metrics in results["results"].items():
        listed = list(results["higher_is_better"].get(name) or ())
        for key in sorted(metrics, key=partial(_place, listed)):
            value, (metric, _, kind) = metrics[key], key.partition(",")
            if key in _DESCRIPTIONS or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            parts = [values.get((task, metric, kind)) for task in leaves[name]]
            n = (metrics.get("sample_count") or {}).get(key, metrics.get("sample_len", 0))
            made[f"{name}/{metric}" + ("" if kind == "none" else f",{kind}")] = Figure(
                float(value),
                float(error) if _is_number(error) else None,
                int(n),
                {key: v for part in parts if part for key, v in part.items()} if all(parts) else {},
            )
    return made


def _per_document(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[tuple[str, str, str], dict]:
    """(task, metric, filter) -> document -> value, for metrics with one finite number a document."""
    values: dict[tuple[str, str, str], dict[str, Any]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                place = values.setdefault((task, metric, row["filter"]), {})
                place[f"{task}/{row['doc_id']}"] = row[metric]
    return {
        key: {name: float(value) for name, value in of.items()}
        for key, of in values.items()
        if all(_is_number(value) for value in of.values())
    }


def _place(listed: Sequence[str], key: str) -> int:
    """Where a key `<metric>,<filter>` stands in a task's list of metrics; last if it does not."""
    metric = key.partition(",")[0]
    return listed.index(metric) if metric in listed else len(listed)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number) and bool(np.isfinite(value))


def mean_over_concepts(by_concept: Sequence[Figure]) -> Figure:
    """The mean of one metric over concepts, all scored on the same documents.

    Its standard error is the mean of theirs: exact where the concepts agree on every document, else wide.
    """
    errors = [figure.error for figure in by_concept]
    shared = set.intersection(*(set(figure.per_document) for figure in by_concept))
    return Figure(
        float(np.mean([figure.value for figure in by_concept])),
        None if None in errors else float(np.mean(np.array(errors, dtype=np.float64))),
        min(figure.n for figure in by_concept),
        {key: float(np.mean([figure.per_document[key] for figure in by_concept])) for key in sorted(shared)},
    )


def headings(figures: Mapping[str, Figure], tasks: Sequence[str]) -> dict[str, Figure]:
    """`<metric>` alone: the mean over the named tasks, for each metric that all of them have.

    In the order of the first of them.
    """
    first, *rest = (
        [key.removeprefix(f"{task}/") for key in figures if key.startswith(f"{task}/")] for task in tasks
    )
    result = {}
    for metric in (name for name in first if all(name in others for others in rest)):
        several = [figures[f"{task}/{metric}"] for task in tasks]
        if len(several) == 1:
            result[metric] = several[0]
            continue
        errors = [figure.error for figure in several]
        error = None if None in errors else float(np.linalg.norm(np.array(errors, np.float64)) / len(several))
        value = float(np.mean([figure.value for figure in several]))
        result[metric] = Figure(value, error, sum(figure.n for figure in several))
    return result


def p_values(mine: Mapping[str, Figure], others: Mapping[str, Figure]) -> dict[str, float]:
    """Paired p-values over the same documents: McNemar's exact test for hits, else Wilcoxon's.

    Documents are the units, however many concepts they were scored under. A metric without values of single
    documents has none.
    """
    result = {}
    for name, figure in mine.items():
        other = others.get(name)
        keys = sorted(set(figure.per_document) & set(other.per_document)) if other is not None else []
        if other is None or not keys:
            continue
        a, b = (np.array([one.per_document[key] for key in keys]) for one in (figure, other))
        hits = figure.is_share and other.is_share
        result[name] = mcnemar(a == 1, b == 1) if hits else wilcoxon(a, b)
    return result
