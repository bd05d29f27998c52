"""Options that several commands share, and how results are printed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from contrans_dist.console import in_a_job, json_line, shown, without_credentials
from contrans_dist.errors import UserError

if TYPE_CHECKING:
    from contrans_dist.config import ClusterSettings, ModelSettings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster: `local`, `auto` or `ray://host:port`. Default: RAY_ADDRESS, else here."),
]
Actors = Annotated[
    int | None, typer.Option(help="Model replicas. Default: as many as the nodes have room for.")
]
Gpus = Annotated[
    float | None,
    typer.Option(help="GPUs of one node for each replica. Default: the fewest that hold the model."),
]
Cpus = Annotated[float | None, typer.Option(help="Cores for each replica; also its threads.")]
Labels = Annotated[
    str | None,
    typer.Option(
        "--label-selector",
        help="Nodes for replicas, by their Ray labels: ray.io/accelerator-type=H100, market-type=!spot.",
    ),
]
PlacementName = Annotated[
    str,
    typer.Option(
        "--placement",
        help="auto, device-map (over a replica's GPUs), stream (block by block from the checkpoint), or "
        "pipeline (a run of blocks on each of several nodes).",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision of the weights: float32, bfloat16 or float16. Default: the checkpoint's own."
    ),
]
ComputeDtype = Annotated[
    str | None,
    typer.Option(
        help="Precision that is computed in. Default: that of the weights; on a processor that or float32, "
        "whichever is measured to be the faster."
    ),
]
Quantization = Annotated[str | None, typer.Option(help="int8 or nf4, through bitsandbytes.")]
TrustCode = Annotated[bool, typer.Option(help="Run code that comes with the checkpoint.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="Hub id (with @revision if wanted), local folder, llama.cpp file (.gguf), or one that is "
        "bundled: demo:source.",
    ),
]

Centring = Annotated[
    str | None, typer.Option(help="true, false, or token: about the mean of the rows of one token.")
]
Regularising = Annotated[str | None, typer.Option(help="ridge (chosen on held-out rows), or none.")]
SourceBlocks = Annotated[
    int | None,
    typer.Option(help="Source blocks the map reads: its own and those below. Default: 2 where harvested."),
]


def centring(text: str | None) -> Any:
    """What `--centre` says: True, False, or the text as it is."""
    return {"true": True, "false": False}.get((text or "").lower(), text)


def lasting(out: str | None) -> str | None:
    """Callback of `--out`: the place as given.

    Raises UserError for a relative path in a submitted Ray job: what is written there may go with the job.
    """
    if in_a_job() and (out is None or not ("://" in out or Path(out).expanduser().is_absolute())):
        given = "" if out is None else f", found {out}"
        raise UserError(
            "--out: a submitted job runs in a working directory of its own; "
            f"expected an absolute path or a URI{given}"
        )
    if out is not None and out.startswith(("hf://", "https://", "http://")):
        raise UserError(
            f"--out {without_credentials(out)}: can only be read; expected a path or an s3:// or gs:// URI"
        )
    return out


def show(text: str) -> None:
    """A result, on standard output, as it is, but for secrets and what would steer the terminal."""
    Console(soft_wrap=True, highlight=False).print(shown(text, keep="\n\t"), markup=False)


def emit(as_json: bool, content: dict[str, Any], text: str) -> None:
    """The result of a command: one JSON object, or text."""
    if as_json:
        sys.stdout.write(json_line(content) + "\n")
    else:
        show(text)


def model_settings(
    name: str, dtype: str | None, compute_dtype: str | None, quantization: str | None, trust: bool
) -> "ModelSettings":
    """The settings of `--model`, `--dtype`, `--compute-dtype`, `--quantization` and `--trust-remote-code`."""
    from contrans_dist.config import ModelSettings
    from contrans_dist.config.recipe import validated

    content = {
        "id": name,
        "dtype": dtype,
        "compute_dtype": compute_dtype,
        "quantization": quantization,
        "trust_remote_code": trust,
    }
    return validated(ModelSettings, content, "--model, --dtype, --compute-dtype, --quantization")


def cluster_settings(
    address: str | None,
    actors: int | None,
    gpus: float | None,
    cpus: float | None,
    labels: str | None = None,
    placement: str = "auto",
) -> "ClusterSettings":
    """The settings of `--address`, `--actors` and what an actor gets."""
    from contrans_dist.config import ClusterSettings
    from contrans_dist.config.recipe import validated

    content = {
        "address": address,
        "actors": actors,
        "gpus_per_actor": gpus,
        "cpus_per_actor": cpus,
        "label_selector": labels,
        "placement": placement,
    }
    flags = "--address, --actors, --gpus-per-actor, --cpus-per-actor, --label-selector, --placement"
    return validated(ClusterSettings, content, flags)
