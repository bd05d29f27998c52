"""Parts of a model, loaded by transformers itself: all but the decoder blocks, or one block.

A class is cut down to what is wanted and its `from_pretrained` given the checkpoint's tensors, of which it
reads those that the class has a place for. How a checkpoint's tensors become a model's (renamed keys, fused
experts, precision) so stays transformers' own affair.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from contrans_dist.errors import RunError
from contrans_dist.models.blocks import find_blocks
from contrans_dist.models.checkpoint import Checkpoint, Stored
from contrans_dist.models.weight_files import in_short, missing_weights


def load_skeleton(
    whole: type[PreTrainedModel],
    config: PretrainedConfig,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """The text decoder inside its model, on `device`, but its blocks, which are on `meta`. Towers for images
    and heads are left out. Raises RunError for missing weights."""
    lists: list[nn.ModuleList] = []
    bare: list[nn.Module] = []

    def init(self: Any, config: PretrainedConfig, *args: Any, **named: Any) -> None:
        whole.__init__(self, config, *args, **named)
        decoder, blocks = find_blocks(self)
        lists.append(blocks)
        for k, block in enumerate(blocks):
            bare.append(block)
            blocks[k] = nn.Identity()
        if decoder is not self:
            self.__dict__.update(_cut_down(self, _path_to(self, decoder), decoder).__dict__)

    members = {"__init__": init, "__module__": whole.__module__, "can_generate": _never}
    model, missing = _load(type(whole.__name__, (whole,), members), config, checkpoint.tensors, dtype)
    if missing:
        raise RunError(f"weights missing or of another shape: {in_short(missing)}")
    model.eval().requires_grad_(False).to(device)
    for k, block in enumerate(bare):
        lists[0][k] = block
    return model


def load_block(skeleton: PreTrainedModel, k: int, checkpoint: Checkpoint) -> nn.Module:
    """Decoder block k with its weights, on the CPU; the skeleton's own is left as it is.

    May be called in another thread than the one that runs the skeleton. Raises RunError for missing weights.
    """
    # With many experts, looking at every name takes longer than reading a block: first those that hold its
    # number. A checkpoint may count otherwise.
    named = {name: stored for name, stored in checkpoint.tensors.items() if f".{k}." in f".{name}."}
    for tensors in (named, checkpoint.tensors):
        block, missing = _try_block(skeleton, k, tensors)
        if not missing:
            return block.eval().requires_grad_(False)
    raise RunError(f"block {k}: weights missing or of another shape: {in_short(missing)}")


def _try_block(
    skeleton: PreTrainedModel, k: int, tensors: Mapping[str, Stored]
) -> tuple[nn.Module, list[str]]:
    """Block k out of `tensors`, and what is missing of it. Others among them are not read."""
    bare = find_blocks(skeleton)[1]
    # Not its configurations: they are the whole model's.
    block = copy.deepcopy(bare[k], {id(config): config for config in _configs(skeleton.config)})
    blocks = nn.ModuleList([nn.Identity() for _ in bare])
    blocks[k] = block
    twin = _cut_down(skeleton, _path_to(skeleton, bare), blocks)

    def init(self: Any, *_args: Any, **_named: Any) -> None:
        self.__dict__.update(twin.__dict__)

    # Nothing is built, so none of transformers' own contexts: they would set the default dtype of the whole
    # process, under the thread that computes.
    whole = type(skeleton)
    members = {"__init__": init, "__module__": whole.__module__, "can_generate": _never}
    members["get_init_context"] = classmethod(lambda *_args, **_named: [])
    cls = type(whole.__name__, (whole,), members)
    _, missing = _load(cls, skeleton.config, tensors, skeleton.dtype)
    # Classes are freed only when Python looks for reference cycles: the block must not hang on one.
    blocks[k] = nn.Identity()
    return block, missing


def _load(
    cls: Any, config: PretrainedConfig, tensors: Mapping[str, Stored], dtype: torch.dtype
) -> tuple[Any, list[str]]:
    model, info = cls.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told by name
    )
    return model, missing_weights(info)


def _never(*_args: Any) -> bool:
    """No class of ours generates text: transformers need not look for the settings."""
    return False


def _configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    return [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]


def _path_to(model: nn.Module, wanted: nn.Module) -> list[str]:
    return next(name for name, module in model.named_modules() if module is wanted).split(".")


def _cut_down(module: nn.Module, path: list[str], leaf: nn.Module) -> nn.Module:
    """A shallow copy of `module` in which nothing has weights but `leaf`, at `path`."""
    twin = copy.copy(module)
    children: dict[str, nn.Module] = {name: nn.Identity() for name in module._modules}
    below = getattr(module, path[0])
    children[path[0]] = leaf if len(path) == 1 else _cut_down(below, path[1:], leaf)
    twin.__dict__.update(_modules=children, _parameters={}, _buffers={})
    # With nothing of its own, there is nothing to make up at random.
    twin._is_hf_initialized = True  # type: ignore[assignment]
    # What is tied to a head that is not there is not tied.
    twin.__dict__.update(all_tied_weights_keys={}, _tied_weights_keys={})
    return twin
