"""Commands that run a steered model: evaluate, generate."""

from typing import Annotated, Any

import typer

from contrans_dist.cli.options import (
    Actors,
    Address,
    AsJson,
    Cpus,
    Dtype,
    Gpus,
    ModelName,
    Quantization,
    TrustCode,
    cluster_settings,
    emit,
    lasting,
    model_settings,
)
from contrans_dist.config import EvaluationSettings
from contrans_dist.errors import UserError
from contrans_dist.recipe import validated


def evaluate(
    model: ModelName,
    benchmark: Annotated[str, typer.Option(help="emotions")],
    out: Annotated[str, typer.Option(help="Folder or URI of the evaluation.", callback=lasting)],
    data: Annotated[
        str | None, typer.Option(help="Scenarios: a file, or a folder of `<concept>.json`.")
    ] = None,
    vector: Annotated[
        list[str] | None, typer.Option(help="Vector file in this model's space; one a concept.")
    ] = None,
    block: Annotated[
        int | None, typer.Option(help="Block to steer. Default: the one the vector carries.")
    ] = None,
    strengths: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    controls: Annotated[
        str | None,
        typer.Option(
            help="Of random, shuffled-map, other-concept; comma-separated, or none. "
            "Default: all that the vectors given allow."
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="default or paper.")] = "default",
    template: Annotated[str | None, typer.Option(help="Prompt around each scenario, with {text}.")] = None,
    shots: Annotated[str | None, typer.Option(help="Scenarios that may serve as few-shot examples.")] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    actors: Actors = None,
    gpus_per_actor: Gpus = None,
    cpus_per_actor: Cpus = None,
    address: Address = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Score a steered model on a benchmark, with controls."""
    from contrans_dist.cli.tables import metrics_lines
    from contrans_dist.conditions import derivable, load_vectors, steering
    from contrans_dist.evaluate import evaluate as run_evaluation

    if data is None:
        raise UserError("--data: expected the scenarios to score")
    asked = [name for name in (controls or "").split(",") if name and name != "none"]
    try:
        sweep = [float(strength) for strength in strengths.split(",")]
    except ValueError as error:
        raise UserError(f"--strengths {strengths}: expected numbers such as 0,0.5,1") from error
    content = {
        "benchmark": benchmark,
        "texts": data,
        "shots": shots,
        "protocol": protocol,
        "template": template,
        "strengths": sweep,
        "conditions": ["vector", *asked] if vector else [],
    }
    settings = validated(EvaluationSettings, content, "contrans evaluate")
    vectors = load_vectors(vector or [])
    conditions = settings.conditions if controls is not None else ("vector", *derivable(vectors))
    metrics = run_evaluation(
        model_settings(model, dtype, quantization, trust_remote_code),
        settings,
        steering({"vector": vectors}, conditions, block, settings.seed),
        out,
        cluster_settings(address, actors, gpus_per_actor, cpus_per_actor),
    )
    emit(as_json, metrics, "\n".join(metrics_lines(metrics)))


def generate(
    model: ModelName,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...")],
    vector: Annotated[str | None, typer.Option(help="Vector file in this model's space.")] = None,
    block: Annotated[
        int | None, typer.Option(help="Block to steer. Default: the one the vector carries.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Coefficient of the vector.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 40,
    dtype: Dtype = None,
    quantization: Quantization = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with the unsteered and, given a vector, the steered model (greedy)."""
    from contrans_dist.conditions import row_of
    from contrans_dist.models import encode_many, load_model
    from contrans_dist.models.placement import choose_placement
    from contrans_dist.scoring import BASE, Intervention
    from contrans_dist.scoring import generate as continue_prompts
    from contrans_dist.vectors import ConceptVector

    options: dict[str, Any] = {
        "dtype": dtype,
        "quantization": quantization,
        "trust_remote_code": trust_remote_code,
    }
    placement = choose_placement(model, **options)
    if placement.kind == "stream":
        raise UserError(f"--model {model}: {placement.reason.partition(':')[0]}; try --quantization")
    lm = load_model(model, **options, device=placement.device_map)
    interventions = [BASE]
    if vector is not None:
        at, row = row_of(ConceptVector.load(vector), block)
        interventions.append(Intervention("steered", {at: row}, strength))
    texts = continue_prompts(lm, encode_many(lm, prompts), interventions, max_new_tokens=max_new_tokens)
    names = [intervention.name for intervention in interventions]
    rows = [
        {"prompt": prompt, **{name: texts[i][j] for i, name in enumerate(names)}}
        for j, prompt in enumerate(prompts)
    ]
    lines = [f"{name}: {row['prompt']}{row[name]}" for row in rows for name in names]
    emit(as_json, {"model": model, "texts": rows}, "\n".join(lines))
