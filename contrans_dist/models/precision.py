"""The precision that a model is computed in: by what this processor is good at, measured."""

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from contrans_dist.config import ModelSettings
from contrans_dist.console import note
from contrans_dist.errors import UserError
from contrans_dist.models.weight_files import is_quantised

if TYPE_CHECKING:
    from contrans_dist.models.loading import Described

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_ROWS, _INNER, _OUTER = 64, 512, 1024
"""Of the product that is measured: .07 billion operations."""
_TURNS = 5


def name_of(dtype: str | torch.dtype | None, option: str = "--dtype") -> str | None:
    """What a precision is called, None for None. Raises UserError for one that no model is run in."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in DTYPES:
        raise UserError(f"{option} {name}: expected one of {', '.join(DTYPES)}")
    return None if dtype is None else name


def on_gpu(device_map: Any) -> bool:
    """Whether a model runs on a GPU that `from_pretrained` is given this device map for."""
    if device_map is None or device_map == "auto":
        return device_map is not None and torch.cuda.is_available()
    return not {str(place) for place in device_map.values()} <= {"cpu", "disk"}


def computed_in(described: "Described", model: ModelSettings, on_gpu: bool, say_so: bool = False) -> str:
    """The precision that a model is computed in: a name out of `DTYPES`.

    The one that is set; else, where its weights are quantised, theirs; else theirs or float32, as `choice`
    has it.

    Args:
        described: The model.
        model: Its settings.
        on_gpu: Whether it runs on a GPU.
        say_so: Whether a line says what was measured.

    Raises:
        UserError: For a checkpoint in a precision that no model is run in, unless the settings say another;
            for quantised weights that are to be computed with in another.
    """
    weights = described.dtype(model.dtype)
    quantised = model.quantization is not None or is_quantised(described.full)
    if quantised and model.compute_dtype not in (None, weights):
        raise UserError(
            f"--compute-dtype {model.compute_dtype}: {model.id} is quantised; it is computed in its --dtype, "
            f"{weights}"
        )
    if model.compute_dtype is not None:
        return model.compute_dtype
    if quantised or weights == "float32":
        return weights
    chosen, why = choice(weights, on_gpu)
    if say_so and why:
        say(model.id, why)
    return chosen


def choice(weights: str, on_gpu: bool = False) -> tuple[str, str]:
    """The precision to compute with such weights in here, theirs or float32, and why so, in words, if that
    wants saying.

    On a processor the faster one, which is measured once a process. On a GPU theirs; but float32 for bfloat16
    on one that has no arithmetic for it (a T4, a V100), and only imitates it. Float16, which such GPUs are
    fastest in, does not reach to the numbers of a model in bfloat16.
    """
    if on_gpu:
        if weights != "bfloat16" or not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False):
            return weights, ""
        return "float32", f"weights in {weights}, computed in float32: this GPU does not compute in {weights}"
    own, wide = linear_rates(weights)
    chosen, other, times = (
        (weights, "float32", own / wide) if own >= wide else ("float32", weights, wide / own)
    )
    return chosen, (
        f"weights in {weights}, computed in {chosen}: {times:.1f} times as fast as {other} on this processor"
    )


@cache
def say(name: str, why: str) -> None:
    """Note it, once for each model."""
    note(f"{name}: {why}")


@cache
def linear_rates(narrow: str) -> tuple[float, float]:
    """Operations a second of a small `Linear` on this processor, in a precision and in float32.

    The two take turns, and the best turn of each counts: what else runs on the machine only slows it down.
    """
    sides = [
        [torch.full(shape, 0.5, dtype=dtype, device="cpu") for shape in ((_ROWS, _INNER), (_OUTER, _INNER))]
        for dtype in (DTYPES[narrow], torch.float32)
    ]
    taken: list[list[float]] = [[], []]
    with torch.inference_mode():
        for turn in range(_TURNS + 1):
            for (entering, weight), times in zip(sides, taken, strict=True):
                began = time.perf_counter()
                linear(entering, weight)
                if turn:  # the first one builds its kernel
                    times.append(time.perf_counter() - began)
    own, wide = (2 * _ROWS * _INNER * _OUTER / min(times) for times in taken)
    return own, wide
