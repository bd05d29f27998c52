"""What an artefact is, where it comes from, and how far a run is: from headers and manifests alone."""

from contextlib import suppress
from typing import Any

from contrans_dist import schema
from contrans_dist.artifacts import ActivationSet, tensor_header
from contrans_dist.errors import UserError
from contrans_dist.shardreader import opened
from contrans_dist.storage import Location

_LONG = ("identity", "shards", "conditions", "norms", "leak")


def describe(location: Location) -> dict[str, Any]:
    """Facts about an activation set, a shard, a vector, a map, an evaluation or a run, for printing.

    Raises UserError when it is none of them.
    """
    if not location.exists():
        raise UserError(f"{location}: no such file or folder")
    name = location.name
    if name.endswith(".safetensors"):
        return tensor_header(location)
    if name.endswith(".parquet"):
        with opened(location) as shard:
            return {"kind": "shard", **shard.facts.identity}
    for content, kind in (
        (schema.MANIFEST, "activations"),
        ("metrics.json", "evaluation"),
        ("run.json", "run"),
    ):
        if (location / content).exists():
            if content == schema.MANIFEST:
                ActivationSet.open(location)
            facts = dict((location / content).read_json())
            short = {key: value for key, value in facts.items() if key not in _LONG}
            return {"kind": kind, **short, **facts.get("identity", {})}
    raise UserError(f"{location}: expected an activation set, vector, map, evaluation or run")


def status_of(location: Location) -> dict[str, str]:
    """How far each part of a run, or a single harvest or evaluation, has come: part to state.

    Raises UserError when there is nothing of the kind.
    """
    single = _state(location)
    if single is not None:
        return {str(location): single}
    found: dict[str, str] = {}
    for folder in ("activations", "evaluations"):
        for name in (location / folder).names():
            state = _state(location / folder / name)
            if state is not None:
                found[f"{folder}/{name}"] = state
    for folder in ("vectors", "maps"):
        count = sum(len((location / folder / name).names()) or 1 for name in (location / folder).names())
        if count:
            found[folder] = f"{count} files"
    for run in (location / "runs").names():
        with suppress(UserError):  # one that has not begun
            parts = status_of(location / "runs" / run)
            found |= {f"runs/{run}/{part}": state for part, state in parts.items()}
    if not found:
        raise UserError(f"{location}: expected a harvest, an evaluation or a run")
    found["report"] = "written" if (location / "report.html").exists() else "not yet"
    return found


def _state(location: Location) -> str | None:
    if (location / schema.MANIFEST).exists():
        rows = ActivationSet.open(location)
        return f"complete, {rows.n_rows:,} rows in {len(rows.manifest['shards'])} shards"
    if (location / "metrics.json").exists():
        return "complete"
    shards = [name for name in location.names() if name.startswith("shard-")]
    if shards:
        return f"{len(shards)} shards finished, not complete: run the same harvest again"
    parts = (location / "parts").names()
    return f"{len(parts)} splits finished, not complete: run the same evaluation again" if parts else None
