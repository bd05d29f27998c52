"""Weights that are held in a narrower precision than is computed in.

Where a model does not fit into memory in the precision that the processor is good at, its blocks stay in the
checkpoint's and each is widened while it runs, into memory that all of them share: half the memory, for a
fortieth of the time of a batch of 512 tokens, as measured.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from contrans_dist.models.blocks import find_blocks
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.model_files import ModelFiles
from contrans_dist.models.weight_files import stored_dtypes


def narrowed(whole: type[PreTrainedModel], weights: torch.dtype) -> type[PreTrainedModel]:
    """The same class, but with the parameters of its blocks of the type `weights`, in which they are then
    loaded, and all else in that of the model."""

    def init(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        for parameter in find_blocks(self)[1].parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(weights)

    return type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__})


def widen_as_run(blocks: nn.ModuleList, compute: torch.dtype) -> None:
    """Have the parameters of each block that are of another type be of the type `compute` while it runs.

    It is the forward of each block that is replaced, so blocks that are passed over are not widened. For
    forward passes only, one at a time: a block's wide weights are gone when the next one runs.
    """
    narrow = [
        [p for p in block.parameters() if p.is_floating_point() and p.dtype != compute] for block in blocks
    ]
    shared = torch.empty(max(sum(p.numel() for p in of_block) for of_block in narrow), dtype=compute)
    for block, parameters in zip(blocks, narrow, strict=True):
        parts = shared.split(
            [p.numel() for p in parameters] + [shared.numel() - sum(p.numel() for p in parameters)]
        )
        wide = [part.view(p.shape) for part, p in zip(parts, parameters, strict=False)]
        block.forward = _widening(block.forward, parameters, wide)


def _widening(
    forward: Callable[..., Any], parameters: list[nn.Parameter], wide: list[Tensor]
) -> Callable[..., Any]:
    """A block's forward with wide parameters."""
    held = [parameter.data for parameter in parameters]

    def run(*args: Any, **named: Any) -> Any:
        with torch.no_grad():
            for parameter, narrow, room in zip(parameters, held, wide, strict=True):
                parameter.data = room.copy_(narrow)
        try:
            return forward(*args, **named)
        finally:
            for parameter, narrow in zip(parameters, held, strict=True):
                parameter.data = narrow

    return run


def round_to(module: nn.Module, weights: torch.dtype, files: ModelFiles, config: PretrainedConfig) -> None:
    """Round what was loaded of a checkpoint in a wider precision to values of the precision `weights`; does
    nothing where the checkpoint has no others."""
    with hub_errors(files.name):
        if stored_dtypes(files, config) <= {str(weights).removeprefix("torch.")}:
            return
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.dtype.itemsize > weights.itemsize:
                parameter.copy_(parameter.to(weights))
