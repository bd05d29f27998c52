"""How far a run, a harvest or an evaluation is: from headers and manifests alone."""

from collections.abc import Sequence
from contextlib import suppress

from contrans_dist.console import count_of
from contrans_dist.errors import UserError
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.results import METRICS, read_metrics
from contrans_dist.store.running import SILENT_SECONDS, running_in


def status_of(location: Location, *, with_runs: bool = True) -> dict[str, str]:
    """How far each part of a run, or a single harvest or evaluation, has come.

    Args:
        location: The folder of it.
        with_runs: Look at the runs in it, too.

    Returns:
        By part, its state in words.

    Raises:
        UserError: When there is nothing of the kind.
    """
    single = _state(location)
    if single is not None:
        return {str(location): single}
    states: dict[str, str] = {}
    for folder in ("activations", "evaluations"):
        for name in (location / folder).names():
            state = _told(location / folder / name)
            if state is not None:
                states[f"{folder}/{name}"] = state
    for folder in ("vectors", "maps"):
        count = sum(len((location / folder / name).names()) or 1 for name in (location / folder).names())
        if count:
            states[folder] = count_of(count, "file")
    # A run has no runs of its own, whatever links lie there.
    for run in (location / "runs").names() if with_runs else ():
        with suppress(UserError):  # one that has not begun
            parts = status_of(location / "runs" / run, with_runs=False)
            states |= {f"runs/{run}/{part}": state for part, state in parts.items()}
    if not states:
        raise UserError(f"{location}: expected a harvest, an evaluation or a run")
    states["report"] = "written" if (location / "report.html").exists() else "not yet"
    return states


def _told(location: Location) -> str | None:
    """The state of a part of a run; one that is damaged does not hide the others."""
    try:
        return _state(location)
    except UserError as error:
        return f"damaged ({str(error).removeprefix(f'{location}/')})"


def _state(location: Location) -> str | None:
    """How far a harvest or an evaluation is, what is under way there first."""
    if (location / schema.MANIFEST).exists():
        rows = ActivationSet.open(location)
        n_shards = len(rows.manifest.shards)
        return f"complete, {count_of(rows.n_rows, 'row')} in {count_of(n_shards, 'shard')}"
    if (location / METRICS).exists():
        read_metrics(location)
        return "complete"
    names = location.names()
    places = [location, *(location / name for name in names if "." not in name)]
    running = [each for place in places for each in running_in(place)]
    under_way = [f"{each.stage}: {each}" for each in running]
    at_work = any(each.silent <= SILENT_SECONDS for each in running)
    finished = _finished(location, names, at_work)
    return "; ".join([*under_way, *([finished] if finished else [])]) or None


def _finished(location: Location, names: Sequence[str], at_work: bool) -> str | None:
    """What is there of one that is not complete, and how to go on where nobody is `at_work`."""
    shards = list(filter(schema.is_shard, names))
    count, unit, stage = len(shards), "shard", "harvest"
    if not shards:
        count, unit, stage = len((location / "parts").names()), "part", "evaluation"
    if not count:
        return None
    again = "" if at_work else f", not complete: run the same {stage} again"
    return f"{count_of(count, unit)} finished{again}"
