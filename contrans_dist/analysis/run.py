"""What is in a run folder, or in one of its parts alone."""

from dataclasses import dataclass, field
from typing import Any

import yaml

from contrans_dist import schema
from contrans_dist.analysis.maps import MapSummary, read_map
from contrans_dist.analysis.scores import METRICS_FILE, Evaluation, read_evaluation
from contrans_dist.artifacts import ActivationSet
from contrans_dist.errors import UserError
from contrans_dist.storage import Location


@dataclass(frozen=True)
class Run:
    """The artefacts of a run that are there; whatever is missing is empty."""

    location: Location
    recipe: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    """`run.json`: name, description, command, git_commit, versions, started, finished, stages."""
    harvests: dict[str, ActivationSet] = field(default_factory=dict)
    maps: list[MapSummary] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Parts that are there but unfinished or not readable, one line each."""

    @property
    def name(self) -> str:
        return str(self.record.get("name") or self.recipe.get("name") or self.location.name)

    @property
    def main_map(self) -> MapSummary | None:
        """The map of the generic corpus, else the first."""
        return next(iter(sorted(self.maps, key=lambda found: found.name != "corpus")), None)


def read_run(location: Location) -> Run:
    """Read a run folder, an evaluation folder or an activation set.

    Raises UserError when nothing that can be reported is there.
    """
    if (location / METRICS_FILE).exists():
        return Run(location, evaluations=[read_evaluation(location)])
    if (location / schema.MANIFEST).exists():
        return Run(location, harvests={location.name: ActivationSet.open(location)})
    recipe, problems = _recipe(location / "recipe.yaml"), []
    record = (location / "run.json").read_json() if (location / "run.json").exists() else {}
    harvests = {}
    for name in (location / "activations").names():
        try:
            harvests[name] = ActivationSet.open(location / "activations" / name)
        except UserError as error:
            problems.append(str(error))
    files = [name for name in (location / "maps").names() if name.endswith(".safetensors")]
    maps = [read_map(location / "maps" / name) for name in files]
    evaluations = []
    for name in _in_recipe_order((location / "evaluations").names(), recipe):
        folder = location / "evaluations" / name
        if (folder / METRICS_FILE).exists():
            evaluations.append(read_evaluation(folder))
        else:
            problems.append(f"{folder}: unfinished evaluation (there is no {METRICS_FILE})")
    if not (harvests or maps or evaluations):
        raise UserError(
            f"{location}: nothing to report; expected a run folder (activations/, maps/ or evaluations/), "
            f"an evaluation ({METRICS_FILE}) or an activation set ({schema.MANIFEST})"
        )
    return Run(location, recipe, record, harvests, maps, evaluations, problems)


def _recipe(location: Location) -> dict[str, Any]:
    if not location.exists():
        return {}
    try:
        content = yaml.safe_load(location.read_bytes())
    except yaml.YAMLError as error:
        raise UserError(f"{location}: expected YAML ({' '.join(str(error).split())})") from error
    return content if isinstance(content, dict) else {}


def _in_recipe_order(names: list[str], recipe: dict[str, Any]) -> list[str]:
    order = list(recipe.get("evaluations") or {})
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
