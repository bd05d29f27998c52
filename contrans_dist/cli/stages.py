"""Commands that do one stage each: harvest, fit, transplant; `refine` is beside `reduce`."""

import re
from typing import Annotated, Any

import typer

from contrans_dist.cli.options import (
    Actors,
    Address,
    AsJson,
    Centring,
    ComputeDtype,
    Cpus,
    Dtype,
    Gpus,
    Labels,
    ModelName,
    PlacementName,
    Quantization,
    Regularising,
    SourceBlocks,
    TrustCode,
    centring,
    cluster_settings,
    emit,
    lasting,
    model_settings,
)
from contrans_dist.config import BATCH_TOKENS, CHAT_DATE
from contrans_dist.config.map_options import MapOptions
from contrans_dist.console import count_of, size_words
from contrans_dist.errors import UserError


def harvest(
    model: ModelName,
    texts: Annotated[str, typer.Option(help="File of texts: .txt, .jsonl, .parquet, or a ConTrans .json.")],
    out: Annotated[str, typer.Option(help="Folder or URI of the activation set.", callback=lasting)],
    blocks: Annotated[
        str, typer.Option(help="Blocks, from 0: all, 24, 8:16 (8 to 15), 3,5, or 0.75 of the depth.")
    ] = "all",
    position: Annotated[
        str, typer.Option(help="Token of the row: last, mean, or an offset such as -2.")
    ] = "last",
    template: Annotated[str | None, typer.Option(help="Prompt around each text, with {text}.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    chat_date: Annotated[
        str, typer.Option(help="The day it is for a chat template that asks: YYYY-MM-DD.")
    ] = CHAT_DATE.isoformat(),
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a prompt; its end is kept. Default: the model's positions.")
    ] = None,
    dtype: Dtype = None,
    compute_dtype: ComputeDtype = None,
    quantization: Quantization = None,
    actors: Actors = None,
    gpus_per_actor: Gpus = None,
    cpus_per_actor: Cpus = None,
    label_selector: Labels = None,
    placement: PlacementName = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out texts that cannot be run; the manifest lists them.")
    ] = False,
    shard_size: Annotated[int | None, typer.Option(help="Rows a shard. Default: about 128 MB.")] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens in one forward pass, padding included.")
    ] = BATCH_TOKENS,
    address: Address = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Harvest hidden states into Parquet, one row a text. Run it again to go on after an interruption."""
    from contrans_dist.config import CaptureSettings
    from contrans_dist.config.recipe import validated
    from contrans_dist.data.texts import read_texts
    from contrans_dist.harvest.driver import harvest as run_harvest
    from contrans_dist.store.location import Location

    content = {
        "blocks": blocks,
        "position": int(position) if re.fullmatch("-?[0-9]{1,9}", position) else position,
        "template": template,
        "chat": chat,
        "chat_date": chat_date,
        "max_tokens": max_tokens,
        "batch_tokens": batch_tokens,
        "shard_size": shard_size,
    }
    capture = validated(
        CaptureSettings, content, "--position, --chat-date, --max-tokens, --batch-tokens, --shard-size"
    )
    result = run_harvest(
        model_settings(model, dtype, compute_dtype, quantization, trust_remote_code),
        read_texts(texts),
        out,
        capture,
        cluster_settings(address, actors, gpus_per_actor, cpus_per_actor, label_selector, placement),
        Location.parse(texts),
        skip_bad,
    )
    manifest = result.manifest
    told = {"rows", "d", "blocks", "tokens", "truncated", "fingerprint", "canary"}
    summary = manifest.model_dump(mode="json", include=told)
    size = sum(shard.bytes or 0 for shard in manifest.shards)
    text = (
        f"{result.location}: {count_of(result.n_rows, 'row')}, {count_of(len(result.blocks), 'block')} of "
        f"{result.d}, {count_of(manifest.tokens, 'token')}, {size_words(size)} in "
        f"{count_of(len(manifest.shards), 'shard')}"
    )
    emit(as_json, {"out": str(result.location), **summary}, text)


def fit(
    source: Annotated[str, typer.Option(help="Activation set of the source model.")],
    target: Annotated[str, typer.Option(help="Activation set of the target model, on the same texts.")],
    out: Annotated[str, typer.Option(help="The map file (.safetensors).", callback=lasting)],
    blocks: Annotated[
        str,
        typer.Option(
            help="depth (three quarters of both), best (highest held-out R2 in the upper third; runs no "
            "model), r2 (the same of all), or pairs such as 24:30."
        ),
    ] = "depth",
    protocol: Annotated[
        str,
        typer.Option(help="default (centred, ridge by validation), paper (equation 2), lcross (all rows)."),
    ] = "default",
    rows: Annotated[str | None, typer.Option(help="Fit on these rows only: column=value.")] = None,
    centre: Centring = None,
    regularise: Regularising = None,
    source_blocks: SourceBlocks = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Fit the linear map between two models' hidden states."""
    from contrans_dist.mapping.driver import fit as fit_maps
    from contrans_dist.store.activation_set import ActivationSet
    from contrans_dist.store.location import Location
    from contrans_dist.vectors.from_activations import select_rows

    try:
        options = MapOptions(protocol, centring(centre), regularise, source_blocks)  # type: ignore[arg-type]
    except ValueError as error:  # in one line that begins with the option's name
        raise UserError(f"--{error}") from error
    left, right = ActivationSet.open(source), ActivationSet.open(target)
    chosen = select_rows(left, rows) if rows else None
    maps = fit_maps(left, right, blocks, options, rows=chosen, address=address)
    location = Location.parse(out)
    maps.save(location)
    pairs = [{"source": s, "target": t, **mapping.header()} for (s, t), mapping in maps.maps.items()]
    lines = [f"{location}: {protocol}, fitted on {count_of(pairs[0]['n_fit'], 'text')}"]
    lines += [_map_line(pair) for pair in pairs]
    emit(as_json, {"out": str(location), "pairs": pairs}, "\n".join(lines))


def _map_line(pair: dict[str, Any]) -> str:
    read = "+".join(map(str, pair["source_blocks"] or [pair["source"]]))
    parts = [f"block {read} -> {pair['target']}: {pair['side']}, rank {pair['rank']}"]
    condition = pair["condition_number"]
    parts.append("condition number infinite" if condition is None else f"condition number {condition:.3g}")
    if pair["ridge"] is not None:
        parts.append(f"ridge {pair['ridge']:.1e}")
    if pair["r2_test"] is not None:
        parts.append(f"{'held-out' if pair['held_out'] else 'in-sample'} R2 {pair['r2_test']:.3f}")
    return ", ".join(parts)


def transplant(
    vector: Annotated[str, typer.Option(help="Concept vector of the source model.")],
    map_: Annotated[str, typer.Option("--map", help="Map file from source to target.")],
    out: Annotated[
        str, typer.Option(help="The vector in the target's space (.safetensors).", callback=lasting)
    ],
    norm: Annotated[
        str,
        typer.Option(
            help="keep, or match (the default of recipes and of reduce): the same share of the residual norm "
            "as before."
        ),
    ] = "keep",
    blocks: Annotated[str | None, typer.Option(help="Which pair of the map: source:target.")] = None,
    own: Annotated[
        str | None, typer.Option(help="The target's own vector, to print the cosine to it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Carry a concept vector through a map into the target's space."""
    from contrans_dist.mapping.map_set import MapSet
    from contrans_dist.mapping.transplant import NORMS, cosine
    from contrans_dist.store.location import Location
    from contrans_dist.vectors.concept_vector import ConceptVector

    if norm not in NORMS:
        raise UserError(f"--norm {norm}: expected {' or '.join(NORMS)}")
    maps = MapSet.load(map_)
    carried = maps.carry(ConceptVector.load(vector), norm, _pair(blocks))
    block = carried.blocks[0]
    like = None if own is None else ConceptVector.load(own).at(block)
    if like is not None and like.size != carried.d:
        raise UserError(f"--own {own}: it is {like.size} wide, the map leads to {carried.d}")
    location = Location.parse(out)
    carried.save(location)
    share = carried.share(block)
    content: dict[str, Any] = {"out": str(location), "block": block, "share_of_residual_norm": share}
    text = f"{location}: {carried.concept} at block {block} of {carried.model}"
    if share is not None:
        text += f", {share:.2f} of its residual norm"
    if like is not None:
        content["cosine"] = cosine(carried.at(block), like)
        text += f", cosine to its own {content['cosine']:.3f}"
    emit(as_json, content, text)


def _pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    pair = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if pair is None:
        raise UserError(f"--blocks {text}: expected source:target such as 24:30")
    return int(pair[1]), int(pair[2])
