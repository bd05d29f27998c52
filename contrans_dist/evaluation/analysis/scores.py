"""One evaluation: scores by condition, strength and metric, and what else it says of itself."""

from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

from contrans_dist.benchmarks import Metric, about, metric_of
from contrans_dist.evaluation.analysis.strengths import Search
from contrans_dist.evaluation.conditions import condition_of, condition_order
from contrans_dist.store.location import Location


@dataclass(frozen=True)
class Score:
    """A metric's value with its interval and the number of items behind it."""

    value: float
    interval: tuple[float, float] | None
    """95 %; None where nothing says how far the value may be off, as with a single item."""
    n: int

    @property
    def ends(self) -> tuple[float, float]:
        """The interval as it is drawn: NaN, which leaves a gap, where there is none."""
        return self.interval or (nan, nan)

    @property
    def top(self) -> float:
        """The highest of what is drawn."""
        return self.interval[1] if self.interval else self.value

    def holds(self, value: float) -> bool | None:
        """Whether the interval holds a value; None without one."""
        return self.interval[0] <= value <= self.interval[1] if self.interval else None


@dataclass(frozen=True)
class Row:
    """Scores of one condition at one strength, by metric; p-values of paired tests where known."""

    condition: str
    strength: float
    scores: dict[str, Score]
    p_values: dict[str, dict[str, float]] = field(default_factory=dict)
    """The other condition (`base` among them) -> metric -> p, against its row at the same strength, or the
    only one it has; others than `base` in the reference's rows."""
    p_elsewhere: dict[str, dict[float, dict[str, float]]] = field(default_factory=dict)
    """The other condition -> strength of another of its rows -> metric -> p."""

    def p(self, against: str, metric: str, strength: float | None = None) -> float | None:
        """Paired p-value against another condition, at a strength where it has several."""
        elsewhere = self.p_elsewhere.get(against, {}).get(self.strength if strength is None else strength)
        return (elsewhere or self.p_values.get(against, {})).get(metric)


@dataclass(frozen=True)
class Reported:
    """The strength at which another evaluation of the same run reports a condition."""

    strength: float
    evaluation: str


@dataclass(frozen=True)
class Leak:
    """How many of the scored scenarios were in the texts of the vector and of the map; None: not known."""

    evaluated: int
    overlap_vector: int | None
    overlap_map: int | None
    examples: list[str]

    @property
    def seen(self) -> int:
        """Scored scenarios that were seen before, at least."""
        return max(self.overlap_vector or 0, self.overlap_map or 0)

    @property
    def vector_text(self) -> str:
        return "not checked" if self.overlap_vector is None else str(self.overlap_vector)

    @property
    def map_text(self) -> str:
        return "not checked" if self.overlap_map is None else str(self.overlap_map)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: rows in the file's order, the leak check, and what it says of itself."""

    name: str
    location: Location
    benchmark: str
    model: str
    rows: list[Row]
    leak: Leak | None = None
    block: int | None = None
    notes: list[str] = field(default_factory=list)
    throughput: dict[str, Any] = field(default_factory=dict)
    """What older evaluations say of their cost: items, seconds."""
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """system -> rows, forward_passes, tokens, seconds; the system `target` stands for all vectors."""
    search: Search | None = None
    """How each condition's strength was chosen, where it was."""
    reference: str | None = None
    """The condition that others were tested against."""
    reported: dict[str, Reported] = field(default_factory=dict)
    """Where each condition's cost is read: the strengths of the run's main evaluation."""
    content: dict[str, Any] = field(default_factory=dict)
    """The whole of `metrics.json`."""

    @property
    def metrics(self) -> list[str]:
        """Metrics over all concepts, the heading one first, then in the file's order."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.scores if "/" not in name))
        head = about(self.benchmark).headline(names)
        return sorted(names, key=lambda name: name != head)

    def metric(self, key: str) -> Metric:
        """How a metric is read here: as everywhere, but for the direction that a task itself tells."""
        found, (*above, name) = metric_of(key, self.benchmark), key.split("/")
        tasks = self.content.get("tasks") or {}
        asked = [tasks[above[-1]]] if above and above[-1] in tasks else tasks.values()
        told = [(task.get("higher_is_better") or {}).get(name.partition(",")[0]) for task in asked]
        higher = next((each for each in told if each is not None), None)
        return found if higher is None else replace(found, higher=bool(higher), cost=False)

    @property
    def concepts(self) -> list[str]:
        """Concepts, or other groups of items, that have scores of their own, sorted."""
        keys = {name for row in self.rows for name in row.scores if "/" in name}
        return sorted({key.rpartition("/")[0] for key in keys})

    def groups(self, metric: str) -> list[str]:
        """Those of `concepts` that have a score in one metric."""
        keys = {name for row in self.rows for name in row.scores}
        return [concept for concept in self.concepts if f"{concept}/{metric}" in keys]

    @property
    def conditions(self) -> list[str]:
        """Conditions other than base, in the order in which they are shown."""
        return sorted({row.condition for row in self.rows} - {"base"}, key=condition_order)

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

    def row(self, condition: str, strength: float) -> Row | None:
        found = (row for row in self.rows if row.condition == condition and row.strength == strength)
        return next(found, None)

    def score(self, condition: str, strength: float, metric: str) -> Score | None:
        row = self.row(condition, strength)
        return row.scores.get(metric) if row else None

    def base(self, metric: str) -> Score | None:
        """The unsteered score: condition `base`, else any condition at strength 0, which is the same."""
        rows = sorted((r for r in self.rows if r.strength == 0), key=lambda r: r.condition != "base")
        return next((row.scores[metric] for row in rows if metric in row.scores), None)

    def curve(self, condition: str, metric: str) -> list[tuple[float, Score]]:
        """(strength, score) of a condition, ascending; begins with base at strength 0 where known."""
        start = self.base(metric)
        points = [(0.0, start)] if start else []
        own = {row.strength: row.scores for row in self.rows if row.condition == condition}
        return points + [(at, own[at][metric]) for at in sorted(own) if at != 0 and metric in own[at]]
