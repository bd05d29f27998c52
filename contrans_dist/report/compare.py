"""Several runs side by side: evaluations that match, settings that differ, and how the runs are laid out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contrans_dist.benchmarks import Metric
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis.points import Point, best_point, main_condition
from contrans_dist.evaluation.analysis.published import Figures, Published, published_for
from contrans_dist.evaluation.analysis.run import Run, read_scores
from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.evaluation.conditions import condition_order
from contrans_dist.store.location import Location
from contrans_dist.store.run_recipe import RunRecipe, read_run_recipe

_NOT_COMPARED = ("name", "description", "published", "runs", "axis", "small", "cluster", "batch_tokens")
"""Keys of a recipe that do not change a number."""
_MULTIPLES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"-?\d+(?:[.,_]\d+)*(?:e[+-]?\d+)?\s?[kKMBGT]?(?![A-Za-z0-9])")
_TABLE = pa.schema(
    [
        ("run", pa.string()), ("condition", pa.string()), ("strength", pa.float64()),
        ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int64()),
    ]
)  # fmt: skip
_ARROW = re.compile(r"\s*(?:->|→)\s*")


@dataclass(frozen=True)
class Matched:
    """One evaluation of several runs: same name, same benchmark."""

    name: str
    benchmark: str
    by_run: dict[str, Evaluation]
    """By the run's label, in the runs' order."""
    papers: dict[str, Figures]
    """What a paper found, by the run beside which that stands."""

    @property
    def metrics(self) -> list[str]:
        """Metrics over all items, the heading one first."""
        return list(dict.fromkeys(name for evaluation in self.by_run.values() for name in evaluation.metrics))

    def metric(self, key: str) -> Metric:
        """How a metric is read, as the first of the runs has it."""
        return next(iter(self.by_run.values())).metric(key)

    @property
    def conditions(self) -> list[str]:
        """Conditions other than base, in the order in which they are shown."""
        return sorted(
            {c for evaluation in self.by_run.values() for c in evaluation.conditions}, key=condition_order
        )

    def point(self, run: str, condition: str, key: str) -> Point | None:
        """Where a condition of a run is read."""
        evaluation = self.by_run.get(run)
        return best_point(evaluation, condition, key) if evaluation else None


@dataclass(frozen=True)
class Comparison:
    """Several runs, by their labels, and what they have in common."""

    name: str
    description: str
    axis: str
    runs: dict[str, Run]
    evaluations: list[Matched]
    published: dict[str, Published]
    """By run; only where something is."""


@dataclass(frozen=True)
class Pairs:
    """Runs laid out as source by target; `runs[source, target]` is a label."""

    sources: list[str]
    targets: list[str]
    runs: dict[tuple[str, str], str]


def compare(runs: Sequence[Location], target: Location) -> Comparison:
    """Read runs to be compared; the recipe in `target`, if there, names what they are runs of.

    Raises UserError where no run has an evaluation.
    """
    labels = run_labels(runs)
    by_label = {label: read_scores(location) for label, location in zip(labels, runs, strict=True)}
    if not any(run.evaluations for run in by_label.values()):
        raise UserError(f"{', '.join(map(str, runs[:3]))}: nothing to compare; no run has an evaluation")
    # Else it is somebody else's, by chance in the same folder.
    in_target = any(location.parent.parent == target for location in runs)
    recipe = read_run_recipe(target) if in_target else RunRecipe()
    published = {
        label: figures
        for label, run in by_label.items()
        if (figures := published_for(recipe, label) or run.published)
    }
    return Comparison(
        name=recipe.name or f"{len(by_label)} runs compared",
        description=recipe.description or "",
        axis=recipe.axis or "",
        runs=by_label,
        evaluations=match(by_label, published),
        published=published,
    )


def run_labels(runs: Sequence[Location]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as tell all apart."""
    parts = [run.path.strip("/").split("/") for run in runs]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(names[-depth:]) for names in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(names)} ({index})" for index, names in enumerate(parts, 1)]


def match(runs: dict[str, Run], published: dict[str, Published]) -> list[Matched]:
    """Evaluations of the same name and benchmark, in the order in which they are first met."""
    matches: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for label, run in runs.items():
        for evaluation in run.evaluations:
            matches.setdefault((evaluation.name, evaluation.benchmark), {})[label] = evaluation
    return [
        Matched(
            name,
            benchmark,
            by_run,
            {
                label: figures
                for label in by_run
                if label in published and (figures := published[label].figures(name))
            },
        )
        for (name, benchmark), by_run in matches.items()
    ]


def differing_settings(runs: dict[str, Run]) -> dict[str, dict[str, str]]:
    """Settings of the recipes that differ: dotted key -> run -> value. Empty without two recipes."""
    flat = {label: _flat(run.recipe.content) for label, run in runs.items() if run.recipe.content}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    if len(flat) < 2:
        return {}
    return {
        key: {label: _shown(settings.get(key)) for label, settings in flat.items()}
        for key in keys
        if len({_shown(settings.get(key)) for settings in flat.values()}) > 1
    }


def _flat(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if not above and key in _NOT_COMPARED:
            continue
        name = f"{above}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def _shown(value: Any) -> str:
    if value is None or value == {} or value == []:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def positions(labels: Sequence[str]) -> list[float] | None:
    """Where runs stand along an axis: the one number in each name (`1.4B`, `step 1000`, `20`).

    None where a name has no number, or more than one, or two runs stand at the same place.
    """
    places = []
    for label in labels:
        numbers = _NUMBER.findall(label)
        if len(numbers) != 1:
            return None
        text = numbers[0].replace(",", "").replace("_", "").strip()
        unit = text[-1] if text[-1] in _MULTIPLES else ""
        places.append(float(text.removesuffix(unit)) * _MULTIPLES[unit])
    return places if len(set(places)) == len(places) else None


def pairs_of(runs: dict[str, Run]) -> Pairs | None:
    """Source and target of each run, by its name (`a -> b`), else by its recipe's models.

    None unless every run has a pair of its own, and they fill most of a grid of at least two by two.
    """
    named = {label: _ARROW.split(label) for label in runs}
    if all(len(parts) == 2 for parts in named.values()):
        ends = {label: (parts[0].rsplit("/", 1)[-1], parts[1]) for label, parts in named.items()}
    else:
        ends = {
            label: (run.recipe.model("source"), run.recipe.model("target")) for label, run in runs.items()
        }
    sources = list(dict.fromkeys(source for source, _ in ends.values()))
    targets = list(dict.fromkeys(target for _, target in ends.values()))
    apart = len(set(ends.values())) == len(ends) and "" not in (*sources, *targets)
    if not apart or min(len(sources), len(targets)) < 2 or 2 * len(ends) <= len(sources) * len(targets):
        return None
    if set(targets) == set(sources):  # a model with itself on the diagonal
        targets = sources
    return Pairs(sources, targets, {end: label for label, end in ends.items()})


def improvements(matched: Matched, key: str) -> dict[str, tuple[float, float | None]]:
    """By run, what the condition under test gains over base: value - base, and that as a part of base.

    The sign is turned for a metric that should fall, so that more is better. The part is None at a base of 0,
    and at one whose interval begins below half of it: a part of next to nothing says nothing.
    """
    gains: dict[str, tuple[float, float | None]] = {}
    sign = 1 if matched.metric(key).higher else -1
    for run, evaluation in matched.by_run.items():
        effect, base = main_condition(evaluation), evaluation.base(key)
        best = best_point(evaluation, effect, key) if effect else None
        if best and base:
            gain = sign * (best.score.value - base.value)
            known = base.value and (base.interval is None or 2 * base.interval[0] >= base.value)
            gains[run] = (gain, gain / base.value if known else None)
    return gains


def comparison_table(matched: Matched, key: str) -> pa.Table:
    """A row for each run and condition: run, condition, strength, value, low, high, n.

    `low` and `high` are null where there is no interval.
    """
    rows = []
    for run in matched.by_run:
        for condition in ("base", *matched.conditions):
            if point := matched.point(run, condition, key):
                score = point.score
                low, high = score.interval or (None, None)
                cells = (run, condition, point.strength, score.value, low, high, score.n or 0)
                rows.append(dict(zip(_TABLE.names, cells, strict=True)))
    return pa.Table.from_pylist(rows, schema=_TABLE)
