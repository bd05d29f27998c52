"""Where a model's weights go: on one device, over several GPUs, or block by block from the checkpoint; and
where those go of the models that are loaded beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from contrans_dist.config import BATCH_TOKENS, ModelSettings, PlacementChoice
from contrans_dist.console import size_words
from contrans_dist.errors import UserError
from contrans_dist.models.blocks import find_blocks
from contrans_dist.models.device_map import SPARE, Device, spread_blocks
from contrans_dist.models.devices import CONTEXT, free_memory
from contrans_dist.models.language_model import CPU_TOKENS
from contrans_dist.models.loading import Described, describe
from contrans_dist.models.needs import Needs, needs


@dataclass(frozen=True)
class Placement:
    """How a model is loaded, and why so."""

    kind: Literal["resident", "device-map", "stream", "pipeline"]
    reason: str
    device_map: dict[str, Device] | None = None
    """For `device-map`: module name to device; `disk` is one more."""
    beside: tuple[Device, ...] = ()
    """Where each model lies that is loaded beside it."""
    narrow: bool = False
    """Whether blocks are held in the precision of the weights, and widened as they run (see `load_model`)."""
    stages: tuple[tuple[int, int], ...] = ()
    """For `pipeline`: the first and last block of each stage."""
    memory: int = 0
    """Bytes of the node's own memory that it takes, as far as that is known."""
    free: int = 0
    """Bytes that the devices have free where this was found out."""


def choose_placement(
    model: ModelSettings,
    *,
    highest_block: int | None = None,
    head: bool = True,
    placement: PlacementChoice = "auto",
    memories: Mapping[Any, int] | None = None,
    share: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
    beside: Sequence[ModelSettings] = (),
) -> Placement:
    """Where a model fits, from the configurations alone.

    Args:
        model: The model, and how it is loaded.
        highest_block: Blocks above it are not loaded.
        head: Whether the language-model head is.
        placement: What was asked for.
        memories: Bytes free by GPU number and on the `cpu`; None looks at this machine.
        share: What this process may take of them, as others are there that will take as much.
        batch_tokens: Tokens of a batch, padding included.
        beside: Models that the process loads as well, whole and each on one device.

    Raises:
        UserError: For a quantised model that would have to be streamed, and for a device map that nothing can
            hold.
    """
    if placement in ("stream", "pipeline") and model.quantization is not None:
        raise UserError(f"--placement {placement}: it reads plain weights; leave out --quantization")
    if placement == "stream":
        return Placement("stream", "streamed from the checkpoint, as asked")
    all_free = free_memory() if memories is None else memories
    # Each of those that share a GPU has a context there; this one's is taken already.
    contexts = (1 - share) * CONTEXT
    free = {
        device: max(0, int(size * share - (contexts if device != "cpu" else 0)))
        for device, size in all_free.items()
    }
    gpus = {device: size for device, size in free.items() if device != "cpu"}
    over = gpus or {"cpu": free["cpu"]}
    tokens = batch_tokens if gpus else min(batch_tokens, CPU_TOKENS)
    described = _described(model, head=head, highest_block=highest_block)
    loaded = [(described, model), *((_described(other), other) for other in beside)]
    needed = [needs(*one, tokens, on_gpu=bool(gpus)) for one in loaded]
    if placement == "pipeline":
        return _line(described, needed[0], next(iter(over.items())))
    load = _in_words(needed)
    too_large = f"{load} are more than {_free(over)}"
    if placement == "auto" and (whole := _whole(needed, over, load)):
        return whole
    if placement == "auto" and not gpus:
        held = [needs(*one, tokens, narrow=True) for one in loaded]
        whole = _whole(held, over, load) if held[0].weights < needed[0].weights else None
        if whole:
            reason = f"{too_large}: {described.dtype(model.dtype)} weights take "
            reason += f"{size_words(held[0].weights)}, and each block is widened as it runs"
            return replace(whole, reason=reason, narrow=True)
    if spread := _spread(described, model, needed, over, load, placement == "device-map"):
        return spread
    if model.quantization is not None:
        more = "give --gpus-per-actor more GPUs" if gpus else "use a node with more memory"
        raise UserError(
            f"--quantization {model.quantization}: {too_large}, and only plain weights stream; {more}"
        )
    reason = f"{too_large}: the blocks are streamed from the checkpoint, one at a time"
    return Placement("stream", reason, free=sum(over.values()))


def _in_words(needed: Sequence[Needs]) -> str:
    """What a model and those beside it need."""
    need, *others = needed
    plain = f" ({size_words(need.plain)} of them unquantised)" if 2 * need.plain > need.weights else ""
    load = f"{size_words(need.weights)} of weights{plain} and {size_words(need.activations)} of activations"
    total = size_words(sum(other.total for other in others))
    return f"{load}, and {total} for {len(others)} models beside," if others else load


def _whole(needed: Sequence[Needs], over: Mapping[Device, int], load: str) -> Placement | None:
    """Each model on one device, the first on the first, where they fit; `load`: what they need, in words."""
    seated = _seated(needed[1:], over, needed[0].total)
    if seated is None:
        return None
    first = next(iter(over))
    idle = len(set(over) - {first, *seated[0]})
    rest = f"; the actor's {idle} other GPUs stay idle" if idle else ""
    reason = f"{load} fit into {_free({first: over[first]})}{_also(seated[0], over)}{rest}"
    host = sum(need.total for need in needed) if first == "cpu" else 0
    return Placement("resident", reason, beside=seated[0], memory=host, free=sum(over.values()))


def _spread(
    described: Described,
    model: ModelSettings,
    needed: Sequence[Needs],
    over: Mapping[Device, int],
    load: str,
    asked: bool,
) -> Placement | None:
    """A model over several devices, those beside it on one each. Raises UserError where that was asked for
    and is not to be had."""
    first, on_gpu, room = next(iter(over)), "cpu" not in over, sum(over.values())
    seated = _seated(needed[1:], over) if asked or (on_gpu and len(over) > 1) else None
    # On a machine without a GPU it is only spread, over memory and disk, where that was asked for.
    device_map = seated and spread_blocks(described, model, needed[0], seated[1], spill=not on_gpu)
    if seated and device_map:
        reason = f"spread over {', '.join(sorted({str(place) for place in device_map.values()}))}, as asked"
        if not asked:
            reason = f"{load} are more than {_free({first: over[first]})}: the blocks are spread over "
            reason += f"{len(over)} GPUs{_also(seated[0], over)}"
        return Placement("device-map", reason, device_map, seated[0], free=room)
    if not asked:
        return None
    on = f"{len(over)} GPUs with {size_words(room)}" if on_gpu else f"{size_words(room)} of memory"
    raise UserError(
        f"--placement device-map: {load} and no block cut in two: that does not fit on {on}; "
        "--placement stream needs the least"
    )


def _line(described: Described, need: Needs, of_stage: tuple[Device, int]) -> Placement:
    """The fewest stages that hold a model's blocks, each on a device of its own with so many bytes free."""
    device, free = of_stage
    n_blocks = len(find_blocks(described.empty())[1])
    # Each has all but the other blocks while it loads, and the first one keeps the embeddings.
    room = int(SPARE * free) - need.activations - need.embedding
    most = room // need.largest_block
    if most < 1:
        raise UserError(
            f"--placement pipeline: one block ({size_words(need.largest_block)}), embeddings and activations "
            f"({size_words(need.embedding + need.activations)}) do not fit into {_free({device: free})}"
        )
    count = -(-n_blocks // most)
    ends = [n_blocks * (i + 1) // count - 1 for i in range(count)]
    stages = tuple((first, last) for first, last in zip([0, *(end + 1 for end in ends)], ends, strict=False))
    largest = max(last - first + 1 for first, last in stages)
    held = need.activations + need.embedding + largest * need.largest_block
    where = "node" if device == "cpu" else "GPU"
    reason = f"{count} stages of at most {largest} blocks, {size_words(held)} each, on a {where} of their own"
    if count == 1:
        reason = f"all {n_blocks} blocks fit on one {where}"
    return Placement("pipeline", reason, stages=stages, memory=0 if device != "cpu" else held, free=free)


def needs_nodes(name: str, line: int, there: int) -> str:
    """What to say where there are fewer places than stages."""
    return (
        f"--placement pipeline: {name} lies on {line} nodes or GPUs, and there is room on {there}; "
        "--placement stream needs one"
    )


def _described(model: ModelSettings, head: bool = True, highest_block: int | None = None) -> Described:
    return describe(
        model.id, head=head, highest_block=highest_block, trust_remote_code=model.trust_remote_code
    )


def _seated(
    beside: Sequence[Needs], free: Mapping[Device, int], first: int = 0
) -> tuple[tuple[Device, ...], dict[Device, int]] | None:
    """The device of each of these models, and what is then left of each device's memory; None where one does
    not fit. `first`: bytes that the model takes that they are beside, of the first device.

    The largest goes first, each to where most is left; where that is the same, to the last device: the first
    one also has the inputs of every block.
    """
    left = {device: int(SPARE * size) for device, size in free.items()}
    left[next(iter(left))] -= first
    seats: dict[int, Device] = {}
    for i in sorted(range(len(beside)), key=lambda i: -beside[i].total):
        seats[i] = max(reversed(left), key=left.__getitem__)
        left[seats[i]] -= beside[i].total
    if min(left.values()) < 0:
        return None
    return tuple(seats[i] for i in range(len(beside))), {d: int(size / SPARE) for d, size in left.items()}


def _free(over: Mapping[Device, int]) -> str:
    """What devices have free, in words."""
    if len(over) > 1:
        return f"{len(over)} GPUs have free ({size_words(sum(over.values()))})"
    device, size = next(iter(over.items()))
    return f"the {size_words(size)} free of {_names([device])}"


def _also(seats: Sequence[Device], over: Mapping[Device, int]) -> str:
    """Where the models beside lie, where there is a choice, in words."""
    return f", the models beside on {_names(seats)}" if seats and len(over) > 1 else ""


def _names(devices: Sequence[Device]) -> str:
    numbers = sorted({device for device in devices if isinstance(device, int)})
    return " and ".join(f"GPU {number}" for number in numbers) or "memory"
