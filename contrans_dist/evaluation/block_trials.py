"""What is made of trials of pairs of blocks, and the trial on contrast prompts."""

from collections.abc import Mapping, Sequence

import numpy as np

from contrans_dist.config import ClusterSettings, MapSettings, ModelSettings, Recipe
from contrans_dist.config.recipe import validated
from contrans_dist.console import note
from contrans_dist.errors import RunError, UserError
from contrans_dist.evaluation.block_candidates import Candidate, best_sources
from contrans_dist.evaluation.sides import Sides, Vectors
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.evaluation.trials import contrast_trial, try_on_contrast
from contrans_dist.models import model_facts
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.map_file import BlockSelection, TriedPair
from contrans_dist.store.results import SearchFile, Trial

LEAST_GAIN = 0.05
"""On contrast prompts, in nats: below it, what is tried differs by chance."""
_PARTS_OF_NORM = (0.05, 0.1, 0.2, 0.4)
"""Strengths that are tried where nothing names any: of the median vector, as parts of the residual norm."""


def few_strengths(strengths: tuple[float, ...]) -> tuple[float, ...]:
    """Every second strength, the largest among them: enough to rank pairs."""
    return tuple(sorted(strength for strength in strengths if strength != 0))[::-1][::2]


def contrast_strengths(recipe: Recipe) -> tuple[float, ...]:
    """The strengths at which pairs are tried on contrast prompts: some of the first evaluation's."""
    first = next(iter(recipe.evaluations.values()))
    return few_strengths(tuple({abs(strength) for strength in first.strengths}))


def vectors_of(candidates: Sequence[Candidate]) -> dict[str, Vectors]:
    """The vectors of each candidate, by its name."""
    return {candidate.name: candidate.carried for candidate in candidates}


def as_conditions(candidates: Mapping[str, Vectors], own: Vectors) -> Steering:
    """Every candidate's vectors as a condition; `own` knows the texts behind them."""
    return steering({"vector": own, **candidates}, list(candidates))


def selected(trials: SearchFile, candidates: Sequence[Candidate], tried_on: str) -> BlockSelection:
    """The candidate of the best trial; of equal ones the nearest, then the least strength."""
    by_name = {candidate.name: candidate for candidate in candidates}
    tried = [trial for trial in trials.candidates if trial.strength != 0]
    best = max(
        trials.within(tried) or tried,
        key=lambda trial: (trials.gain(trial), by_name[trial.condition].cosine, -abs(trial.strength)),
    )
    source, target = by_name[best.condition].pair
    note(
        f"blocks {source} -> {target} chosen among {len(by_name)} pairs on {tried_on}: "
        f"{trials.criterion} {best.score:.2f} at strength {best.strength:g}"
    )

    def of_pair(trial: Trial) -> TriedPair:
        source, target = by_name[trial.condition].pair
        outcome = trial.model_dump(exclude={"condition"})
        return TriedPair(source=source, target=target, **outcome)

    return BlockSelection(
        criterion=trials.criterion,
        tried_on=tried_on,
        candidates=[of_pair(trial) for trial in tried],
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


def contrast_trials(
    model: ModelSettings,
    candidates: Mapping[str, Vectors],
    contrast: ActivationSet,
    own: Vectors,
    strengths: tuple[float, ...],
    out: Location,
    cluster: ClusterSettings,
    seed: int = 0,
    limit: int | None = None,
) -> SearchFile:
    """How well each candidate steers negative contrast prompts to where positive ones lead; nothing is chosen
    yet, and a gain below `LEAST_GAIN` is none.

    The vectors are made of these prompts: a block may be chosen by them, nothing is shown.

    Args:
        model: The target.
        candidates: By name, vectors by concept, each of one block.
        contrast: The target's activation set of the contrast texts.
        own: The target's own vectors, by concept.
        strengths: Those to be tried.
        out: For the trials.
        cluster: Where they run.
        seed: With `limit`, what decided which texts the vectors are made from.
        limit: Texts of each side of a concept.

    Raises:
        UserError: For a model that cannot be loaded.
    """
    settings = contrast_trial(contrast.location.uri, strengths, seed, limit)
    steered = as_conditions(candidates, own)
    return try_on_contrast(model, settings, steered, out, cluster, "choose blocks")


def on_contrast(
    model: ModelSettings,
    candidates: Sequence[Candidate],
    contrast: ActivationSet,
    own: Vectors,
    strengths: tuple[float, ...],
    out: Location,
    cluster: ClusterSettings,
    seed: int = 0,
    limit: int | None = None,
) -> BlockSelection:
    """The pair that does best in `contrast_trials`; where none gets anywhere, the nearest.

    Arguments as there.
    """
    if not strengths:
        return nearest(candidates, "no strength other than 0 to try")
    by_name = vectors_of(candidates)
    trials = contrast_trials(model, by_name, contrast, own, strengths, out, cluster, seed, limit)
    most = max(map(trials.gain, trials.candidates))
    if most < LEAST_GAIN:
        return nearest(candidates, f"contrast prompts do not tell: {trials.criterion} {most:.3f} at most")
    return selected(trials, candidates, "contrast prompts")


def choose_for_sides(
    sides: Sides, settings: MapSettings, vectors: dict[str, Vectors], out: Location, address: str | None
) -> BlockSelection:
    """The pair that steers contrast prompts best, where the target can be loaded as it was harvested."""
    candidates = best_sources(sides, settings, vectors)
    shares = [
        share
        for candidate in candidates
        for vector in candidate.carried.values()
        if (share := vector.share(candidate.pair[1]))
    ]
    unit = np.median(shares) if shares else 1.0
    strengths = tuple(float(f"{part / unit:.2g}") for part in _PARTS_OF_NORM)
    try:
        return on_contrast(
            _harvested_model(sides.contrast_target), candidates, sides.contrast_target, vectors["target"],
            strengths, out / "selection", ClusterSettings(address=address),
        )  # fmt: skip
    except UserError as error:
        return nearest(candidates, f"the target cannot be steered here ({error})")


def _harvested_model(states: ActivationSet) -> ModelSettings:
    """The model of an activation set. Raises UserError where its name leads to none, or to another one."""
    made = states.manifest.identity
    content = made.model_dump(include={"dtype", "compute_dtype", "quantization"})
    if made.quantization is not None:
        del content["compute_dtype"]
    model = validated(ModelSettings, {"id": made.model, **content}, str(states.location))
    try:
        facts = model_facts(model.id, dtype=model.dtype)
    except RunError as error:  # the hub does not answer
        raise UserError(str(error)) from error
    if made.weights not in (None, facts.weights):
        raise UserError(f"{model.id}: other weights than those that were harvested")
    return model
