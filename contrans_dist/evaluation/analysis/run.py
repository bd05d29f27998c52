"""What is in a run folder, or in one of its parts alone."""

from dataclasses import dataclass, field, replace
from functools import partial

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis.maps import MapSummary, read_map
from contrans_dist.evaluation.analysis.names import COST
from contrans_dist.evaluation.analysis.points import reported_strengths
from contrans_dist.evaluation.analysis.published import Published, published_for
from contrans_dist.evaluation.analysis.scores import Evaluation, read_evaluation
from contrans_dist.evaluation.conditions import BASE, condition_of
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.block_choice import CHOICE, BlockChoice
from contrans_dist.store.location import Location
from contrans_dist.store.results import METRICS, RECORD, RunFile, read_file
from contrans_dist.store.run_recipe import RunRecipe, read_run_recipe

RUNS_FOLDER, EVALUATIONS_FOLDER = "runs", "evaluations"


@dataclass(frozen=True)
class Run:
    """The artefacts of a run that are there; whatever is missing is empty."""

    location: Location
    recipe: RunRecipe = field(default_factory=RunRecipe)
    record: RunFile = field(default_factory=RunFile)
    harvests: dict[str, ActivationSet] = field(default_factory=dict)
    maps: list[MapSummary] = field(default_factory=list)
    block_choice: BlockChoice | None = None
    """How the block was chosen, where the target is steered with its own vectors."""
    evaluations: list[Evaluation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Parts that are there but unfinished or not readable, one line each."""
    published: Published | None = None
    """What a paper found where this run is set beside it."""
    part: str = ""
    """Name among the runs of one recipe; empty for a run alone."""

    @property
    def name(self) -> str:
        name = str(self.record.name or self.recipe.name or self.location.name)
        return f"{name}: {self.part}" if self.part else name

    @property
    def main_map(self) -> MapSummary | None:
        """The map of the generic corpus, else the first."""
        return next(iter(sorted(self.maps, key=lambda summary: summary.name != "corpus")), None)


def read_run(location: Location) -> Run:
    """What is there of a run; only headers and metrics are read.

    Args:
        location: The folder of a run, of an evaluation, or of an activation set.

    Raises:
        UserError: When nothing that can be reported is there.
    """
    if (location / METRICS).exists():
        return Run(location, evaluations=[read_in_run(location)])
    if (location / schema.MANIFEST).exists():
        return Run(location, harvests={location.name: ActivationSet.open(location)})
    run = read_scores(location)
    problems = list(run.problems)
    harvests = {}
    shared = run.record.activations or {}
    places = shared or {name: f"activations/{name}" for name in (location / "activations").names()}
    for name, folder in places.items():
        try:
            harvests[name] = ActivationSet.open(_from(location, folder))
        except UserError as error:
            problems.append(str(error))
    # Without a source they are what an earlier run has left.
    there = () if run.recipe.without_source else (location / "maps").names()
    files = [name for name in there if name.endswith(".safetensors")]
    maps = []
    for name in files:
        try:
            maps.append(read_map(location / "maps" / name))
        except UserError as error:
            problems.append(str(error))
    choice = None
    try:
        if (location / CHOICE).exists() and run.recipe.without_source:
            choice = read_file(location / CHOICE, BlockChoice)
    except UserError as error:
        problems.append(str(error))
    if not (harvests or maps or run.evaluations):
        if problems:
            raise UserError(problems[0])
        raise UserError(
            f"{location}: nothing to report; expected a run folder (activations/, maps/ or evaluations/), "
            f"an evaluation ({METRICS}) or an activation set ({schema.MANIFEST})"
        )
    return replace(run, harvests=harvests, maps=maps, block_choice=choice, problems=problems)


def _from(location: Location, path: str) -> Location:
    """A path as seen from a run's folder; `../` leads up, also where paths are keys of an object store."""
    while path.startswith("../"):
        location, path = location.parent, path.removeprefix("../")
    return location / path


def read_scores(location: Location) -> Run:
    """The evaluations of a run folder, or of an evaluation folder, with recipe and record alone."""
    if (location / METRICS).exists():
        return Run(location, evaluations=[read_in_run(location)])
    recipe, problems, evaluations = read_run_recipe(location), [], []
    record = RunFile()
    try:
        if (location / RECORD).exists():
            record = read_file(location / RECORD, RunFile)
    except UserError as error:
        problems.append(str(error))
    for name in _in_recipe_order((location / EVALUATIONS_FOLDER).names(), recipe):
        folder = location / EVALUATIONS_FOLDER / name
        try:
            if recipe.evaluations and name not in recipe.evaluations:
                problems.append(f"{folder}: left out, the recipe does not name it")
            elif (folder / METRICS).exists():
                evaluations.append(read_evaluation(folder))
            else:
                problems.append(f"{folder}: unfinished evaluation (there is no {METRICS})")
        except UserError as error:
            problems.append(str(error))
    if evaluations and recipe.content and record.finished is None:
        problems.append(f"{location}: not finished: what is here may be of an earlier recipe; run it again")
    whole = _recipe_of_all(location)
    return Run(
        location,
        recipe,
        record,
        evaluations=[
            replace(
                evaluation,
                # Those that steer the same concepts say more of it than the others do.
                reported=reported_strengths(
                    sorted(evaluations, key=partial(_steers_others, recipe, evaluation))
                ),
            )
            for evaluation in evaluations
        ],
        problems=problems,
        published=published_for(whole or recipe, location.name if whole else "all"),
        part=location.name if whole else "",
    )


def _steers_others(recipe: RunRecipe, one: Evaluation, other: Evaluation) -> bool:
    """Whether a recipe steers other concepts in two evaluations."""
    return recipe.evaluation(one.name).concepts != recipe.evaluation(other.name).concepts


def read_in_run(location: Location) -> Evaluation:
    """An evaluation as the run reports it in whose `evaluations/` it lies; one that lies alone as it is."""
    if location.parent.name == EVALUATIONS_FOLDER:
        for evaluation in read_scores(location.parent.parent).evaluations:
            if evaluation.location == location:
                return evaluation
    return read_evaluation(location)


def sweep_of(evaluation: Evaluation, name: str) -> Evaluation | None:
    """A sweep from which an evaluation's strengths were chosen: scores on validation items, or the cost."""
    folder = evaluation.location / name
    return read_evaluation(folder) if (folder / METRICS).exists() else None


def companions_of(run: Run, evaluation: Evaluation) -> list[Evaluation]:
    """What the same steering costs: by the search for strengths, then by the run's evaluations of a cost that
    steer the same concepts."""
    sweep = sweep_of(evaluation, COST)
    others = [
        other
        for other in run.evaluations
        if other.metrics[:1] == [COST]
        and other.metric(COST).cost
        and other is not evaluation
        and not _steers_others(run.recipe, evaluation, other)
    ]
    return [*([sweep] if sweep else []), *others]


def left_out(run: Run, evaluation: Evaluation) -> str:
    """Conditions that the recipe asks for and the evaluation lacks, as a sentence; empty without any.

    What one of them needs, such as models of one width, is said with it.
    """
    names = dict.fromkeys(run.recipe.evaluation(evaluation.name).conditions or [])
    missing = [name for name in names if name not in (BASE.name, *evaluation.conditions)]
    if not missing:
        return ""
    sets = (run.harvests.get("contrast-source"), run.harvests.get("contrast-target"))
    widths = [activations.d for activations in sets if activations]
    differ = [name for name in missing if condition_of(name).same_width and len(set(widths)) > 1]
    these = " and ".join(map(str, widths))
    why = f" ({differ[0]} needs models of one width; these have {these})" if differ else ""
    alone = [name for name in missing if condition_of(name).several]
    why = why or (f" ({alone[0]} needs a second concept)" if alone else "")
    return f"Asked for and not run: {', '.join(missing)}{why}."


def run_folders(location: Location) -> list[Location]:
    """The finished or begun runs of a recipe with several, in the recipe's order; none for a single run.

    Each is a folder `runs/<name>` with a `run.json`.
    """
    folder, order = location / RUNS_FOLDER, list(read_run_recipe(location).runs or {})
    names = [name for name in folder.names() if (folder / name / RECORD).exists()]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    return [folder / name for name in names]


def _recipe_of_all(location: Location) -> RunRecipe | None:
    """The recipe of which a folder is one of several runs; None for a run alone."""
    if location.parent.name != RUNS_FOLDER:
        return None
    whole = read_run_recipe(location.parent.parent)
    return whole if location.name in (whole.runs or {}) else None


def _in_recipe_order(names: list[str], recipe: RunRecipe) -> list[str]:
    order = list(recipe.evaluations or {})
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
