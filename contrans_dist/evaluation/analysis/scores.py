"""One evaluation: scores by condition, strength and metric, and what else it says of itself."""

from dataclasses import dataclass, field, replace

import pyarrow as pa

from contrans_dist.benchmarks import Metric, about, metric_of
from contrans_dist.evaluation.conditions import BASE, condition_of, condition_order
from contrans_dist.store.location import Location
from contrans_dist.store.results import (
    ConditionScores,
    MetricsFile,
    Score,
    SearchFile,
    read_metrics,
    read_search,
)

_TABLE = pa.schema(
    [
        ("condition", pa.string()), ("strength", pa.float64()), ("concept", pa.string()),
        ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("n", pa.int64()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Reported:
    """The strength at which another evaluation of the same run reports a condition."""

    strength: float
    evaluation: str


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its `metrics.json`, how its strengths were chosen, and its place in a run."""

    location: Location
    file: MetricsFile
    search: SearchFile | None = None
    """How each condition's strength was chosen, where it was."""
    reported: dict[str, Reported] = field(default_factory=dict)
    """Where each condition's cost is read: the strengths of the run's main evaluation."""

    @property
    def name(self) -> str:
        return self.location.name

    @property
    def benchmark(self) -> str:
        return self.file.benchmark

    @property
    def rows(self) -> list[ConditionScores]:
        """In the file's order."""
        return self.file.conditions

    @property
    def metrics(self) -> list[str]:
        """Metrics over all concepts, the heading one first, then in the file's order."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.metrics if "/" not in name))
        head = about(self.benchmark).headline(names)
        return sorted(names, key=lambda name: name != head)

    def metric(self, key: str) -> Metric:
        """How a metric is read here: as everywhere, but for the direction that a task itself tells."""
        usual, (*above, name) = metric_of(key, self.benchmark), key.split("/")
        tasks = self.file.tasks or {}
        meant = [tasks[above[-1]]] if above and above[-1] in tasks else tasks.values()
        told = [(task.higher_is_better or {}).get(name.partition(",")[0]) for task in meant]
        higher = next((direction for direction in told if direction is not None), None)
        return usual if higher is None else replace(usual, higher=higher, cost=False)

    @property
    def concepts(self) -> list[str]:
        """Concepts, or other groups of items, that have scores of their own, sorted."""
        keys = {name for row in self.rows for name in row.metrics if "/" in name}
        return sorted({key.rpartition("/")[0] for key in keys})

    def groups(self, metric: str) -> list[str]:
        """Those of `concepts` that have a score in one metric."""
        keys = {name for row in self.rows for name in row.metrics}
        return [concept for concept in self.concepts if f"{concept}/{metric}" in keys]

    @property
    def conditions(self) -> list[str]:
        """Conditions other than base, in the order in which they are shown."""
        return sorted({row.condition for row in self.rows} - {BASE.name}, key=condition_order)

    @property
    def strengths(self) -> list[float]:
        """Strengths at which something was added, ascending."""
        rows = [row for row in self.rows if not condition_of(row.condition).no_vector]
        return sorted({row.strength for row in rows if row.strength != 0})

    @property
    def is_sweep(self) -> bool:
        """Whether a condition was scored at several strengths, so that there is a curve to draw."""
        at: dict[str, set[float]] = {}
        for row in self.rows:
            at.setdefault(row.condition, set()).add(row.strength)
        return any(len(strengths - {0.0}) > 1 for strengths in at.values())

    def row(self, condition: str, strength: float) -> ConditionScores | None:
        rows = (row for row in self.rows if row.condition == condition and row.strength == strength)
        return next(rows, None)

    def score(self, condition: str, strength: float, metric: str) -> Score | None:
        row = self.row(condition, strength)
        return row.metrics.get(metric) if row else None

    def base(self, metric: str) -> Score | None:
        """The unsteered score: condition `base`, else any condition at strength 0, which is the same."""
        rows = sorted((r for r in self.rows if r.strength == 0), key=lambda r: r.condition != BASE.name)
        return next((row.metrics[metric] for row in rows if metric in row.metrics), None)

    def curve(self, condition: str, metric: str) -> list[tuple[float, Score]]:
        """(strength, score) of a condition, ascending; begins with base at strength 0 where known."""
        start = self.base(metric)
        points = [(0.0, start)] if start else []
        scores = {row.strength: row.metrics for row in self.rows if row.condition == condition}
        return points + [
            (at, scores[at][metric]) for at in sorted(scores) if at != 0 and metric in scores[at]
        ]


def read_evaluation(folder: Location) -> Evaluation:
    """An evaluation's folder. Raises UserError for files of another form."""
    return Evaluation(folder, read_metrics(folder), read_search(folder))


def score_table(evaluation: Evaluation, metric: str | None = None, groups: bool | None = None) -> pa.Table:
    """Scores as rows: condition, strength, concept (empty: all), metric, value, low, high, n.

    `low` and `high` are null where there is no interval. `metric`: this one alone; `groups`: only those of
    single concepts, or only those over all.
    """
    rows = []
    for row in evaluation.rows:
        for key, score in row.metrics.items():
            concept, _, name = key.rpartition("/")
            if metric not in (None, name) or groups not in (None, bool(concept)):
                continue
            low, high = score.interval or (None, None)
            rows.append((row.condition, row.strength, concept, name, score.value, low, high, score.n or 0))
    columns = zip(*rows, strict=True) if rows else [[] for _ in _TABLE]
    return pa.table(dict(zip(_TABLE.names, map(list, columns), strict=True)), schema=_TABLE)
