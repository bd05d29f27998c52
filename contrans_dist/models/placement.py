"""Where a model's weights go: on one device, over several GPUs, or block by block from the checkpoint; and
where those go of the models that are loaded beside it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import CustomDtype, get_balanced_memory
from transformers import PreTrainedModel

from contrans_dist.config import ModelSettings
from contrans_dist.errors import UserError
from contrans_dist.models.blocks import find_blocks
from contrans_dist.models.devices import free_memory
from contrans_dist.models.language_model import CPU_TOKENS
from contrans_dist.models.loading import DTYPES, Described, describe
from contrans_dist.models.needs import Needs, needs, needs_of

Asked = Literal["auto", "device-map", "stream"]
Device = int | str
"""A GPU's number, or `cpu`."""

_SPARE = 0.95
"""Of a device's free memory: the rest is the allocator's waste."""


@dataclass(frozen=True)
class Placement:
    """How a model is loaded, and why so."""

    kind: Literal["resident", "device-map", "stream"]
    reason: str
    device_map: dict[str, Device] | None = None
    """For `device-map`: module name to device; `disk` is one more."""
    forced: bool = False
    """Whether the user wanted just this."""
    beside: tuple[Device, ...] = ()
    """Where each model lies that is loaded beside it."""


@dataclass(frozen=True)
class _Load:
    """What a process loads: a model, and others beside it, each of which lies on one device."""

    described: Described
    dtype: str
    quantization: str | None
    need: Needs
    beside: list[Needs]

    def __str__(self) -> str:
        need = f"{_gb(self.need.weights)} of weights and {_gb(self.need.activations)} of activations"
        more = _gb(sum(needs.total for needs in self.beside))
        return f"{need}, and {more} for {len(self.beside)} models beside," if self.beside else need


def choose_placement(
    name: str,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    highest_block: int | None = None,
    head: bool = True,
    placement: Asked = "auto",
    memories: Mapping[Any, int] | None = None,
    batch_tokens: int = 4096,
    trust_remote_code: bool = False,
    share: float = 1.0,
    beside: Sequence[ModelSettings] = (),
) -> Placement:
    """Where the model that `load_model` would load fits, on the devices of `memories` (bytes free by GPU
    number and `cpu`; None looks at this machine). `share`: of each, what this process may take, as others
    are there that will take as much. `beside`: models that it loads as well, whole and each on one device.

    From the configurations alone. Raises UserError for a quantised model that would have to be streamed, and
    for a device map that nothing can hold.
    """
    if placement == "stream":
        if quantization is not None:
            raise UserError("--placement stream: it reads plain weights; leave out --quantization")
        return Placement("stream", "streamed from the checkpoint, as asked", forced=True)
    all_free = free_memory() if memories is None else memories
    free = {device: int(size * share) for device, size in all_free.items()}
    gpus = {device: size for device, size in free.items() if device != "cpu"}
    tokens = batch_tokens if gpus else min(batch_tokens, CPU_TOKENS)
    described = describe(name, head=head, highest_block=highest_block, trust_remote_code=trust_remote_code)
    kind = described.dtype(dtype)
    need = needs(described, kind, quantization, tokens, head)
    load = _Load(described, kind, quantization, need, [needs_of(model, tokens) for model in beside])
    over = gpus or {"cpu": free["cpu"]}
    if placement == "device-map":
        return _mapped(load, over)
    fitting = _resident(load, over) or _spread(load, over)
    if fitting is not None:
        return fitting
    too_large = f"{load} are more than {_free(over)}"
    if quantization is not None:
        more = "give --gpus-per-actor more GPUs" if gpus else "use a node with more memory"
        raise UserError(f"--quantization {quantization}: {too_large}, and only plain weights stream; {more}")
    return Placement("stream", f"{too_large}: the blocks are streamed from the checkpoint, one at a time")


def gpu_counts(gpus: float | None, of_a_node: float) -> list[float]:
    """The numbers of GPUs of an actor that come into question: the one asked for, or those a node has."""
    if gpus is not None:
        return [gpus]
    return [float(count) for count in (1, 2, 4, 8, 16) if count <= of_a_node] or [0.0]


def fewest_gpus(
    counts: Sequence[float], choose: Callable[[float], Placement], name: str, head: bool
) -> tuple[float, Placement]:
    """The first of these numbers of GPUs with which the model need not be streamed, and its placement then;
    the first of all where each would stream it.

    Raises UserError where none holds a quantised model, or one that is to be steered (with `head`).
    """
    streamed: tuple[float, Placement] | None = None
    for gpus in counts:
        try:
            placement = choose(gpus)
        except UserError:
            if gpus == counts[-1] and streamed is None:
                raise
            continue
        if placement.kind != "stream" or placement.forced:
            return gpus, placement
        streamed = streamed or (gpus, placement)
    assert streamed is not None
    if head:
        raise UserError(
            f"{name}: {streamed[1].reason.partition(':')[0]}; steering needs the whole model: give "
            "--gpus-per-actor more GPUs, or --quantization"
        )
    return streamed


def _seated(
    beside: Sequence[Needs], free: Mapping[Device, int], first: int = 0
) -> tuple[tuple[Device, ...], dict[Device, int]] | None:
    """The device of each of these models, and what is then left of each device's memory; None where one does
    not fit. `first`: bytes that the model takes that they are beside, of the first device.

    The largest goes first, each to where most is left; where that is the same, to the last device: the first
    one also has the inputs of every block.
    """
    left = {device: int(_SPARE * size) for device, size in free.items()}
    left[next(iter(left))] -= first
    seats: dict[int, Device] = {}
    for i in sorted(range(len(beside)), key=lambda i: -beside[i].total):
        seats[i] = max(reversed(left), key=left.__getitem__)
        left[seats[i]] -= beside[i].total
    if min(left.values()) < 0:
        return None
    return tuple(seats[i] for i in range(len(beside))), {d: int(size / _SPARE) for d, size in left.items()}


def _resident(load: _Load, over: Mapping[Device, int]) -> Placement | None:
    """Each model on one device, the one that the others are beside on the first; None where that does not
    hold."""
    seated = _seated(load.beside, over, load.need.total)
    if seated is None:
        return None
    first, *others = over
    also = f", the models beside on {_names(seated[0])}" if others and load.beside else ""
    idle = len({*others} - {*seated[0]})
    rest = f"; the actor's {idle} other GPUs stay idle" if idle else ""
    return Placement(
        "resident", f"{load} fit into {_free({first: over[first]})}{also}{rest}", beside=seated[0]
    )


def _spread(load: _Load, gpus: Mapping[Device, int]) -> Placement | None:
    """The blocks over several GPUs, in what the models beside leave; None where that does not hold."""
    seats = _seated(load.beside, gpus) if len(gpus) > 1 else None
    devices = seats and _device_map(load.described, load.need, seats[1], load.dtype, load.quantization)
    if not seats or not devices:
        return None
    first = next(iter(gpus))
    also = f", the models beside on {_names(seats[0])}" if load.beside else ""
    why = f"{load} are more than {_free({first: gpus[first]})}"
    why += f": the blocks are spread over {len(gpus)} GPUs{also}"
    return Placement("device-map", why, devices, beside=seats[0])


def _mapped(load: _Load, over: Mapping[Device, int]) -> Placement:
    """As asked: over all GPUs, or, on a machine without, over memory and disk."""
    seats = _seated(load.beside, over)
    spill = "cpu" in over
    device_map = seats and _device_map(
        load.described, load.need, seats[1], load.dtype, load.quantization, spill=spill
    )
    if not seats or not device_map:
        room = (
            f"{_gb(over['cpu'])} of memory" if spill else f"{len(over)} GPUs with {_gb(sum(over.values()))}"
        )
        raise UserError(
            f"--placement device-map: {load} and no block cut in two: that does not fit on {room}; "
            "--placement stream needs the least"
        )
    devices = sorted({str(device) for device in device_map.values()})
    return Placement(
        "device-map", f"spread over {', '.join(devices)}, as asked", device_map, forced=True, beside=seats[0]
    )


def _device_map(
    described: Described,
    need: Needs,
    memories: Mapping[int | str, int],
    dtype: str,
    quantization: str | None,
    spill: bool = False,
) -> dict[str, int | str] | None:
    """Accelerate's map over these devices, in balance, with room for activations on each and every block
    whole; None where it would not hold. `spill`: what does not fit goes to disk."""
    model = described.empty()
    whole = [type(block).__name__ for block in find_blocks(model)[1]]
    room = {device: max(0, round(_SPARE * size) - need.activations) for device, size in memories.items()}
    small: Any = {"int8": torch.int8, "nf4": CustomDtype.INT4}
    kind = DTYPES[dtype] if quantization is None else small[quantization]
    options = {"no_split_module_classes": sorted(set(whole)), "dtype": kind}
    # It warns of GPUs that are planned for and are not here.
    logging.getLogger("accelerate.utils.modeling").setLevel(logging.ERROR)
    # In balance first; that leaves room unused where devices have unequal room.
    limits = [room] if spill else [get_balanced_memory(model, dict(room), **options), room]
    for limit in limits:
        device_map = dict(
            infer_auto_device_map(model, max_memory=limit | ({} if spill else {"cpu": 0}), **options)
        )
        if spill or not {"cpu", "disk"} & set(map(str, device_map.values())):
            return _with_weightless(model, device_map)
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


def _free(over: Mapping[Device, int]) -> str:
    """What devices have free, in words."""
    if len(over) > 1:
        return f"{len(over)} GPUs have free ({_gb(sum(over.values()))})"
    device, size = next(iter(over.items()))
    return f"the {_gb(size)} free of {_names([device])}"


def _names(devices: Sequence[Device]) -> str:
    numbers = sorted({device for device in devices if isinstance(device, int)})
    return " and ".join(f"GPU {number}" for number in numbers) or "memory"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
