"""The engine behind the harness's questions: documents in, answers under every intervention out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from contrans_dist.benchmarks.calls import Completions, Continuations
from contrans_dist.benchmarks.lm_eval.documents import Document, HarnessRequest
from contrans_dist.config import BATCH_TOKENS
from contrans_dist.console import one_by_one
from contrans_dist.errors import UserError

if TYPE_CHECKING:
    from contrans_dist.engine.scoring import Intervention
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
class AnswerPart:
    """A call of the engine, and which requests it answers."""

    call: Continuations | Completions
    places: list[tuple[int, int]]
    """(document, request) of each sequence or prompt; a long text is scored in several."""
    skips: list[int]
    """Of continuations, the first tokens that do not count."""


def answers(
    lm: LanguageModel,
    documents: Sequence[Document],
    interventions: Sequence[Intervention],
    *,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> list[list[list[Answer]]]:
    """Answers `[C][P][R]` to the R requests of each document under each intervention.

    A vector `[P, d]` of an intervention has a row for each document. Texts are drawn by `seed` where a
    temperature is asked for. Raises UserError, naming the document, for a request that the model cannot hold.
    """
    answered = [[[Answer()] * len(document.requests) for document in documents] for _ in interventions]
    for part in one_by_one(layout(lm, documents, seed)):
        if isinstance(part.call, Completions):
            texts = part.call.run(lm, documents, interventions)
            for c, row in enumerate(texts):
                for (d, place), text in zip(part.places, row, strict=True):
                    answered[c][d][place] = Answer(text=_cut(text, part.call.until))
            continue
        scores = part.call.run(lm, documents, interventions, batch_tokens)
        for c in range(len(interventions)):
            for p, ((d, place), skip) in enumerate(zip(part.places, part.skips, strict=True)):
                logprob = float(scores.tokens[c][p][skip:].sum(dtype=np.float64))
                greedy, so_far = bool(scores.greedy[c, p]), answered[c][d][place]
                if so_far.logprob is not None:
                    logprob, greedy = so_far.logprob + logprob, bool(so_far.greedy) and greedy
                answered[c][d][place] = Answer(logprob, greedy)
    return answered


def layout(lm: LanguageModel, documents: Sequence[Document], seed: int = 0) -> list[AnswerPart]:
    """What the engine is asked: everything that is scored at once, then texts, those together that share stop
    strings, length and temperature."""
    pieces = [piece for d, document in enumerate(documents) for piece in _pieces(lm, d, document)]
    parts = []
    if pieces:
        places, contexts, continuations, skips = map(list, zip(*pieces, strict=True))
        call = Continuations(contexts, continuations, [d for d, _ in places])
        parts.append(AnswerPart(call, places, skips))
    by_kind: dict[HarnessRequest, list[tuple[int, int]]] = {}
    for d, document in enumerate(documents):
        for place, request in enumerate(document.requests):
            if request.method == "generate_until":
                by_kind.setdefault(replace(request, context=""), []).append((d, place))
    return parts + [_completed(lm, documents, kind, places, seed) for kind, places in by_kind.items()]


def _pieces(
    lm: LanguageModel, index: int, document: Document
) -> Iterator[tuple[tuple[int, int], list[int], list[int], int]]:
    """(document and request, context, continuation, tokens of it that do not count) of what is scored."""
    from contrans_dist.benchmarks.lm_eval.tokens import encode, encode_pair, prefix_token, rolling, window

    for place, request in enumerate(document.requests):
        front = document.prompt + request.context
        if request.method == "loglikelihood":
            with _named(document):
                yield (index, place), *encode_pair(lm, front, request.continuation), 0
        elif request.method == "loglikelihood_rolling":
            before = len(encode(lm, front)) if front else 0
            tokens = encode(lm, front + request.continuation)
            for context, scored in rolling(tokens, prefix_token(lm), window(lm)):
                yield (index, place), context, scored, min(before, len(scored))
                before -= min(before, len(scored))


def _completed(
    lm: LanguageModel,
    documents: Sequence[Document],
    kind: HarnessRequest,
    places: list[tuple[int, int]],
    seed: int,
) -> AnswerPart:
    """Texts for the requests at `places` (document, request), which differ in their contexts alone."""
    from contrans_dist.benchmarks.lm_eval.tokens import encode_prompt, end_text
    from contrans_dist.engine.scoring.generation import BATCH_SIZE

    prompts = []
    for d, place in places:
        with _named(documents[d]):
            text = documents[d].prompt + documents[d].requests[place].context
            prompts.append(encode_prompt(lm, text, kind.max_new_tokens))
    call = Completions(
        prompts, [d for d, _ in places], kind.max_new_tokens, BATCH_SIZE,
        temperature=kind.temperature, seed=seed, until=(*kind.until, *end_text(lm)), alone=True,
    )  # fmt: skip
    return AnswerPart(call, places, [])


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
