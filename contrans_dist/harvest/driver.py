"""The harvest driver: shards of texts over a pool of actors, exactly once on disk."""

from collections.abc import Sequence
from contextlib import ExitStack

import pyarrow as pa

from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.distributed.cluster import connected, replicas
from contrans_dist.distributed.precision import settled
from contrans_dist.distributed.tasks import on_a_node
from contrans_dist.errors import RunError, UserError, first_line
from contrans_dist.harvest.disk import check_room
from contrans_dist.harvest.missing import compute_missing
from contrans_dist.harvest.planned_set import PlannedSet, identity_in
from contrans_dist.harvest.quantization_check import quantization_check
from contrans_dist.harvest.request import HarvestJob, Request
from contrans_dist.harvest.shards import HarvestSpec
from contrans_dist.models import model_facts
from contrans_dist.models.devices import out_of_memory
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import QuantizationCheck
from contrans_dist.store.results import plain

__all__ = ["HarvestJob", "harvest", "harvest_sets"]


def harvest(
    model: ModelSettings,
    texts: pa.Table,
    out: "Location | str",
    capture: CaptureSettings | None = None,
    cluster: ClusterSettings | None = None,
    source: Location | None = None,
    skip_bad: bool = False,
) -> ActivationSet:
    """Harvest a model's residual stream on texts into an activation set.

    What is already there, whole and of the same fingerprint is kept; the rest is computed, also where texts
    were appended behind those that the folder's set is of.

    Args:
        model: Which model, and how it is loaded.
        texts: A table of `texts.text_table`.
        out: The set's folder.
        capture: What is taken of each text.
        cluster: Where it runs.
        source: The file that the texts are of, to name it in messages.
        skip_bad: Leave out texts that cannot be run.

    Raises:
        UserError: When the folder holds a harvest under other settings (naming the fields), or of texts that
            do not begin these (naming the first row that differs), or a text cannot be run (naming it, when
            all others are done); before anything is run, for a local disk with too little room.
        RunError: When shards failed.
    """
    job = HarvestJob(texts, Location.parse(out), capture or CaptureSettings(), source, skip_bad)
    return harvest_sets(model, [job], cluster)[0]


def harvest_sets(
    model: ModelSettings, jobs: Sequence[HarvestJob], cluster: ClusterSettings | None = None
) -> list[ActivationSet]:
    """Several activation sets of one model, for which each actor loads it once. As `harvest` otherwise."""
    cluster = cluster or ClusterSettings()
    there = (plain(held) for job in jobs if (held := identity_in(job.out)) is not None)
    model = settled(model, cluster, lambda: next(there, None))
    facts = model_facts(model.id, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    sets = [PlannedSet.of(Request.of(model, facts, job)) for job in jobs]
    with connected(cluster.address), ExitStack() as claims:
        for planned_set in sets:
            planned_set.take_in()
        unfinished = [planned_set for planned_set in sets if not planned_set.complete]
        check_room(unfinished)
        for planned_set in unfinished:
            identity = plain(planned_set.spec.identity)
            planned_set.hold(claims.enter_context(claimed(planned_set.out, identity)))
        if any(planned_set.missing for planned_set in unfinished):
            compute_missing(model, unfinished, cluster)
        if model.quantization is not None:
            for planned_set in unfinished:
                planned_set.quantization = _checked(model, planned_set.spec, cluster)
        finished: list[ActivationSet] = []
        wrong: list[UserError | RunError] = []
        for planned_set in sets:
            try:
                finished.append(planned_set.finish())
            except (UserError, RunError) as error:  # the other sets are whole all the same
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return finished


def _checked(model: ModelSettings, spec: HarvestSpec, cluster: ClusterSettings) -> QuantizationCheck:
    """What was measured of the quantised model; why not, where the unquantised one could not be run."""
    try:
        check: QuantizationCheck = on_a_node(quantization_check, replicas(cluster), model, spec)
        return check
    except (RunError, UserError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        return QuantizationCheck(texts=0, reason=f"not measured: {first_line(error)}")
