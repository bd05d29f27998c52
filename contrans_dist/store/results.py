"""The JSON files of an evaluation and of a run: one model of each, for those who write and who read them."""

import re
from math import nan
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt
from pydantic_core import PydanticCustomError

from contrans_dist.config import FileModel
from contrans_dist.config.limits import CONDITION_ROWS, check_size
from contrans_dist.config.recipe import validated
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import Made
from contrans_dist.store.trials import Outcome, Trials

METRICS, SEARCH, RECORD = "metrics.json", "search.json", "run.json"
PValues = dict[str, float]
"""By metric."""
F = TypeVar("F", bound=FileModel)
_UNKNOWN = "an unknown number"
_COMMON = re.compile(r"(\.\./){0,3}activations/(?!\.\.?$)[^/\\\0]+")


class Score(FileModel):
    """A metric's value with its 95 % interval and the number of items behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: NonNegativeInt | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """None where nothing says how far the value may be off, as with a single item, or where all that was
        resampled had one and the same value."""
        if self.low is None or self.high is None or self.low == self.high:
            return None
        return self.low, self.high

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


class ConditionScores(FileModel):
    """The scores of one condition at one strength, and how they were tested against others."""

    condition: str
    strength: float
    metrics: dict[str, Score]
    p_vs_base: PValues | None = None
    p_vs: dict[str, PValues] | None = None
    """By the other condition: against its row at the same strength, or the only one it has."""
    p_vs_elsewhere: dict[str, dict[float, PValues]] | None = None
    """By the other condition and the strength of another of its rows."""

    def p(self, against: str, metric: str, strength: float | None = None) -> float | None:
        """Paired p-value against another condition, `base` too, at a strength where it has several; None
        where that was not tested."""
        elsewhere = (self.p_vs_elsewhere or {}).get(against)
        if elsewhere and strength not in (None, self.strength):
            return elsewhere.get(strength, {}).get(metric)
        same = self.p_vs_base if against == "base" else (self.p_vs or {}).get(against)
        return (same or {}).get(metric)


class LeakCheck(FileModel):
    """How many of the scored scenarios were in the texts of the vector and of the map; None: not known."""

    evaluated: NonNegativeInt
    overlap_vector: NonNegativeInt | None = None
    overlap_map: NonNegativeInt | None = None
    in_part: NonNegativeInt | None = None
    """Of them, those that were seen in part."""
    examples: list[str] | None = None

    @property
    def seen(self) -> int:
        """Scored scenarios that were seen before, at least."""
        return max(self.overlap_vector or 0, self.overlap_map or 0)

    @property
    def known(self) -> bool:
        """Whether the texts of both are known: only then has what was not found not been seen."""
        return self.overlap_vector is not None and self.overlap_map is not None

    @property
    def vector_text(self) -> str:
        return _UNKNOWN if self.overlap_vector is None else str(self.overlap_vector)

    @property
    def map_text(self) -> str:
        return _UNKNOWN if self.overlap_map is None else str(self.overlap_map)


class TaskEntry(FileModel):
    """How a task of lm-evaluation-harness was run; what else the harness says of it is kept as it is."""

    model_config = ConfigDict(extra="allow")

    higher_is_better: dict[str, bool | None] | None = None


class MetricsFile(Made):
    """`metrics.json`: what an evaluation found, and of what. Keys that a benchmark adds are kept."""

    model_config = ConfigDict(extra="allow")

    benchmark: str
    model: str
    protocol: str | None = None
    block: NonNegativeInt | None = None
    """The one that was steered; None where there were several, or none."""
    blocks: list[NonNegativeInt] | None = None
    strengths: list[float] | None = None
    reference: str | None = None
    """The condition that others were tested against."""
    conditions: list[ConditionScores]
    tasks: dict[str, TaskEntry] | None = None
    notes: list[str] | None = None
    leak: LeakCheck | None = None
    costs: dict[str, dict[str, int | float]] | None = None
    """By system: rows, forward_passes, tokens, seconds; the system `target` stands for all vectors."""
    rows: dict[str, NonNegativeInt] | None = None
    """Of `results.parquet`, by condition."""
    identity: dict[str, Any] | None = None
    fingerprint: str | None = None
    versions: dict[str, str] | None = None


class Trial(Outcome):
    """A condition at a strength: its score on the validation items, and the perplexity under it."""

    condition: str


class SearchFile(Trials, Made):
    """`search.json`: all strengths that were tried, what decided between them, and which were chosen."""

    candidates: list[Trial]
    chosen: dict[str, float]
    """By condition."""


class StageEntry(FileModel):
    """A stage of a run."""

    name: str
    seconds: Annotated[float, Field(ge=0)]


def _common(path: str) -> str:
    if not _COMMON.fullmatch(path):
        raise PydanticCustomError("place", "a folder in the common activations/ of a recipe's runs")
    return path


class RunFile(Made):
    """`run.json`: what a run was called, how long its stages took, and where its activations are."""

    name: str | None = None
    description: str | None = None
    versions: dict[str, str] | None = None
    started: str | None = None
    finished: str | None = None
    """Since when all of its recipe is done."""
    stages: list[StageEntry] | None = None
    activations: dict[str, Annotated[str, AfterValidator(_common)]] | None = None
    """Activation sets that runs share, by name, as seen from the run's folder."""


def read_file(location: Location, model: type[F]) -> F:
    """A JSON file as its model. Raises UserError that names file and field."""
    return validated(model, location.read_json(), str(location))


def plain(content: FileModel) -> dict[str, Any]:
    """A file's model as its JSON: everything that was set, as it is named in the file."""
    return content.model_dump(mode="json", exclude_unset=True)


def write_file(location: Location, content: FileModel) -> None:
    """Publish a file's model as JSON."""
    location.write_json(plain(content))


def read_metrics(folder: Location) -> MetricsFile:
    """The `metrics.json` of an evaluation's folder. Raises UserError that names file and field."""
    metrics = read_file(folder / METRICS, MetricsFile)
    check_size(f"{folder / METRICS}: conditions", len(metrics.conditions), CONDITION_ROWS, "entries")
    return metrics


def read_search(folder: Location) -> SearchFile | None:
    """The `search.json` of an evaluation's folder; None where no strength was searched for."""
    location = folder / SEARCH
    return read_file(location, SearchFile) if location.exists() else None
