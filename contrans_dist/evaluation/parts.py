"""The unfinished rows of an evaluation: a file a work unit, which a run that follows finds and keeps."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from contrans_dist.config import differing, fingerprint
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.store.results import METRICS, SEARCH, MetricsFile, read_metrics
from contrans_dist.store.tables import RESULTS, facts_of, read_table, write_table

PARTS, JUDGED = "parts", "judged"
"""Folders of rows as the model answered, and as the classifier judged them."""


def publish(location: Location, table: pa.Table, identity: dict[str, Any], cost: dict[str, float]) -> None:
    """Write a part with the identity of its evaluation, and its cost, in the schema's metadata."""
    write_table(location, table, {"fingerprint": fingerprint(identity), "identity": identity, "cost": cost})


def cost_of(table: pa.Table) -> dict[str, float]:
    """What a part cost: `rows`, `forward_passes`, `tokens`, `seconds`."""
    return dict(facts_of(table).get("cost") or {})


def missing(folder: Location, names: Sequence[str], identity: dict[str, Any]) -> set[str]:
    """The names of which no readable part of this evaluation is there."""
    there = {name for name in folder.names() if _identity_in(folder / name) == identity}
    left = set(names) - there
    if left and len(left) < len(names):
        note(f"{folder}: {len(names) - len(left)} of {len(names)} parts are there; going on")
    return left


def finished(out: Location, identity: dict[str, Any], replace: bool) -> MetricsFile | None:
    """The metrics, where all is done already. Raises UserError for a folder that holds another evaluation,
    naming the fields, unless that is to be replaced."""
    there = identity_in(out)
    if there is None or there == identity:
        return read_metrics(out) if _whole(out) else None
    if not replace:
        raise _taken(out, differing(there, identity))
    return None


def check_begun(out: Location, identity: dict[str, Any]) -> None:
    """Raise UserError for a folder that holds another evaluation, whatever strengths will be chosen for this
    one: `identity` is that without a choice."""
    there = identity_in(out)
    if there == identity and not (out / SEARCH).exists():
        raise _taken(out, ["search: found no choice among the strengths"])
    fields = differing({**there, "steering": ""}, {**identity, "steering": ""}) if there is not None else []
    if fields:
        raise _taken(out, fields)


def _taken(out: Location, fields: Sequence[str]) -> UserError:
    return UserError(f"{out}: holds another evaluation ({'; '.join(fields)}); choose another --out")


def cleared(out: Location, identity: dict[str, Any], replace: bool) -> MetricsFile | None:
    """As `finished`, under a claim on the folder: where not all is done, what is of no use is removed."""
    content = finished(out, identity, replace)
    if content is not None:
        return content
    if identity_in(out) not in (None, identity):
        note(f"{out}: settings have changed; it is evaluated anew")
        delete_parts(out)
        (out / METRICS).delete()
    elif (out / METRICS).exists() and not (out / RESULTS).exists():
        note(f"{out}: {RESULTS} is gone; it is evaluated anew")
        (out / METRICS).delete()
    return None


def identity_in(out: Location) -> dict[str, Any] | None:
    """The identity of the evaluation in a folder, finished or not; None where none is begun. Raises UserError
    for damaged metrics."""
    if _whole(out):
        return read_metrics(out).identity
    identities = (_identity_in(out / PARTS / name) for name in (out / PARTS).names())
    return next(filter(None, identities), None)


def _whole(out: Location) -> bool:
    return (out / METRICS).exists() and (out / RESULTS).exists()


def delete_parts(out: Location) -> None:
    """Take the parts away, once their rows stand in the results."""
    for folder in (PARTS, JUDGED):
        (out / folder).delete_folder()


def _identity_in(location: Location) -> dict[str, Any] | None:
    try:
        identity = facts_of(read_table(location)).get("identity")
    except UserError:
        return None
    return identity if isinstance(identity, dict) else None
