"""The engine behind the harness's questions: documents in, answers under every intervention out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from contrans_dist.benchmarks.lm_eval.documents import Document, Request
from contrans_dist.benchmarks.lm_eval.tokens import (
    encode,
    encode_pair,
    encode_prompt,
    end_text,
    prefix_token,
    rolling,
    window,
)
from contrans_dist.engine.scoring import Intervention, continuation_logprobs, generate
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel


@dataclass(frozen=True)
class Answer:
    """What the model says to one request; None is what was not asked for."""

    logprob: float | None = None
    """Natural logarithm, of the whole continuation."""
    greedy: bool | None = None
    """Whether the continuation is what the model itself would have written."""
    text: str | None = None


@dataclass(frozen=True)
class _Pair:
    """A piece of a request to score: all of `continuation` but its first `skip` tokens."""

    document: int
    place: int
    context: list[int]
    continuation: list[int]
    skip: int = 0


def answers(
    lm: LanguageModel,
    documents: Sequence[Document],
    interventions: Sequence[Intervention],
    *,
    batch_tokens: int = 4096,
    seed: int = 0,
) -> list[list[list[Answer]]]:
    """Answers `[C][P][R]` to the R requests of each document under each intervention.

    A vector `[P, d]` of an intervention has a row for each document. Texts are drawn by `seed` where a
    temperature is asked for. Raises UserError, naming the document, for a request that the model cannot hold.
    """
    found = [[[Answer()] * len(each.requests) for each in documents] for _ in interventions]
    pairs = [pair for d, each in enumerate(documents) for pair in _pairs(lm, d, each)]
    _score(lm, pairs, interventions, found, batch_tokens)
    generated = [
        (d, place, request)
        for d, each in enumerate(documents)
        for place, request in enumerate(each.requests)
        if request.method == "generate_until"
    ]
    kinds = dict.fromkeys(replace(request, context="") for *_, request in generated)
    for kind in kinds:
        some = [(d, place) for d, place, request in generated if replace(request, context="") == kind]
        _generate(lm, documents, kind, some, interventions, found, seed)
    return found


def _pairs(lm: LanguageModel, index: int, document: Document) -> Iterator[_Pair]:
    """What is scored for a document's requests, piece by piece."""
    for place, request in enumerate(document.requests):
        front = document.prompt + request.context
        if request.method == "loglikelihood":
            with _named(document):
                yield _Pair(index, place, *encode_pair(lm, front, request.continuation))
        elif request.method == "loglikelihood_rolling":
            before = len(encode(lm, front)) if front else 0
            tokens = encode(lm, front + request.continuation)
            for context, scored in rolling(tokens, prefix_token(lm), window(lm)):
                yield _Pair(index, place, context, scored, min(before, len(scored)))
                before -= min(before, len(scored))


def _score(
    lm: LanguageModel,
    pairs: Sequence[_Pair],
    interventions: Sequence[Intervention],
    found: list[list[list[Answer]]],
    batch_tokens: int,
) -> None:
    if not pairs:
        return
    scores = continuation_logprobs(
        lm,
        [pair.context for pair in pairs],
        [pair.continuation for pair in pairs],
        [_rows(each, [pair.document for pair in pairs]) for each in interventions],
        batch_tokens=batch_tokens,
    )
    for c in range(len(interventions)):
        for p, pair in enumerate(pairs):
            row, so_far = found[c][pair.document], found[c][pair.document][pair.place]
            logprob = float(scores.tokens[c][p][pair.skip :].sum(dtype=np.float64))
            greedy = bool(scores.greedy[c, p])
            if so_far.logprob is not None:
                logprob, greedy = so_far.logprob + logprob, bool(so_far.greedy) and greedy
            row[pair.place] = Answer(logprob, greedy)


def _generate(
    lm: LanguageModel,
    documents: Sequence[Document],
    kind: Request,
    places: Sequence[tuple[int, int]],
    interventions: Sequence[Intervention],
    found: list[list[list[Answer]]],
    seed: int,
) -> None:
    """Texts for the requests at `places` (document, request), which share stop strings, length and heat."""
    prompts = []
    for d, place in places:
        with _named(documents[d]):
            text = documents[d].prompt + documents[d].requests[place].context
            prompts.append(encode_prompt(lm, text, kind.max_new_tokens))
    until = [*kind.until, *end_text(lm)]
    texts = generate(
        lm,
        prompts,
        [_rows(each, [d for d, _ in places]) for each in interventions],
        max_new_tokens=kind.max_new_tokens,
        temperature=kind.temperature,
        seed=seed,
        until=until,
        alone=True,
    )
    for c, row in enumerate(texts):
        for (d, place), text in zip(places, row, strict=True):
            found[c][d][place] = Answer(text=_cut(text, until))


def _rows(intervention: Intervention, documents: Sequence[int]) -> Intervention:
    """The intervention for texts that belong to these documents: vectors `[P, d]` are given row by row."""
    vectors = {k: v[documents] if np.ndim(v) == 2 else v for k, v in intervention.vectors.items()}
    return replace(intervention, vectors=vectors)


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text


@contextmanager
def _named(document: Document) -> Iterator[None]:
    """Say which document an error is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{document.id}: {error}") from None
