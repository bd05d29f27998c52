"""Where a model's weights go: on one device, over several GPUs, or block by block from the checkpoint."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import CustomDtype, get_balanced_memory
from transformers import PretrainedConfig

from contrans_dist.errors import UserError
from contrans_dist.models.blocks import find_blocks, text_config
from contrans_dist.models.facts import own_dtype
from contrans_dist.models.language_model import CPU_TOKENS
from contrans_dist.models.loading import DTYPES, Described, describe

Asked = Literal["auto", "device-map", "stream"]

_SPARE = 0.95
"""Of a device's free memory: the rest is the allocator's waste."""
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""A weight of a block: nf4 has a float32 scale for every 64."""
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


@dataclass(frozen=True)
class Placement:
    """How a model is loaded, and why so."""

    kind: Literal["resident", "device-map", "stream"]
    reason: str
    device_map: dict[str, int | str] | None = None
    """For `device-map`: module name to GPU number, `cpu` or `disk`."""
    asked: bool = False
    """Whether the user wanted just this."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a model takes."""

    weights: int
    activations: int
    """Of one batch, on the device that runs it."""
    largest_block: int
    embedding: int = 0
    """Of the weights, the input embeddings."""

    @property
    def total(self) -> int:
        return self.weights + self.activations


def needs(described: Described, dtype: str, quantization: str | None, batch_tokens: int, head: bool) -> Needs:
    """What the model of a configuration needs, from the configuration alone."""
    model = described.empty()
    itemsize = DTYPES[dtype].itemsize
    _, blocks = find_blocks(model)
    inner = [sum(p.numel() for p in block.parameters()) for block in blocks]
    matrices = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
    weights = itemsize * sum(p.numel() for p in model.parameters())
    if quantization is not None:
        weights -= round(matrices * (itemsize - _QUANTISED_BYTES[quantization]))
    return Needs(
        weights,
        activation_bytes(text_config(described.config), batch_tokens, itemsize, head),
        itemsize * max(inner),
        itemsize * model.get_input_embeddings().weight.numel(),  # type: ignore[operator, union-attr]
    )


def activation_bytes(config: PretrainedConfig, tokens: int, itemsize: int, head: bool) -> int:
    """Peak of one block's activations for so many tokens, and of the logits of an eighth of them.

    Sixteen widths and five feed-forward widths a token: what a pass was measured to take, with what the
    allocator keeps.
    """
    d = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * d
    inner = max(inner) if isinstance(inner, list) else inner
    active = getattr(config, "num_experts_per_tok", None) or 1
    wide = getattr(config, "moe_intermediate_size", None) or inner
    count = tokens * itemsize * (16 * d + 5 * max(inner, active * wide))
    return count + (tokens // 8 * config.vocab_size * 4 if head else 0)


def host_memory() -> int:
    """Bytes of memory that a process may still take here: what is free, and left of the group's limit."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = pages
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit in map(Path, _LIMITS):
        text = limit.read_text().strip() if limit.exists() else "max"
        if text.isdigit():
            free = min(free, int(text) - _held(limit))
    return max(free, 0)


def _held(limit: Path) -> int:
    """Bytes that the group of this limit holds and would not give back, as it does file cache."""
    used = limit.with_name(_USED[limit.name])
    held = int(used.read_text()) if used.exists() else 0
    stat = limit.with_name("memory.stat")
    lines = [line.split() for line in stat.read_text().splitlines()] if stat.exists() else []
    counts = {name: int(count) for name, count in lines}
    return held - counts.get("total_inactive_file", counts.get("inactive_file", 0))


def free_memory() -> dict[int | str, int]:
    """Bytes free on each GPU that this process sees, by its number, and on the `cpu`."""
    gpus = range(torch.cuda.device_count())
    free: dict[int | str, int] = {i: torch.cuda.mem_get_info(i)[0] for i in gpus}
    return free | {"cpu": host_memory()}


def choose_placement(
    name: str,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    highest_block: int | None = None,
    head: bool = True,
    asked: Asked = "auto",
    memories: Mapping[Any, int] | None = None,
    batch_tokens: int = 4096,
    trust_remote_code: bool = False,
    share: float = 1.0,
) -> Placement:
    """Where the model that `load_model` would load fits, on the devices of `memories` (bytes free by GPU
    number and `cpu`; None looks at this machine). `share`: of each, what this process may take, as others
    are there that will take as much.

    From the configuration alone. Raises UserError for a quantised model that would have to be streamed, and
    for a device map that nothing can hold.
    """
    if asked == "stream":
        if quantization is not None:
            raise UserError("--placement stream: it reads plain weights; leave out --quantization")
        return Placement("stream", "streamed from the checkpoint, as asked", asked=True)
    described = describe(name, head=head, highest_block=highest_block, trust_remote_code=trust_remote_code)
    kind = dtype or own_dtype(described.config, described.source)
    all_free = free_memory() if memories is None else memories
    free = {device: int(size * share) for device, size in all_free.items()}
    gpus = {device: size for device, size in free.items() if device != "cpu"}
    need = needs(described, kind, quantization, batch_tokens if gpus else min(batch_tokens, CPU_TOKENS), head)
    if asked == "device-map":
        return _mapped(described, need, free, kind, quantization)
    device, room = next(iter(gpus.items())) if gpus else ("cpu", free["cpu"])
    where = f"GPU {device}" if gpus else "memory"
    sizes = f"{_gb(need.weights)} of weights and {_gb(need.activations)} of activations"
    if need.total <= _SPARE * room:
        idle = f"; the actor's {len(gpus) - 1} other GPUs stay idle" if len(gpus) > 1 else ""
        return Placement("resident", f"{sizes} fit into the {_gb(room)} free of {where}{idle}")
    too_large = f"{sizes} are more than the {_gb(room)} free of {where}"
    if len(gpus) > 1:
        found = _device_map(described, need, gpus, kind, quantization)
        if found is not None:
            return Placement("device-map", f"{too_large}: the blocks are spread over {len(gpus)} GPUs", found)
        too_large = f"{sizes} are more than {len(gpus)} GPUs have free ({_gb(sum(gpus.values()))})"
    if quantization is not None:
        more = "give --gpus-per-actor more GPUs" if gpus else "use a node with more memory"
        raise UserError(f"--quantization {quantization}: {too_large}, and only plain weights stream; {more}")
    return Placement("stream", f"{too_large}: the blocks are streamed from the checkpoint, one at a time")


def gpu_counts(asked: float | None, of_a_node: float) -> list[float]:
    """The numbers of GPUs of an actor that come into question: the one asked for, or those a node has."""
    if asked is not None:
        return [asked]
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
        if placement.kind != "stream" or placement.asked:
            return gpus, placement
        streamed = streamed or (gpus, placement)
    assert streamed is not None
    if head:
        raise UserError(
            f"{name}: {streamed[1].reason.partition(':')[0]}; steering needs the whole model: give "
            "--gpus-per-actor more GPUs, or --quantization"
        )
    return streamed


def _mapped(
    described: Described, need: Needs, free: dict[int | str, int], dtype: str, quantization: str | None
) -> Placement:
    """As asked: over all GPUs, or, on a machine without, over memory and disk."""
    gpus = {device: size for device, size in free.items() if device != "cpu"}
    over = gpus or free
    found = _device_map(described, need, over, dtype, quantization, spill=not gpus)
    if found is None:
        room = f"{len(gpus)} GPUs with {_gb(sum(gpus.values()))}" if gpus else f"{_gb(free['cpu'])} of memory"
        raise UserError(
            f"--placement device-map: {_gb(need.weights)} of weights, {_gb(need.activations)} of activations "
            f"and no block cut in two: that does not fit on {room}; --placement stream needs the least"
        )
    devices = sorted({str(device) for device in found.values()})
    return Placement("device-map", f"spread over {', '.join(devices)}, as asked", found, asked=True)


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
    if not spill:
        room = get_balanced_memory(model, room, **options)
        room["cpu"] = 0
    found = dict(infer_auto_device_map(model, max_memory=room, **options))
    # What has no weights, as rotary tables, comes after the blocks and so lands on the last device; its
    # inputs would go there and its outputs back before the first block could begin.
    first = next(iter(found.values()))
    for name, module in model.named_modules():
        if name in found and not any(True for _ in module.parameters()):
            found[name] = first
    if not spill and {"cpu", "disk"} & set(map(str, found.values())):
        return None
    return found


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
