"""Folders: harvests, evaluations, runs, reductions, models, and folders of these."""

from collections.abc import Callable, Collection
from typing import Any

from contrans_dist.console import count_of
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import Evaluation, read_evaluation
from contrans_dist.evaluation.parts import PARTS, identity_in
from contrans_dist.pipeline.inspection.artefact import Artefact, made_of
from contrans_dist.pipeline.inspection.tensors import of_map
from contrans_dist.pipeline.status import status_of
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from contrans_dist.store.results import METRICS, RECORD, LeakCheck, RunFile, plain, read_file
from contrans_dist.store.run_recipe import RECIPE, read_run_recipe
from contrans_dist.store.running import running_in
from contrans_dist.store.shard_reader import first_identity, shards_in

_TENSORS = ".safetensors"
_MOST = 1_000
"""Names of a folder of folders that are looked at."""


def described(location: Location) -> Artefact | None:
    """What a folder is; None for any that is not ours."""
    names = location.names()
    found = next(((kind, describe) for kind, mark, describe in KINDS if _marked(names, mark)), None)
    if found is not None:
        return found[1](location, found[0])
    return _several(location, names[:_MOST]) or _begun(location)


def kind_of(location: Location) -> str | None:
    """The kind of a folder by the names in it alone."""
    names = location.names()
    known = next((kind for kind, mark, _ in KINDS if _marked(names, mark)), None)
    return known or ("folder" if any(name.endswith(_TENSORS) for name in names) else None)


def _marked(names: Collection[str], mark: str) -> bool:
    """Whether one of the names in a folder is this, or begins with it where it is a beginning."""
    return any(name.startswith(mark) for name in names) if mark.endswith("-") else mark in names


def asked_for(identity: Identity) -> dict[str, Any]:
    """What states were taken from: the model and the texts."""
    return {
        "model": identity.model,
        "weights": identity.weights,
        "precision": identity.precision,
        "quantization": identity.quantization,
        "texts": identity.texts,
        "template": identity.template,
        "chat template": f"of {identity.chat_date}" if identity.chat else None,
        "position": identity.position,
        "at most": identity.max_tokens and f"{identity.max_tokens:,} tokens a text",
    }


def _activations(location: Location, kind: str) -> Artefact:
    manifest = ActivationSet.open(location).manifest
    throughput = manifest.throughput
    sizes = [entry.bytes for entry in manifest.shards]
    return Artefact(
        kind,
        asked_for(manifest.identity),
        made_of(
            plain(manifest),
            actors=throughput.actors,
            seconds=throughput.seconds,
            placement=throughput.placement,
            devices=manifest.devices,
        ),
        {
            "rows": manifest.rows,
            "blocks": manifest.blocks,
            "of": f"{count_of(manifest.n_blocks, 'block')} of {manifest.d}",
            "columns": manifest.columns,
            "tokens": manifest.tokens,
            "truncated": manifest.truncated or None,
            "left out": len(manifest.skipped) or None,
            "shards": len(manifest.shards),
            "bytes": None if None in sizes else sum(size or 0 for size in sizes),
            "median norms": manifest.norms,
            "canary": manifest.canary.worst_deviation,
        },
        plain(manifest),
    )


def _unfinished(location: Location, kind: str) -> Artefact:
    shards = shards_in(location)
    identity = first_identity(location, shards)
    source = asked_for(identity) if identity else {}
    held = {"shards": len(shards), "state": _state(location)}
    return Artefact(
        kind, source, holds=held, whole={"shards": shards, "identity": identity and plain(identity)}
    )


def _begun(location: Location) -> Artefact | None:
    """A harvest or an evaluation of which nothing is finished yet."""
    for running in running_in(location):
        kind = "activations" if running.stage == "harvest" else "evaluation"
        said = running.model_dump(mode="json")
        return Artefact(kind, {"model": running.model}, holds={"state": _state(location)}, whole=said)
    return None


def _state(location: Location) -> str:
    """How far it is, and how to go on."""
    return status_of(location)[str(location)]


def _evaluation(location: Location, kind: str) -> Artefact:
    evaluation = read_evaluation(location)
    metrics = evaluation.file
    leak = metrics.leak
    search = evaluation.search
    return Artefact(
        kind,
        {
            "model": metrics.model,
            "benchmark": metrics.benchmark,
            **{name: (metrics.identity or {}).get(name) for name in ("weights", "dtype", "compute_dtype")},
            "fingerprint": metrics.fingerprint,
        },
        made_of(plain(metrics), protocol=metrics.protocol, costs=metrics.costs),
        {
            "block": metrics.block if metrics.blocks is None else metrics.blocks,
            "strengths": metrics.strengths,
            **_scores(evaluation),
            "strengths chosen": search.chosen if search else None,
            "seen before": leak and _seen(leak),
            "rows": metrics.rows,
            "notes": metrics.notes,
        },
        plain(metrics),
    )


def _seen(leak: LeakCheck) -> str:
    if not (leak.seen or leak.known):
        return "not known"
    return f"{leak.seen} of {leak.evaluated} texts"


def _scores(evaluation: Evaluation) -> dict[str, str]:
    """The heading metric of each condition, by strength."""
    if not evaluation.metrics:
        return {}
    metric = evaluation.metrics[0]
    told: dict[str, list[str]] = {}
    for row in evaluation.rows:
        if metric in row.metrics:
            told.setdefault(row.condition, []).append(f"{row.metrics[metric].value:.3g} at {row.strength:g}")
    return {f"{metric}, {condition}": ", ".join(scores) for condition, scores in told.items()}


def _parts(location: Location, kind: str) -> Artefact:
    parts, identity = (location / PARTS).names(), identity_in(location) or {}
    held = {"parts": len(parts), "state": _state(location)}
    source = {name: identity.get(name) for name in ("model", "benchmark", "weights", "dtype")}
    return Artefact(kind, source, holds=held, whole={"parts": parts, "identity": identity})


def _run(location: Location, kind: str) -> Artefact:
    record = read_file(location / RECORD, RunFile) if (location / RECORD).exists() else RunFile()
    recipe = read_run_recipe(location)
    said = plain(record)
    took = {stage.name: f"{stage.seconds:g} s" for stage in record.stages or []}
    try:
        states = status_of(location)
    except UserError:
        states = {}
    return Artefact(
        kind,
        {
            "recipe": record.name or recipe.name,
            "description": record.description or recipe.description,
            "source": recipe.model("source"),
            "target": recipe.model("target"),
            "corpus": recipe.content.get("corpus"),
            "concepts": recipe.content.get("concepts"),
        },
        made_of(said, took=took, started=record.started, finished=record.finished),
        states,
        {**said, "recipe": recipe.content, "states": states},
    )


def _reduction(location: Location, kind: str) -> Artefact:
    """What `contrans reduce` leaves: vectors by side and concept, and maps."""
    held: dict[str, Any] = {}
    for side in (location / "vectors").names():
        concepts = (name.removesuffix(_TENSORS) for name in (location / "vectors" / side).names())
        held[f"vectors/{side}"] = list(concepts)
    maps = [location / "maps" / name for name in (location / "maps").names() if name.endswith(_TENSORS)]
    told = [of_map(file, kind) for file in maps]
    for file, one in zip(maps, told, strict=True):
        held |= {f"maps/{file.name.removesuffix(_TENSORS)}, {name}": v for name, v in one.holds.items()}
    first = told[0] if told else Artefact(kind)
    return Artefact(
        kind, first.source, first.made, held, {"vectors": held, "maps": [m.content for m in told]}
    )


def _model(location: Location, kind: str) -> Artefact:
    from contrans_dist.models.facts import model_facts  # torch comes with it

    if not location.is_local:
        raise UserError(f"{location}: expected a model in a local folder")
    facts = model_facts(location.path)
    whole = {
        "model": facts.name, "model_type": facts.model_type, "n_blocks": facts.n_blocks, "d": facts.d,
        "parameters": facts.parameters, "dtype": facts.dtype, "context": facts.context,
        "weights": facts.weights, "tokenizer": facts.tokenizer, "config": facts.config,
    }  # fmt: skip
    identity = {name: whole[name] for name in ("weights", "tokenizer", "config")}
    return Artefact(kind, identity, holds={k: v for k, v in whole.items() if k not in identity}, whole=whole)


def _several(location: Location, names: list[str]) -> Artefact | None:
    """A folder of artefacts: what each of them is."""
    found = {
        name: kind
        for name in names
        if (kind := "vector or map" if name.endswith(_TENSORS) else kind_of(location / name)) is not None
    }
    return Artefact("folder", holds=found, whole={"holds": found}) if found else None


Describe = Callable[[Location, str], Artefact]
KINDS: list[tuple[str, str, Describe]] = [
    ("activations", schema.MANIFEST, _activations),
    ("evaluation", METRICS, _evaluation),
    ("run", RECORD, _run),
    ("run", RECIPE, _run),
    ("model", "config.json", _model),
    ("evaluation", PARTS, _parts),
    ("activations", "shard-", _unfinished),
    ("reduction", "maps", _reduction),
    ("reduction", "vectors", _reduction),
]
"""Kind of a folder, the name in it (or the beginning of one) by which it is known, and who describes it: the
first that fits."""
