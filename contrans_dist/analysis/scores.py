"""The scores of one evaluation, as `metrics.json` holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from contrans_dist.analysis.names import condition_name, condition_order, metric_order
from contrans_dist.analysis.strengths import Search, read_search
from contrans_dist.errors import UserError
from contrans_dist.storage import Location

METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Score:
    """A metric's value with its interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Row:
    """Scores of one condition at one strength, by metric; p-values of paired tests where known."""

    condition: str
    strength: float
    scores: dict[str, Score]
    p_vs_vector: Any = None
    p_vs_base: Any = None

    def p(self, against: str, metric: str) -> float | None:
        """Paired p-value against `vector` or `base`; a lone number belongs to the heading metric."""
        found = self.p_vs_vector if against == "vector" else self.p_vs_base
        if isinstance(found, Mapping):
            found = found.get(metric)
        elif metric != min(self.scores, key=metric_order, default=metric):
            return None
        return float(found) if isinstance(found, int | float) else None


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
    content: dict[str, Any] = field(default_factory=dict)
    """The whole of `metrics.json`."""

    @property
    def metrics(self) -> list[str]:
        """Metrics over all concepts, the heading one first."""
        names = {name for row in self.rows for name in row.scores if "/" not in name}
        return sorted(names, key=metric_order)

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
        rows = [row for row in self.rows if not condition_name(row.condition).system]
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


def read_evaluation(location: Location) -> Evaluation:
    """Read the `metrics.json` of an evaluation folder. Raises UserError for one of another form."""
    content = (location / METRICS_FILE).read_json()
    try:
        rows = [
            Row(
                str(entry["condition"]),
                float(entry["strength"]),
                {
                    name: _score(score)
                    for name, score in entry["metrics"].items()
                    if score["value"] is not None
                },
                entry.get("p_vs_vector"),
                entry.get("p_vs_base"),
            )
            for entry in content["conditions"]
        ]
        block = content.get("block")
        return Evaluation(
            name=location.name,
            location=location,
            benchmark=str(content["benchmark"]),
            model=str(content["model"]),
            rows=rows,
            leak=_leak(content.get("leak")),
            block=int(block) if isinstance(block, int | float) else None,
            notes=[str(note) for note in content.get("notes") or []],
            throughput=dict(content.get("throughput") or {}),
            costs={str(k): dict(v) for k, v in (content.get("costs") or {}).items()},
            search=read_search(location),
            content=content,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{location / METRICS_FILE}: expected benchmark, model and conditions with metrics ({error!r})"
        ) from error


def _score(entry: Mapping[str, Any]) -> Score:
    value = float(entry["value"])
    low, high = entry.get("low"), entry.get("high")
    return Score(
        value,
        value if low is None else float(low),
        value if high is None else float(high),
        int(entry.get("n") or 0),
    )


def _leak(entry: Mapping[str, Any] | None) -> Leak | None:
    if not entry:
        return None
    vector, mapping = entry.get("overlap_vector"), entry.get("overlap_map")
    return Leak(
        int(entry["evaluated"]),
        None if vector is None else int(vector),
        None if mapping is None else int(mapping),
        [str(example) for example in entry.get("examples") or []],
    )


def score_table(evaluation: Evaluation) -> pa.Table:
    """Every score as one row: condition, strength, concept (empty: all), metric, value, low, high, n."""
    rows = [
        {
            "condition": row.condition,
            "strength": row.strength,
            "concept": key.rpartition("/")[0],
            "metric": key.rpartition("/")[2],
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
        }
        for row in evaluation.rows
        for key, score in row.scores.items()
    ]
    names = ["condition", "strength", "concept", "metric", "value", "low", "high", "n"]
    return pa.table({name: [row[name] for row in rows] for name in names})
