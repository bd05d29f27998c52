"""Commands that run a steered model: evaluate, generate."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrans_dist.cli.options import (
    Actors,
    Address,
    AsJson,
    ComputeDtype,
    Cpus,
    Dtype,
    Gpus,
    Labels,
    ModelName,
    Quantization,
    TrustCode,
    cluster_settings,
    emit,
    lasting,
    model_settings,
)
from contrans_dist.config.benchmarks import OURS, find_benchmark
from contrans_dist.errors import UserError

if TYPE_CHECKING:
    from contrans_dist.config import EvaluationSettings, ModelSettings
    from contrans_dist.evaluation.baselines import Available
    from contrans_dist.store.results import MetricsFile, Score


_FLAGS = {
    "benchmark": "--benchmark", "texts": "--data", "strengths": "--strengths", "conditions": "--controls",
    "instruction": "--inst-align",
}  # fmt: skip
"""Settings that have flags of their own."""
_NAMES = f"{', '.join(entry.name for entry in OURS)}, or one that an installed package brings."


def evaluate(
    model: ModelName,
    benchmark: Annotated[str, typer.Option(help=_NAMES)],
    out: Annotated[str, typer.Option(help="Folder or URI of the evaluation.", callback=lasting)],
    data: Annotated[
        str | None,
        typer.Option(
            help="What is scored: a file or folder. truthfulqa, toxigen and perplexity take theirs from the "
            "hub without it; lm-eval takes none; the others need it."
        ),
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
    protocol: Annotated[
        str | None, typer.Option(help="Where a benchmark has several: default or paper.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Prompt around each text, with {text}.")] = None,
    shots: Annotated[
        str | None, typer.Option(help="What may serve as few-shot examples, where a benchmark takes some.")
    ] = None,
    align_training: Annotated[
        str | None, typer.Option(help="An instruct model, scored beside as `align-training`.")
    ] = None,
    inst_align: Annotated[
        str | None, typer.Option(help="An instruction before every prompt, scored beside as `inst-align`.")
    ] = None,
    proxy_tuning: Annotated[
        str | None,
        typer.Option(help="TUNED,PLAIN: two small models whose logits' difference is added (proxy-tuning)."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another setting of the benchmark: key=value, such as limit=100."),
    ] = None,
    dtype: Dtype = None,
    compute_dtype: ComputeDtype = None,
    quantization: Quantization = None,
    actors: Actors = None,
    gpus_per_actor: Gpus = None,
    cpus_per_actor: Cpus = None,
    label_selector: Labels = None,
    address: Address = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Score a steered model on a benchmark, with controls."""
    from contrans_dist.evaluation.assess import assess
    from contrans_dist.evaluation.conditions import systems
    from contrans_dist.evaluation.steering import derivable, load_vectors, steering
    from contrans_dist.store.location import Location
    from contrans_dist.store.results import plain

    if not vector and (block is not None or _controls_in(controls)):
        flag = f"--controls {controls}" if block is None else f"--block {block}"
        raise UserError(f"{flag}: expected --vector as well; without one nothing is added to the model")
    content = {
        "texts": data,
        "strengths": _numbers_in(strengths),
        "conditions": ["vector", *_controls_in(controls)] if vector else [],
    }
    optional = {"shots": shots, "protocol": protocol, "template": template}
    content |= {name: value for name, value in optional.items() if value is not None}
    settings = _settings(benchmark, content, set_ or [])
    vectors = load_vectors(vector or [])
    conditions = settings.conditions if controls is not None else ("vector", *derivable(vectors, block))
    target = model_settings(model, dtype, compute_dtype, quantization, trust_remote_code)
    metrics = assess(
        target,
        settings,
        steering({"vector": vectors}, conditions, block, settings.seed),
        Location.parse(out),
        cluster_settings(address, actors, gpus_per_actor, cpus_per_actor, label_selector),
        systems(_available(target, align_training, inst_align, proxy_tuning)),
    )
    emit(as_json, plain(metrics), "\n".join(_metrics_lines(metrics)))


def _settings(benchmark: str, content: dict[str, Any], changes: list[str]) -> "EvaluationSettings":
    """The settings of a benchmark: what its flags say, and every `--set`."""
    from contrans_dist.config.recipe import override, validated

    try:
        settings_class = find_benchmark(benchmark).settings_class
    except UserError as error:
        raise UserError(f"--benchmark {benchmark}: {error}") from error
    if content["texts"] is None and settings_class.model_fields["texts"].is_required():
        raise UserError(f"--data: expected what benchmark {benchmark} is to score")
    content = {"benchmark": benchmark, **content}
    for change in changes:
        flag = _FLAGS.get(change.partition("=")[0])
        if flag is not None:
            raise UserError(f"--set {change}: expected {flag} for that")
        override(content, change)
    settings: EvaluationSettings = validated(settings_class, content, "contrans evaluate")
    return settings


def _numbers_in(strengths: str) -> list[float]:
    try:
        return [float(strength) for strength in strengths.split(",")]
    except ValueError as error:
        raise UserError(f"--strengths {strengths}: expected numbers such as 0,0.5,1") from error


def _controls_in(controls: str | None) -> list[str]:
    from contrans_dist.evaluation.conditions import known

    names = [name for name in (controls or "").split(",") if name and name != "none"]
    for name in names:
        known(name, f"--controls {controls}")
    return names


def _available(
    target: "ModelSettings", instruct: str | None, instruction: str | None, guides: str | None
) -> "Available":
    """What baselines are made of; other models are loaded in the target's precision."""
    from contrans_dist.evaluation.baselines import Available

    def like(name: str) -> "ModelSettings":
        return target.model_copy(update={"id": name})

    both = (guides or "").split(",")
    if guides is not None and (len(both) != 2 or not all(both)):
        raise UserError(f"--proxy-tuning {guides}: expected two models, TUNED,PLAIN")
    pair = tuple(map(like, both)) if guides is not None else ()
    return Available(target, like(instruct) if instruct is not None else None, instruction or "", pair)


def _metrics_lines(metrics: "MetricsFile") -> list[str]:
    """For each overall metric a line a condition and strength (value, 95 % interval, n); then the leak check.

    Where a benchmark has numbers by group alone, those are listed.
    """
    rows = metrics.conditions
    every = list(dict.fromkeys(name for row in rows for name in row.metrics))
    names = [name for name in every if "/" not in name] or every
    width = max(len("condition"), *(len(row.condition) for row in rows))
    lines = []
    for name in names:
        lines.append(
            f"{name}\n  {'condition':<{width}} {'strength':>8} {'value':>9}  {'95 % interval':<20} {'n':>6}"
        )
        lines += [
            f"  {row.condition:<{width}} {row.strength:>8g} {_interval(row.metrics[name])}"
            for row in rows
            if name in row.metrics
        ]
    leak = metrics.leak
    if leak is not None:
        lines.append(
            f"leak check: of {leak.evaluated} texts, {leak.vector_text} were seen by the vectors "
            f"and {leak.map_text} by the map" + (f" ({leak.in_part} of them in part)" if leak.in_part else "")
        )
    return [*lines, *(metrics.notes or [])]


def _interval(score: "Score") -> str:
    known = score.low is not None and score.high is not None
    interval = f"[{score.low:.3f}, {score.high:.3f}]" if known else "no interval"
    return f"{score.value:9.3f}  {interval:<20} {score.n or 0:>6}"


def generate(
    model: ModelName,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...")],
    vector: Annotated[str | None, typer.Option(help="Vector file in this model's space.")] = None,
    block: Annotated[
        int | None, typer.Option(help="Block to steer. Default: the one the vector carries.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Coefficient of the vector.")] = 1.0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is the user's turn in the model's chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 40,
    dtype: Dtype = None,
    compute_dtype: ComputeDtype = None,
    quantization: Quantization = None,
    trust_remote_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with the unsteered and, given a vector, the steered model (greedy)."""
    from contrans_dist.engine.scoring import BASE, Intervention
    from contrans_dist.engine.scoring import generate as continue_prompts
    from contrans_dist.evaluation.derived import row_of
    from contrans_dist.models import encode_many
    from contrans_dist.models.placed import load_placed
    from contrans_dist.vectors.concept_vector import ConceptVector

    if not math.isfinite(strength):
        raise UserError(f"--strength {strength}: expected a finite number")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: expected at least 1")
    interventions = [BASE]
    if vector is not None:
        at, row = row_of(ConceptVector.load(vector), block)
        interventions.append(Intervention("steered", {at: row}, strength))
    lm = load_placed(model_settings(model, dtype, compute_dtype, quantization, trust_remote_code))
    ids = encode_many(lm, prompts, chat)
    texts = continue_prompts(lm, ids, interventions, max_new_tokens=max_new_tokens)
    names = [intervention.name for intervention in interventions]
    rows = [
        {"prompt": prompt, **{name: texts[i][j] for i, name in enumerate(names)}}
        for j, prompt in enumerate(prompts)
    ]
    lines = [f"{name}: {'' if chat else row['prompt']}{row[name]}" for row in rows for name in names]
    emit(as_json, {"model": model, "texts": rows}, "\n".join(lines))
