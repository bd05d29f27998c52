"""Trials of blocks: candidates are tried on validation items or, where there are none, contrast prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contrans_dist.benchmarks.contrast import ContrastEvaluation
from contrans_dist.benchmarks.registry import about
from contrans_dist.config import ClusterSettings, EvaluationSettings, MapSettings, ModelSettings, Recipe
from contrans_dist.config.recipe import validated
from contrans_dist.console import note
from contrans_dist.errors import OverflowedError, RunError, UnwritableError, UserError
from contrans_dist.evaluation.block_candidates import Candidate, best_sources
from contrans_dist.evaluation.sides import Sides, Vectors
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.evaluation.trials import (
    all_tried,
    check_tried,
    check_unscored,
    try_out,
    validation_of,
)
from contrans_dist.models import model_facts
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection, TriedPair
from contrans_dist.store.results import SearchFile, Trial
from contrans_dist.store.trials import Trials

VALIDATION_ITEMS, CONTRAST = "validation items", "contrast prompts"
_MOST_ITEMS = 96
"""Validation items that they are tried on: enough to rank pairs."""
_MOST_TOKENS = 300
"""Of the text whose perplexity is the budget: the ratio to the base is known to some per cent by then."""
_LEAST_GAIN = 0.05
"""On contrast prompts, in nats: below it, what is tried differs by chance."""
_PARTS_OF_NORM = (0.05, 0.1, 0.2, 0.4)
"""Strengths that are tried where nothing names any: of the median vector, as parts of the residual norm."""


def few_strengths(strengths: tuple[float, ...]) -> tuple[float, ...]:
    """Every second strength, the largest among them: enough to rank pairs."""
    return tuple(sorted(strength for strength in strengths if strength != 0))[::-1][::2]


def contrast_strengths(recipe: Recipe) -> tuple[float, ...]:
    """The strengths at which blocks are tried on contrast prompts: of the first evaluation's, which may ask
    for less of a concept with negative ones, some magnitudes."""
    first = next(iter(recipe.evaluations.values()))
    return few_strengths(tuple({abs(strength) for strength in first.strengths}))


def tried_on(settings: EvaluationSettings) -> EvaluationSettings:
    """An evaluation as blocks are tried on it: on some of its items, and of the text of its budget."""
    changes: dict[str, Any] = {"sample": min(settings.sample or _MOST_ITEMS, _MOST_ITEMS)}
    if settings.search is not None:
        limit = min(settings.search.limit or _MOST_TOKENS, _MOST_TOKENS)
        changes["search"] = settings.search.model_copy(update={"limit": limit})
    return settings.model_copy(update=changes)


@dataclass(frozen=True)
class BlockTrials:
    """What was tried, each candidate a condition."""

    trials: SearchFile
    on: str
    """What on, in words."""

    @property
    def untold(self) -> str:
        """Why the trials do not tell which candidate is best; empty where they do."""
        if not self.trials.candidates:
            return "no strength other than 0 to try"
        if not self.steered():
            return "the model's logits overflow at every strength that was tried"
        most = max(map(self.trials.gain, self.steered()))
        if self.on == CONTRAST and most < _LEAST_GAIN:
            return f"contrast prompts do not tell: {self.trials.criterion} {most:.3f} at most"
        return ""

    def steered(self) -> list[Trial]:
        """All but the base."""
        return [trial for trial in self.trials.candidates if trial.strength != 0]

    def best(self, cosine: Callable[[str], float] = lambda _name: 0.0) -> Trial:
        """The best trial within the budget; of equal ones that of the higher cosine, then the weaker.

        Where none is within it, the best of all: a broken model is not toxic either, so others do not count.
        """
        tried = self.steered()
        return max(
            self.trials.within(tried) or tried,
            key=lambda trial: (self.trials.gain(trial), cosine(trial.condition), -abs(trial.strength)),
        )


def check_choice(recipe: Recipe) -> None:
    """Read what blocks are chosen on, which takes no model. `recipe`: with the places of its files.

    Raises UserError for validation items that are missing, wrong, or scored too, and where there is no
    strength to try.
    """
    settings = recipe.chosen_on
    if recipe.blocks != "best" or settings is None:
        return
    if not few_strengths(settings.strengths):
        raise UserError(f"map.blocks: best: benchmark {settings.benchmark} needs a strength other than 0")
    check_tried(settings)
    # Every evaluation is of the block that is chosen here, not of one that was chosen on items of its own.
    others = {name: other for name, other in recipe.evaluations.items() if other is not settings}
    check_unscored(validation_of(settings, settings.strengths), others)


def try_blocks(
    recipe: Recipe, candidates: Mapping[str, Vectors], own: Vectors, contrast: ActivationSet, out: Location
) -> BlockTrials:
    """Vectors of several blocks, by name, tried under the first evaluation that has validation items; where
    none has, on contrast prompts.

    Args:
        recipe: With the places of its files; `check_choice` has found it good.
        candidates: Name -> concept -> vector at one block.
        own: The target's own vectors, by concept, which know the texts behind them.
        contrast: The target's activation set of the contrast texts.
        out: The run's folder; trials go to `selection/`.
    """
    settings, folder = recipe.chosen_on, out / "selection"
    if settings is None:
        return on_contrast(
            recipe.target, candidates, own, contrast, contrast_strengths(recipe), folder, recipe.cluster,
            recipe.concepts.seed, recipe.concepts.limit,
        )  # fmt: skip
    strengths = few_strengths(settings.strengths)
    settings, steered = tried_on(settings), _as_conditions(candidates, own)
    if settings.concepts is not None:
        steered = steered.about(settings.concepts)
    trials = try_out(recipe.target, settings, steered, strengths, folder, recipe.cluster, "choose blocks")
    return BlockTrials(trials, VALIDATION_ITEMS)


def _as_conditions(candidates: Mapping[str, Vectors], own: Vectors) -> Steering:
    return steering({"vector": own, **candidates}, list(candidates))


def on_contrast(
    model: ModelSettings,
    candidates: Mapping[str, Vectors],
    own: Vectors,
    contrast: ActivationSet,
    strengths: tuple[float, ...],
    folder: Location,
    cluster: ClusterSettings,
    seed: int = 0,
    limit: int | None = None,
) -> BlockTrials:
    """Which candidate moves negative contrast prompts best to where positive ones lead.

    The vectors are made of these prompts: a block is chosen by them, nothing is shown. `seed` and `limit`
    decided which of the texts the vectors are made from. Without strengths nothing is tried.
    """
    if not strengths:
        nothing = SearchFile(criterion=about("contrast").headline(), higher=True, candidates=[], chosen={})
        return BlockTrials(nothing, CONTRAST)
    settings = ContrastEvaluation(
        texts=contrast.location.uri, strengths=strengths, conditions=(), seed=seed, limit=limit
    )
    steered = _as_conditions(candidates, own)
    tried = all_tried(model, settings, settings, steered, folder, cluster, "choose blocks")
    return BlockTrials(tried, CONTRAST)


def selected(tried: BlockTrials, candidates: Sequence[Candidate]) -> BlockSelection:
    """The pair of the best trial; where trials do not tell, the nearest."""
    if tried.untold:
        return nearest(candidates, tried.untold)
    by_name = {candidate.name: candidate for candidate in candidates}
    best = tried.best(lambda name: by_name[name].cosine)
    source, target = by_name[best.condition].pair
    note(
        f"blocks {source} -> {target} chosen among {len(by_name)} pairs on {tried.on}: "
        f"{tried.trials.criterion} {best.score:.2f} at strength {best.strength:g}"
    )

    def of_pair(trial: Trial) -> TriedPair:
        source, target = by_name[trial.condition].pair
        outcome = trial.model_dump(exclude={"condition"})
        return TriedPair(source=source, target=target, **outcome)

    return BlockSelection(
        **tried.trials.model_dump(include=set(Trials.model_fields)),
        tried_on=tried.on,
        candidates=[of_pair(trial) for trial in tried.steered()],
        chosen=(source, target),
        best=of_pair(best),
    )


def nearest(candidates: Sequence[Candidate], why: str) -> BlockSelection:
    """The pair through which vectors come nearest to the target's own. `why` it is not one that was tried."""
    best = max(candidates, key=lambda candidate: candidate.cosine)
    source, target = best.pair
    note(
        f"blocks {source} -> {target} chosen among {len(candidates)} pairs: vectors come nearest to the "
        f"target's own (mean cosine {best.cosine:.2f}); {why}"
    )
    return BlockSelection(criterion="mean cosine to the target's own vectors", tried_on="", chosen=best.pair)


def choose_for_sides(
    sides: Sides, settings: MapSettings, vectors: dict[str, Vectors], out: Location, address: str | None
) -> BlockSelection:
    """The pair that steers contrast prompts best, where the target can be loaded as it was harvested; else
    the nearest.

    Raises:
        RunError: When a trial failed.
        UnwritableError: Where the trials cannot be written.
    """
    candidates = best_sources(sides, settings, vectors)
    shares = [
        share
        for candidate in candidates
        for vector in candidate.carried.values()
        if (share := vector.share(candidate.pair[1]))
    ]
    unit = np.median(shares) if shares else 1.0
    strengths = tuple(float(f"{part / unit:.2g}") for part in _PARTS_OF_NORM)
    carried = {candidate.name: candidate.carried for candidate in candidates}

    def unsteered(error: Exception) -> BlockSelection:
        # What could be done is said for commands that have more options.
        return nearest(candidates, f"the target cannot be steered here ({str(error).partition(';')[0]})")

    try:
        model = _harvested_model(sides.contrast_target)
    except (UserError, RunError) as error:
        return unsteered(error)
    try:
        tried = on_contrast(
            model, carried, vectors["target"], sides.contrast_target, strengths, out / "selection",
            ClusterSettings(address=address),
        )  # fmt: skip
    except UnwritableError:
        raise
    # A target that nothing here holds, or whose logits are no numbers: the rest was read for the harvest.
    except (UserError, OverflowedError) as error:
        return unsteered(error)
    return selected(tried, candidates)


def _harvested_model(states: ActivationSet) -> ModelSettings:
    """The model of an activation set. Raises UserError where its name leads to none, or to another one, and
    RunError where the hub does not answer."""
    made = states.manifest.identity
    content = made.model_dump(include={"dtype", "compute_dtype", "quantization"})
    if made.quantization is not None:
        del content["compute_dtype"]
    model = validated(ModelSettings, {"id": made.model, **content}, str(states.location))
    facts = model_facts(model.id, dtype=model.dtype)
    if made.weights not in (None, facts.weights):
        raise UserError(f"{model.id}: other weights than those that were harvested")
    return model
