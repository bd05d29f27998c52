"""A model that is never whole in memory: its decoder blocks are read from the checkpoint one at a time.

All but the blocks is loaded; the blocks are there without weights. One that has been read takes its place for
a pass, in which the model's own forward runs with the blocks below it passed over and the block fed stored
states. So masks, positions and rotary tables stay the model's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contrans_dist.config import ModelSettings
from contrans_dist.errors import RunError, UserError
from contrans_dist.models.blocks import find_blocks, model_type
from contrans_dist.models.checkpoint import Checkpoint
from contrans_dist.models.crossing import copy_streams, to_device
from contrans_dist.models.devices import usual_device
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.language_model import LanguageModel, check_looks_back, wrap_model
from contrans_dist.models.loading import describe
from contrans_dist.models.partial import load_block, load_skeleton
from contrans_dist.models.passing import Stop, first_of, handing, replaced, run_replaced
from contrans_dist.models.precision import DTYPES, computed_in, name_of
from contrans_dist.models.pretrained import load_tokenizer
from contrans_dist.models.streamable import block_form, refusal
from contrans_dist.models.weight_files import is_quantised, weight_files
from contrans_dist.store.patience import patiently


class StreamedModel:
    """A model of which all but the decoder blocks is loaded; made by `open_streamed`.

    One pass at a time: first `embedded` for every batch, then for each block `load`, and `running` for every
    batch. `load` may be called in another thread meanwhile.
    """

    def __init__(
        self, lm: LanguageModel, whole: type[PreTrainedModel], checkpoint: Checkpoint, device: torch.device
    ) -> None:
        self.lm, self.checkpoint, self.device = lm, checkpoint, device
        self._whole = whole  # the model itself is of a class that was cut down
        self._list = find_blocks(lm.model)[1]
        self._width = int(self._embedding.weight.shape[1])
        self._form = block_form(lm)
        self.blocks_read: list[int] = []

    @property
    def _embedding(self) -> Any:
        return self.lm.decoder.get_input_embeddings()  # type: ignore[operator]

    def load(self, k: int) -> nn.Module:
        """Block k with its weights, on the device. Raises RunError for missing weights or a damaged file."""
        with hub_errors(self.lm.name):
            block = _to_device(load_block(self.lm.model, k, self.checkpoint), self.device)
        self.blocks_read.append(k)
        return block

    def embedded(self, ids: Tensor) -> Tensor:
        """What enters block 0: int64 `[texts, tokens]` to `[texts, tokens, d]` on the device."""
        if self._embedding.weight.device.type == "meta":
            model = self.lm.model
            with hub_errors(self.lm.name):
                again = load_skeleton(self._whole, model.config, self.checkpoint, model.dtype, self.device)
            embedding = find_blocks(again)[0].get_input_embeddings()  # type: ignore[operator]
            self.lm.decoder.set_input_embeddings(embedding)  # type: ignore[operator]
        embedded: list[Tensor] = []

        def first(stream: Tensor) -> None:
            embedded.append(stream)
            raise Stop

        run_replaced(self.lm.decoder, self._list, {0: handing(first)}, input_ids=to_device(ids, self.device))
        return embedded[0]

    def forget_embedding(self) -> None:
        """Free the memory of the input embeddings, which no block needs; `embedded` reads them again."""
        self._embedding.to("meta")

    @contextmanager
    def running(
        self,
        first: int,
        blocks: Sequence[nn.Module],
        seen: Callable[[int, Tensor], None] = lambda _k, _state: None,
    ) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from what enters block `first`, `[texts, tokens, d]`, to what the last of these blocks,
        which follow one another, returns, on the device. `seen(k, state)` is given what block k returns."""
        outputs: list[Tensor] = []
        state = torch.empty(0)
        last = first + len(blocks) - 1
        lower = handing(lambda _stream: self._form(state))

        def fed(k: int, forward: Callable[..., object]) -> Callable[..., object]:
            def run(*args: Any, **named: Any) -> object:
                shared = [
                    argument
                    for argument in (*args, *named.values())
                    if isinstance(argument, dict) and not argument
                ]
                if k == first and args:
                    args = (state, *args[1:])
                elif k == first:
                    named = {**named, "hidden_states": state}
                output = forward(*args, **named)
                if any(shared):
                    why = f"block {k} hands more than the residual stream to later ones"
                    raise refusal(model_type(self.lm.model), why)
                seen(k, first_of(output))
                if k < last:
                    return output
                outputs.append(first_of(output))
                raise Stop

            return run

        def run(entering: Tensor) -> Tensor:
            nonlocal state
            state = to_device(entering, self.device)
            # Only its shape is used: the blocks that would see it are passed over.
            empty = state.new_zeros(1).expand(*state.shape[:2], self._width)
            run_replaced(self.lm.decoder, self._list, {}, inputs_embeds=empty)
            return outputs.pop()

        bare = list(self._list[first : last + 1])
        try:
            for k, block in enumerate(blocks, first):
                self._list[k] = block
            forwards = {k: fed(k, block.forward) for k, block in enumerate(blocks, first)}
            with replaced(self._list, dict.fromkeys(range(first), lower) | forwards):
                yield run
        finally:
            for k, block in enumerate(bare, first):
                self._list[k] = block
            if self.device.type == "cuda":
                # The block's memory is taken by the next one, which another stream fills.
                torch.cuda.synchronize(self.device)

    def check_block(self, run: Callable[[Tensor], Tensor]) -> None:
        """UserError where a block, as `running` gives it, is not what is expected of it: see `wrap_model`."""
        generator = torch.Generator().manual_seed(0)
        state = torch.randn(1, 3, self.lm.d, generator=generator).repeat(2, 1, 1).to(self.lm.dtype)
        state[1, 2] *= -1
        output = run(state)
        if output.shape != state.shape or output.dtype != state.dtype:
            returned = f"{output.dtype} {list(output.shape)} for {state.dtype} {list(state.shape)}"
            raise refusal(model_type(self.lm.model), f"a block returns {returned}")
        check_looks_back(self.lm.model, output)


@patiently
def open_streamed(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    compute_dtype: str | torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> StreamedModel:
    """A model of which nothing is read yet but what is no decoder block.

    Args:
        name: As in `load_model`.
        dtype: As in `load_model`.
        compute_dtype: As in `load_model`; blocks are widened as they are read.
        device: None takes a GPU where there is one.
        trust_remote_code: As in `load_model`.

    Raises:
        UserError: As `load_model`; and for a checkpoint without safetensors, a quantised one, and a model
            that cannot be streamed.
        RunError: As `load_model`.
    """
    weights, asked = name_of(dtype), name_of(compute_dtype, "--compute-dtype")
    place = torch.device(device or usual_device())
    described = describe(name, head=False, trust_remote_code=trust_remote_code)
    if is_quantised(described.full):
        raise UserError(f"--placement stream: {name} is quantised; streaming reads plain weights")
    given: dict[str, Any] = {"dtype": weights, "compute_dtype": asked}
    settings = ModelSettings.model_construct(id=name, **given)
    held = DTYPES[described.dtype(weights)]
    run = DTYPES[computed_in(described, settings, place.type == "cuda", say_so=True)]
    with hub_errors(name):
        tokenizer = load_tokenizer(described.files)
        paths = weight_files(described.files, described.full, download=True)
        if not paths or paths[0].suffix != ".safetensors":
            raise UserError(
                f"--placement stream: {name} has no weights as safetensors, which streaming reads"
            )
        checkpoint = Checkpoint(paths, rounded_to=held)
        try:
            model = load_skeleton(described.whole, described.config, checkpoint, run, place)
        except RunError as error:
            raise RunError(f"{name}: {error}") from error
        except AttributeError as error:
            if nn.Identity.__name__ not in str(error):  # which stands where a block would be
                raise
            why = f"its blocks share parts ({error})"
            raise refusal(described.config.model_type, why) from error
    # Its probe needs a block with weights; `check_block` makes up for it when there is one.
    with replaced(find_blocks(model)[1], {0: handing(lambda stream: stream)}):
        lm = wrap_model(model, tokenizer, name)
    lm.weights_dtype, lm.streamed_on = held, place
    return StreamedModel(lm, described.whole, checkpoint, place)


def _to_device(block: nn.Module, device: torch.device) -> nn.Module:
    """The block on the device. To a GPU it goes through pinned memory and the stream for copies, beside what
    runs there; it is there on return."""
    if device.type != "cuda":
        return block
    with torch.cuda.device(device), torch.cuda.stream(copy_streams(device)[1]):
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.data = to_device(tensor.data, device)
        torch.cuda.current_stream().synchronize()
    return block
