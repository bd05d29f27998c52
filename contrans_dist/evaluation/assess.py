"""One evaluation in full: strengths are chosen, everything is scored, and single prompts are read."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace as changed

from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings, fingerprint
from contrans_dist.distributed.actors import kept_actors
from contrans_dist.distributed.cluster import connected
from contrans_dist.evaluation.analysis import Verdict, judge, read_in_run
from contrans_dist.evaluation.analysis.names import COST, VALIDATION
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.driver import scored
from contrans_dist.evaluation.parts import check_begun
from contrans_dist.evaluation.ready import prepared
from contrans_dist.evaluation.samples import probe
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.strength_search import search
from contrans_dist.evaluation.trials import check_tried
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from contrans_dist.store.results import SEARCH, MetricsFile, SearchFile, write_file


def assess(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    out: Location,
    cluster: ClusterSettings,
    others: Sequence[System] = (),
    replace: bool = False,
) -> MetricsFile:
    """Do all that the settings of an evaluation ask for.

    Examples and tokens are read under the condition and strength that the evaluation is headed by.

    Args:
        model: The target.
        settings: With the places of files. Only their `concepts` are steered; under `search` each condition
            has the strength that was chosen for it (`search.json`).
        steering: What is added where.
        out: The evaluation's folder; parts of an unfinished one that are there are kept.
        cluster: Where it runs.
        others: Conditions that are no vectors.
        replace: Begin anew in a folder that holds another evaluation.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: For data that are missing or wrong, a folder that holds another evaluation, and one where
            another is at work.
        RunError: When parts failed.
    """
    if settings.concepts is not None:
        steering = steering.about(settings.concepts)
    # What was asked for in vain is refused before Ray is started, which takes seconds.
    if settings.search is None:
        ready = prepared(model, settings, steering, out, cluster, replace, others)
    else:
        check_tried(settings)
        unchosen = prepared(model, settings, steering, out, cluster, True, others)
        if not replace:
            check_begun(out, unchosen.spec.identity)
    with connected(cluster.address), kept_actors():
        search_file: SearchFile | None = None
        if settings.search is None:
            with claimed(out, ready.spec.identity):  # one at work there still needs what it has tried
                _clear(out, VALIDATION, COST)
                (out / SEARCH).delete()
        else:
            if settings.search.perplexity is None:
                _clear(out, COST)
            search_file = search(model, settings, steering, out, cluster, replace)
            steering = changed(steering, chosen=search_file.chosen)
            ready = prepared(model, settings, steering, out, cluster, replace, others)
        metrics = scored(ready, cluster)
        if search_file is not None:
            write_file(out / SEARCH, search_file)
        verdict = judged(out)
        if verdict is not None:
            probe(
                model, settings, steering, verdict.effect.name, verdict.strength, out, cluster,
                fingerprint(ready.spec.identity),
            )  # fmt: skip
        return metrics


def _clear(out: Location, *names: str) -> None:
    """Remove what was tried under earlier settings. Raises ClaimedError, with nothing removed, where another
    run is trying it."""
    folders = [out / name for name in names if (out / name).entries()]
    with ExitStack() as claims:
        for folder in folders:
            claims.enter_context(claimed(folder, {"trials": "removed"}))
        for folder in folders:
            folder.delete_folder()


def judged(folder: Location) -> Verdict | None:
    """What an evaluation shows by its headline metric; None where nothing was steered."""
    evaluation = read_in_run(folder)
    return judge(evaluation, evaluation.metrics[0]) if evaluation.metrics else None
