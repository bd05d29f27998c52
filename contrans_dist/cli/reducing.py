"""Commands that make concept vectors of activations: refine one, or reduce four sets to all there is."""

from statistics import fmean
from typing import Annotated

import typer

from contrans_dist.cli.options import (
    Address,
    AsJson,
    Centring,
    Regularising,
    SourceBlocks,
    centring,
    emit,
    lasting,
)
from contrans_dist.console import count_of
from contrans_dist.errors import UserError


def refine(
    activations: Annotated[str, typer.Option(help="Activation set of the contrast texts.")],
    out: Annotated[str, typer.Option(help="The vector file (.safetensors).", callback=lasting)],
    method: Annotated[str, typer.Option(help="mean (equation 1) or pca.")] = "mean",
    positive: Annotated[
        str,
        typer.Option(help="Which rows are positive: column=value; several joined by commas must all hold."),
    ] = "label=positive",
    negative: Annotated[str, typer.Option(help="Which rows are negative.")] = "label=negative",
    concept: Annotated[
        str | None, typer.Option(help="Name of the concept. Default: the file's name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a concept vector from the activations of positive and negative texts."""
    from contrans_dist.store.activation_set import ActivationSet
    from contrans_dist.store.location import Location
    from contrans_dist.vectors.from_activations import refine as make_vector
    from contrans_dist.vectors.from_activations import select_rows

    _check_method(method)
    rows = ActivationSet.open(activations)
    location = Location.parse(out)
    name = concept or location.name.rpartition(".")[0] or location.name
    vector = make_vector(rows, select_rows(rows, positive), select_rows(rows, negative), name, method)
    vector.save(location)
    content = {"out": str(location), "concept": name, "blocks": vector.blocks, "d": vector.d}
    size = f"{count_of(len(vector.blocks), 'block')} of {vector.d}"
    text = f"{location}: {name}, {size}, from {vector.n_positive} + {vector.n_negative} texts"
    emit(as_json, content, text)


def reduce(
    source_contrast: Annotated[str, typer.Option(help="Activation set: contrast texts, source model.")],
    target_contrast: Annotated[str, typer.Option(help="The same texts, target model.")],
    source_corpus: Annotated[str, typer.Option(help="Activation set: generic corpus, source model.")],
    target_corpus: Annotated[str, typer.Option(help="The same corpus, target model.")],
    out: Annotated[str, typer.Option(help="Folder or URI for vectors/ and maps/.", callback=lasting)],
    blocks: Annotated[
        str,
        typer.Option(
            help="depth (three quarters of both), best (what steers contrast prompts best), r2, or 24:30."
        ),
    ] = "depth",
    protocol: Annotated[
        str, typer.Option(help="default (centred, ridge) or paper (equation 2).")
    ] = "default",
    norm: Annotated[
        str, typer.Option(help="keep, or match: the same share of the residual norm as before.")
    ] = "match",
    method: Annotated[str, typer.Option(help="mean (equation 1) or pca.")] = "mean",
    centre: Centring = None,
    regularise: Regularising = None,
    source_blocks: SourceBlocks = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Make the vectors of every concept in both models, fit the map, and carry the source's over.

    The contrast texts need a column `concept` (and `label`, or each concept is set against the others).
    Writes `vectors/source`, `vectors/target`, `vectors/vector` (transplanted) and `maps/corpus.safetensors`,
    and with `--blocks best` what was tried, `selection/`.
    """
    from contrans_dist.config import MapSettings
    from contrans_dist.config.recipe import validated
    from contrans_dist.evaluation.block_search import reduce_sides
    from contrans_dist.evaluation.sides import Sides
    from contrans_dist.store.activation_set import ActivationSet
    from contrans_dist.store.location import Location

    _check_method(method)
    content = {
        "blocks": blocks,
        "protocol": protocol,
        "norm": norm,
        "centre": centring(centre),
        "regularise": regularise,
        "source_blocks": source_blocks,
    }
    settings = validated(MapSettings, content, "options of the map")
    sides = Sides(
        corpus_source=ActivationSet.open(source_corpus),
        corpus_target=ActivationSet.open(target_corpus),
        contrast_source=ActivationSet.open(source_contrast),
        contrast_target=ActivationSet.open(target_contrast),
    )
    location = Location.parse(out)
    maps, vectors = reduce_sides(sides, settings, location, method, address=address)
    pair = maps.only_pair()
    cosines = maps.cosines[pair]
    summary = {"out": str(location), "blocks": list(pair), "concepts": list(vectors), "cosines": cosines}
    text = (
        f"{location}: {count_of(len(vectors), 'concept')} from block {pair[0]} to block {pair[1]}, "
        f"mean cosine to the target's own {fmean(cosines.values()):.3f}"
    )
    emit(as_json, summary, text)


def _check_method(method: str) -> None:
    from contrans_dist.vectors.extract import METHODS

    if method not in METHODS:
        raise UserError(f"--method {method}: expected one of {', '.join(METHODS)}")
