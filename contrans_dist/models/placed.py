"""Models on the devices that they were given, and the fewest GPUs that hold one."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.errors import NoGpuError, UserError
from contrans_dist.models.devices import free_memory, gpu_count
from contrans_dist.models.language_model import LanguageModel
from contrans_dist.models.loading import load_model
from contrans_dist.models.placement import Placement, choose_placement


def load_placed(
    model: ModelSettings,
    placement: Placement | None = None,
    *,
    highest_block: int | None = None,
    head: bool = True,
) -> LanguageModel:
    """A model loaded where `placement` has it, or, without one, where it fits on this machine.

    Args:
        model: The model, and how it is loaded.
        placement: As `choose_placement` gives it, with the same `highest_block` and `head`.
        highest_block: Blocks above it are not loaded.
        head: Whether the language-model head is.

    Raises:
        UserError: For a model that would have to be streamed, and as `load_model`.
        RunError: As `load_model`.
    """
    if placement is None:
        placement = _place_here(model, highest_block, head)
    if placement.kind == "stream":
        raise UserError(f"--model {model.id}: {placement.reason.partition(':')[0]}; try --quantization")
    return load_model(
        model.id,
        **model.model_dump(exclude={"id"}),
        device=placement.device_map,
        narrow=placement.narrow,
        highest_block=highest_block,
        head=head,
    )


def _place_here(model: ModelSettings, highest_block: int | None, head: bool) -> Placement:
    """Where a model fits on this machine. The first GPU is asked alone: most models fit there, and what the
    others have free is left to others."""
    choose = partial(choose_placement, model, highest_block=highest_block, head=head)
    if gpu_count() > 1:
        with suppress(UserError):  # is told of all of them
            found = choose(memories=free_memory(1))
            if found.kind == "resident":
                return found
    return choose()


def fewest_gpus(
    name: str, cluster: ClusterSettings, of_a_node: float, head: bool, choose: Callable[[float], Placement]
) -> tuple[float, Placement]:
    """How many GPUs an actor gets: the fewest with which its model need not be streamed.

    Args:
        name: The model's, for messages.
        cluster: Where the number and the placement are given, if they are.
        of_a_node: GPUs of the node that has most.
        head: Whether the model is to be steered: then it cannot be streamed.
        choose: The placement on so many GPUs.

    Returns:
        The number of GPUs, and the placement with it; where each number would stream the model, the least.

    Raises:
        UserError: Where none holds a quantised model, or one that is to be steered; NoGpuError where `choose`
            raises it.
    """
    counts = [float(count) for count in (1, 2, 4, 8, 16) if count <= of_a_node] or [0.0]
    if cluster.gpus_per_actor is not None:
        counts = [cluster.gpus_per_actor]
    if cluster.placement in ("stream", "pipeline"):
        return counts[0], choose(counts[0])
    streamed: tuple[float, Placement] | None = None
    for gpus in counts:
        try:
            placement = choose(gpus)
        except NoGpuError:
            raise
        except UserError:
            if gpus == counts[-1] and streamed is None:
                raise
            continue
        if placement.kind != "stream":
            return gpus, placement
        streamed = streamed or (gpus, placement)
    assert streamed is not None
    if head:
        raise UserError(
            f"{name}: {streamed[1].reason.partition(':')[0]}; steering needs the whole model: give "
            "--gpus-per-actor more GPUs, or --quantization"
        )
    return streamed
