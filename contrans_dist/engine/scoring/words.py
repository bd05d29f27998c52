"""Which token a word begins with when it follows a prompt, whatever the tokenizer does at the boundary."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.engine.prefixes.groups import common
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, encode_many, encode_with_starts

TAIL = 32  # characters at a prompt's end on which the tokens of a word after it may depend


@dataclass(frozen=True)
class Cue:
    """What the model reads before a word, and each candidate word's first token there."""

    context: list[int]
    tokens: list[int]  # one for each word


def cues(lm: LanguageModel, prompts: Sequence[str], words: Sequence[str]) -> list[Cue]:
    """For each prompt: the tokens to feed, and the token that each word begins with after them.

    Prompt and word are tokenised together, since a tokenizer may give the space to the word, to the prompt's
    last word, or keep it alone. The word's token is the first that begins at the space or later; the context
    what precedes.

    Args:
        lm: The model.
        prompts: Texts; a space is put behind each that does not end on one.
        words: The candidate words, the same for every prompt.

    Raises:
        UserError: When two words do not follow the same context, and for an empty word.
    """
    if not words or not all(words):
        raise UserError("label words must not be empty")
    tokens: dict[str, list[int]] = {}
    cues = []
    for prompt, (context, token) in zip(prompts, _split(lm, prompts, words[0]), strict=True):
        tail = prompt[-TAIL:]
        if tail not in tokens:
            tokens[tail] = [token, *_agreeing(lm, prompt, context, words)]
        cues.append(Cue(context, tokens[tail]))
    return cues


def _agreeing(lm: LanguageModel, prompt: str, context: list[int], words: Sequence[str]) -> list[int]:
    """First tokens of `words[1:]`, each checked to follow the same context as `words[0]`."""
    result = []
    for word in words[1:]:
        other, token = _split(lm, [prompt], word)[0]
        if other != context:
            raise UserError(
                f"the prompt's end is tokenised differently before {words[0]!r} and before {word!r}"
            )
        result.append(token)
    return result


def _split(lm: LanguageModel, prompts: Sequence[str], word: str) -> list[tuple[list[int], int]]:
    """Context and first token of `word` after each prompt."""
    bodies = [prompt.removesuffix(" ") for prompt in prompts]
    texts = [body + ("" if not body or body[-1].isspace() else " ") + word for body in bodies]
    return [(context, tokens[0]) for context, tokens in split_behind(lm, bodies, texts)]


def split_behind(
    lm: LanguageModel, prompts: Sequence[str], texts: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of texts, cut behind the prompt that each begins with: (context, rest).

    The rest begins with the first token that begins where the prompt ends, or later: one that begins before
    is the prompt's, even when it takes a space along. A tokenizer that cannot say where its tokens begin is
    asked for the prompt alone, and the rest begins where the two differ.
    """
    wholes, starts = encode_with_starts(lm, texts)
    if starts is None:
        places = [common(a, b) for a, b in zip(encode_many(lm, prompts), wholes, strict=True)]
    else:
        places = [
            next(i for i, low in enumerate(lows) if low >= len(prompt))
            for prompt, lows in zip(prompts, starts, strict=True)
        ]
    return [(whole[:place], whole[place:]) for whole, place in zip(wholes, places, strict=True)]
