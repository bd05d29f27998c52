"""A model's blocks over several devices, in balance."""

import logging
from collections.abc import Mapping

from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from transformers import PreTrainedModel

from contrans_dist.config import ModelSettings
from contrans_dist.models.blocks import find_blocks
from contrans_dist.models.loading import Described
from contrans_dist.models.needs import Needs, as_held
from contrans_dist.models.precision import DTYPES, computed_in

Device = int | str
"""A GPU's number, or `cpu`."""

SPARE = 0.95
"""Of a device's free memory: the rest is the allocator's waste."""


def spread_blocks(
    described: Described,
    model: ModelSettings,
    need: Needs,
    memories: Mapping[Device, int],
    spill: bool = False,
) -> dict[str, Device] | None:
    """Accelerate's map over these devices, in balance, with room for activations on each and every block
    whole; None where it would not hold. `spill`: there is no GPU, and what does not fit goes to disk."""
    dtype = DTYPES[computed_in(described, model, not spill)]
    empty = as_held(described, model.quantization, dtype)
    whole = {type(block).__name__ for block in find_blocks(empty)[1]}
    room = {device: max(0, round(SPARE * size) - need.activations) for device, size in memories.items()}
    options = {"no_split_module_classes": sorted(whole)}
    # It warns of GPUs that are planned for and are not here.
    logging.getLogger("accelerate.utils.modeling").setLevel(logging.ERROR)
    # In balance first; that leaves room unused where devices have unequal room.
    limits = [room] if spill else [get_balanced_memory(empty, dict(room), **options), room]
    for limit in limits:
        device_map = dict(
            infer_auto_device_map(empty, max_memory=limit | ({} if spill else {"cpu": 0}), **options)
        )
        if spill or not {"cpu", "disk"} & set(map(str, device_map.values())):
            return _with_weightless(empty, device_map)
    return None


def _with_weightless(model: PreTrainedModel, places: dict[str, Device]) -> dict[str, Device]:
    """The map with what has no weights, as rotary tables, on the first device: it comes after the blocks and
    so landed on the last, where its inputs would go, and its outputs come back before the first block could
    begin."""
    first = next(iter(places.values()))
    weightless = {
        name for name, module in model.named_modules() if not any(True for _ in module.parameters())
    }
    return {name: first if name in weightless else device for name, device in places.items()}
