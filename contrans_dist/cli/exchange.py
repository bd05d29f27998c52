"""Commands between this program and other tools: export, import."""

from typing import Annotated, Any

import typer

from contrans_dist.cli.options import AsJson, TrustCode, emit, lasting
from contrans_dist.console import count_of, note

_WRITTEN = (
    "gguf (llama.cpp, repeng, EasySteer), lm-eval (--model steered), vllm-lens, easysteer, neuronpedia, "
    "npy (ConTrans), safetensors."
)


def export(
    vector: Annotated[str, typer.Option(help="Vector file, in the space of the model it is to steer.")],
    format_: Annotated[str, typer.Option("--format", help=_WRITTEN)],
    out: Annotated[str, typer.Option(help="The file; its name ends as the tool wants.", callback=lasting)],
    block: Annotated[
        str | None,
        typer.Option(
            help="Blocks, from 0: 20, 3,5, 8:16 (8 to 15) or all. Default: the one the vector carries."
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Coefficient of the vector; into the values where the format has no field.")
    ] = 1.0,
    model: Annotated[
        str | None, typer.Option(help="The model by whose names its parts are called. Default: the vector's.")
    ] = None,
    model_id: Annotated[str | None, typer.Option(help="What Neuronpedia calls the model.")] = None,
    hook: Annotated[
        str | None, typer.Option(help="Of Neuronpedia: hook_resid_pre (default) or hook_resid_post.")
    ] = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Write a concept vector as a file that another tool steers with. What its format cannot say is refused.

    The file says what it is where it has a place for that, else a second file beside it does."""
    from contrans_dist.store.location import Location
    from contrans_dist.vectors.concept_vector import ConceptVector
    from contrans_dist.vectors.exchange import export_vector
    from contrans_dist.vectors.formats.foreign import Asked

    concept = ConceptVector.load(vector)
    asked = Asked(model=model, model_id=model_id, hook=hook, trust_remote_code=trust_remote_code)
    addition, files = export_vector(concept, Location.parse(out), format_, block, strength, asked)
    content: dict[str, Any] = {
        "out": str(files[0]),
        "files": [str(file) for file in files],
        "format": format_,
        "blocks": list(addition.blocks),
        "strength": strength,
    }
    blocks = addition.blocks
    at = f"block {blocks[0]}" if len(blocks) == 1 else count_of(len(blocks), "block")
    text = f"{files[0]}: {concept.concept} at {at} of {concept.model}, strength {strength:g}"
    share = concept.share(blocks[0], strength)
    if len(blocks) == 1 and share is not None:
        content["share_of_residual_norm"] = share
        text += f", {share:.2f} of its residual norm"
    emit(as_json, content, "\n".join([text, *(f"and {file}" for file in files[1:])]))


def import_(
    file: Annotated[str, typer.Argument(help="What to read: .gguf, .npy, or .pt of lm-evaluation-harness.")],
    out: Annotated[str, typer.Option(help="The vector file (.safetensors).", callback=lasting)],
    format_: Annotated[
        str | None, typer.Option("--format", help="gguf, npy or lm-eval. Default: by the file's name.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model it is for; files that contrans wrote say it.")
    ] = None,
    block: Annotated[
        int | None, typer.Option(min=0, help="Where the row of an array [d] belongs, from 0.")
    ] = None,
    concept: Annotated[str | None, typer.Option(help="Name of the concept. Default: the file's.")] = None,
    norms: Annotated[
        str | None,
        typer.Option(help="Activation set or vector of the model, for its residual norms; or none."),
    ] = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Read a vector that another tool steers with. At strength 1 it does what the file does there."""
    from contrans_dist.store.location import Location
    from contrans_dist.vectors.exchange import import_vector
    from contrans_dist.vectors.formats.foreign import Asked

    asked = Asked(model=model, block=block, trust_remote_code=trust_remote_code)
    vector = import_vector(Location.parse(file), asked, format_, concept, norms)
    location = Location.parse(out)
    vector.save(location)
    note("the file does not say which texts it was made of: the contamination check cannot look for them")
    content = {
        "out": str(location),
        "concept": vector.concept,
        "model": vector.model,
        "blocks": vector.blocks,
        "d": vector.d,
    }
    blocks = f"block {vector.blocks[0]}" if len(vector.blocks) == 1 else count_of(len(vector.blocks), "block")
    emit(as_json, content, f"{location}: {vector.concept} at {blocks} of {vector.model}")
