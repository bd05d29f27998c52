"""Whether a model's blocks can be run one at a time: each of them must take nothing from the tokens or from
another block but the residual stream, since passed over, that would be lost."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from contrans_dist.errors import UserError, one_line
from contrans_dist.models.blocks import find_blocks, model_type
from contrans_dist.models.language_model import LanguageModel
from contrans_dist.models.passing import Stop, run_replaced, stream_of

Form = Callable[[Tensor], object]
"""The residual stream as a block returns it: alone, or first in a tuple."""
_FORMS: tuple[Form, ...] = (lambda state: state, lambda state: (state,), lambda state: (state, None))


class _Altered(Exception):
    """A block was not given what the one below returned."""


def refusal(kind: str, why: str) -> UserError:
    """For a model of this type, which cannot be streamed."""
    return UserError(f"--placement stream: model type '{kind}' cannot be streamed: {one_line(why)}")


def block_form(lm: LanguageModel) -> Form:
    """The form in which the blocks, which need no weights, return the residual stream. Raises UserError for a
    model whose blocks are given more than that."""
    kind, blocks = model_type(lm.model), find_blocks(lm.model)[1]
    width = int(lm.decoder.get_input_embeddings().weight.shape[1])  # type: ignore[operator,union-attr]
    texts = [torch.tensor(rows) for rows in ([[3, 4, 5], [3, 4, 6]], [[5, 6, 3], [6, 3, 4]])]
    inputs = [{"input_ids": ids.to(lm.device)} for ids in texts]
    inputs += [{"inputs_embeds": torch.zeros(2, 3, width, dtype=lm.dtype, device=lm.device)}]
    reasons: list[str] = []
    for form in _FORMS:
        try:
            looks = [_look(lm.decoder, blocks, form, arguments) for arguments in inputs]
        except _Altered:
            reasons.append("the residual stream changes on its way from block to block")
            continue
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            reasons.append(f"it does not run on embeddings alone ({error})")
            continue
        if not all(_same(looks[0], other) for other in looks[1:]):
            raise refusal(kind, "its blocks are given more of the text than the residual stream")
        return form
    raise refusal(kind, reasons[0])


def _look(decoder: nn.Module, blocks: nn.ModuleList, form: Form, inputs: dict[str, Tensor]) -> list[Any]:
    """All that each block is given besides the residual stream, when those below return marked states."""
    seen: list[Any] = []

    def looking(k: int) -> Callable[..., object]:
        def forward(*args: Any, **named: Any) -> object:
            stream = stream_of(args, named)
            if k and not (stream.ndim == 3 and torch.equal(stream, _marked(k - 1, stream))):
                raise _Altered
            seen.append((args[1:], {name: x for name, x in named.items() if name != "hidden_states"}))
            if k == len(blocks) - 1:
                raise Stop
            return form(_marked(k, stream))

        return forward

    run_replaced(decoder, blocks, {k: looking(k) for k in range(len(blocks))}, **inputs)
    return seen


def _marked(k: int, like: Tensor) -> Tensor:
    """A state by which block k's output is known, and any two tokens of it."""
    numbers = torch.arange(like.numel(), device=like.device).remainder(50).view(like.shape)
    return (numbers + k % 100).to(like.dtype)


def _same(one: Any, other: Any) -> bool:
    """Whether two nested collections hold the same tensors; other things in them are not looked at."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and all(_same(x, other.get(name)) for name, x in one.items())
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and all(map(_same, one, other))
    return not isinstance(other, Tensor)
