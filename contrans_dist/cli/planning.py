"""The command that says what a recipe will take."""

import tempfile
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contrans_dist.cli.options import AsJson, emit
from contrans_dist.console import shown, size_words, time_words
from contrans_dist.errors import UserError

_TERA, _GIGA = 1e12, 1e9
_MOST = 1e9
"""Of GB, cores or TFLOP/s: more is a slip of the pen."""
_WIDTH = 110
"""Columns of a table at least: a line that the terminal breaks is read more easily than names cut to bits."""


def plan(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, or the name of a bundled recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: key.subkey=value.")] = None,
    nodes: Annotated[
        int, typer.Option(min=1, max=100_000, help="Nodes of the cluster, all of one kind.")
    ] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Default: as this machine has.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of each GPU.")] = None,
    cpus_per_node: Annotated[float | None, typer.Option(help="Default: as this machine has.")] = None,
    memory_per_node: Annotated[float | None, typer.Option(help="GB of memory of a node.")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="What an actor reaches in the model's precision, for the hours.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="The recipe's small variant, on bundled models.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Run samples on this machine for about a minute instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a recipe will take: memory, GPUs, replicas, disk and hours, and what limits it.

    Nothing is loaded but configurations and tokenizers. Each stage has its texts, their tokens, and the
    tokens in forward passes: what texts share counts once, and every condition, strength and model that runs
    them again."""
    from contrans_dist.pipeline.plan import (
        Nodes,
        actor_memory,
        as_content,
        from_rate,
        from_samples,
        plan_runs,
    )
    from contrans_dist.pipeline.runs import open_recipe

    if calibrate and tflops is not None:
        raise UserError("--tflops and --calibrate: expected one of the two")
    amounts = {
        "--gpu-memory": gpu_memory, "--cpus-per-node": cpus_per_node, "--memory-per-node": memory_per_node,
        "--tflops": tflops,
    }  # fmt: skip
    for flag, amount in amounts.items():
        if amount is not None and not 0 < amount < _MOST:
            raise UserError(f"{flag} {amount:g}: expected a number above 0 and below {_MOST:g}")
    settings = open_recipe(recipe, set_, small)
    given: dict[str, Any] = {
        "count": nodes,
        "cpus": cpus_per_node,
        "memory": None if memory_per_node is None else round(memory_per_node * _GIGA),
        "gpus": gpus_per_node,
        "gpu_memory": None if gpu_memory is None else round(gpu_memory * _GIGA),
    }
    cluster = replace(Nodes.here(), **{name: value for name, value in given.items() if value is not None})
    if cluster.gpus and not cluster.gpu_memory:
        raise UserError("--gpus-per-node: --gpu-memory is missing")
    with tempfile.TemporaryDirectory() as folder:
        stages = plan_runs(settings, Path(folder), cluster, actor_memory())
    rate = "no rate given: --tflops, or --calibrate, for the hours"
    if calibrate:
        from_samples(stages)
        rate = "measured on samples here"
    elif tflops is not None:
        from_rate(stages, tflops * _TERA)
        rate = f"at {tflops:g} TFLOP/s an actor, and 1 GB/s for checkpoints"
    content = as_content(stages, cluster, rate)
    if as_json:
        emit(True, content, "")
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    table = Table("for", "placement", "weights", "activations", "memory", "GPUs", "actors", box=None)
    table.add_column("model", overflow="fold")
    for actors in content["actors"]:
        sizes = [size_words(actors[name]) for name in ("weights", "activations", "memory")]
        counts = [f"{actors['gpus']:g}", str(actors["count"])]
        table.add_row(*map(_cell, [actors["use"], actors["placement"], *sizes, *counts, actors["model"]]))
    console.print(table)
    console.print()
    console.print(_stages(content))
    console.print()
    console.print(f"time: {content['rate']}; fitting maps, pictures of states and the report come on top")
    for line in content["limits"]:
        console.print(_cell(f"limit: {line}"))


def _cell(text: str) -> Text:
    """Names as they are: rich would take brackets in them for its markup."""
    return Text(shown(text))


def _stages(content: dict[str, Any]) -> Table:
    """A line for each stage, run by run."""
    table = Table("stage", box=None)
    for name in ("texts", "tokens", "in passes", "Parquet", "time"):
        table.add_column(name, justify="right")
    timed = content["hours"] > 0
    for run, stages in groupby(content["stages"], lambda stage: stage["run"]):
        of_run = list(stages)
        if run:
            seconds = sum(stage["seconds"] for stage in of_run)
            table.add_row(_cell(run), "", "", "", "", time_words(seconds) if timed else "", style="bold")
        for stage in of_run:
            table.add_row(
                _cell(f"  {stage['name']}" if run else stage["name"]),
                *(f"{stage[name]:,}" for name in ("texts", "tokens", "tokens_in_passes")),
                size_words(stage["disk"]) if stage["disk"] else "-",
                time_words(stage["seconds"]) if timed else "-",
            )
    total = time_words(content["hours"] * 3600) if timed else "-"
    passed = f"{sum(stage['tokens_in_passes'] for stage in content['stages']):,}"
    table.add_row("together", "", "", passed, size_words(content["disk"]), total)
    return table
