"""Texts to token ids as the harness's own Hugging Face model (`HFLM`) cuts them, so that numbers agree."""

from collections.abc import Iterator, Sequence

from contrans_dist.benchmarks.calls import Ids
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel
from contrans_dist.models.tokens import plain_ids

_NO_LIMIT = 2048
"""Tokens a window holds where neither model nor tokenizer says; the harness's own default."""


def window(lm: LanguageModel) -> int:
    """Most tokens that the model is given at once."""
    return lm.context or _NO_LIMIT


def prefix_token(lm: LanguageModel) -> int:
    """What an empty context is replaced by: BOS, else EOS. Raises UserError where there is neither."""
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(lm.tokenizer, name, None)
        if isinstance(value, int):
            return value
    raise UserError(f"{lm.name}: the tokenizer has neither BOS nor EOS, which an empty context needs")


def end_text(lm: LanguageModel) -> list[str]:
    """EOS as text, at which generated texts are cut though they spell it; nothing without EOS."""
    value = getattr(lm.tokenizer, "eos_token_id", None)
    text = lm.tokenizer.decode([value]) if isinstance(value, int) else ""
    return [text] if text else []


def encode(lm: LanguageModel, text: str) -> Ids:
    """Ids behind what the tokenizer puts in front, but no second BOS for a text that brings its own."""
    begins = lm.tokenizer.decode([prefix_token(lm)])
    (plain,) = plain_ids(lm.tokenizer, [text])
    return plain if text.startswith(begins) else [*lm.front, *plain]


def encode_pair(lm: LanguageModel, context: str, continuation: str) -> tuple[Ids, Ids]:
    """Context and continuation, neither empty; the context is cut from the left to fit the window.

    Encoded together and cut where the context's own encoding ends; spaces at the context's end go to the
    continuation. Raises UserError for a continuation without tokens or longer than the window.
    """
    body = context.rstrip()
    continuation = context[len(body) :] + continuation
    if body:
        front = encode(lm, body)
        rest = encode(lm, body + continuation)[len(front) :]
    else:
        (rest,) = plain_ids(lm.tokenizer, [continuation])
        front = [prefix_token(lm)]
        if rest[:1] == front:
            rest = rest[1:]
    most = window(lm)
    if not 0 < len(rest) <= most:
        raise UserError(
            f"continuation {continuation[:40]!r} has {len(rest)} tokens; expected 1 to {most}, "
            "as many as the model holds"
        )
    return front[-(most + 1 - len(rest)) :], rest


def encode_prompt(lm: LanguageModel, text: str, max_new_tokens: int) -> Ids:
    """A prompt to be continued, cut from the left to leave room. Raises UserError where there is none."""
    room = window(lm) - max_new_tokens
    if room <= 0:
        raise UserError(f"{max_new_tokens} new tokens are asked for; the model holds {window(lm)} in all")
    return (encode(lm, text) or [prefix_token(lm)])[-room:]


def rolling(tokens: Sequence[int], prefix: int, most: int) -> Iterator[tuple[Ids, Ids]]:
    """(context, scored) windows of `most` tokens, in which every token is scored once.

    The first follows `prefix` alone; each later one ends with the next tokens, with as much context before
    them as the window holds, and at least one token.
    """
    for start in range(0, len(tokens), most):
        end = min(start + most, len(tokens))
        yield list(tokens[max(0, end - most - 1) : start]) if start else [prefix], list(tokens[start:end])
