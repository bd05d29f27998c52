"""What each benchmark asks a model about its items, as calls of the engines."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.choices import answer_ids
from contrans_dist.benchmarks.lm_eval.tokens import (
    encode,
    encode_pair,
    encode_prompt,
    prefix_token,
    rolling,
    window,
)
from contrans_dist.benchmarks.windows import Grid, merged, span_of, tokens_of
from contrans_dist.engine.scoring import Intervention
from contrans_dist.engine.scoring.generation import BATCH_SIZE
from contrans_dist.models import cut_to
from contrans_dist.pipeline.plan.calls import Call, Generated, Ids, Scored
from contrans_dist.pipeline.plan.sides import Side


@dataclass(frozen=True)
class Asked:
    """Sequences with the tokens at their ends that are scored, and prompts by how they are continued."""

    scored: list[tuple[Ids, int]] = field(default_factory=list)
    continued: dict[tuple[int, int], list[Ids]] = field(default_factory=dict)
    """(new tokens, texts in a batch) -> prompts"""

    @property
    def tokens(self) -> int:
        """Of all sequences and prompts."""
        continued = sum(len(ids) for prompts in self.continued.values() for ids in prompts)
        return continued + sum(len(ids) for ids, _ in self.scored)


class Asking:
    """The calls of one benchmark on one model; items that come again are cut into tokens once."""

    def __init__(self, benchmark: Benchmark, side: Side, most: int) -> None:
        self.benchmark, self.side, self.most = benchmark, side, most
        self.known: dict[tuple[str, int, bool], Asked] = {}
        self.calls: dict[Any, Scored] = {}

    @property
    def tokens(self) -> int:
        """Of all that was asked, each item once."""
        return sum(found.tokens for (*_, apart), found in self.known.items() if not apart)

    def asked(self, items: Sequence[Any], apart: bool = False) -> Asked:
        """`apart`: no text is run for several items, as each has a vector of its own."""
        key = items[0].id, len(items), apart and self.benchmark.name == "perplexity"
        if key not in self.known:
            self.known[key] = _ASKED[self.benchmark.name](self.benchmark, self.side, items, apart)
        return self.known[key]

    def of(self, items: Sequence[Any], interventions: Sequence[Intervention]) -> list[Call]:
        """What `Benchmark.score` asks the engines for."""
        found: list[Call] = []
        for own in (False, True):
            blocks = tuple(each.block for each in interventions if _of_each(each) == own)
            asked = self.asked(items, own)
            if blocks and asked.scored:
                key = items[0].id, len(items), own
                found.append(self._scored(key, asked, blocks, own))
        for (new, batch), prompts in self.asked(items).continued.items():
            found.append(Generated.of(prompts, len(interventions), new, batch))
        return found

    def _scored(self, key: Any, asked: Asked, blocks: tuple[int | None, ...], own: bool) -> Scored:
        if key not in self.calls:
            sequences, wanted = [ids for ids, _ in asked.scored], [n for _, n in asked.scored]
            self.calls[key] = Scored.of(self.side.lm, sequences, wanted, blocks, own, self.most)
        return replace(self.calls[key], blocks=blocks)


def _of_each(intervention: Intervention) -> bool:
    """Whether it has a vector for each item."""
    return any(np.ndim(vector) == 2 for vector in intervention.vectors.values())


def _prompts(_: Any, side: Side, items: Sequence[Any], _apart: bool) -> Asked:
    """Emotions: the token after each prompt."""
    return Asked([(ids, 1) for ids in side.ids([item.prompt for item in items])])


def _answers(_: Any, side: Side, items: Sequence[Any], _apart: bool) -> Asked:
    """TruthfulQA: every choice after its question; its last token is not run."""
    pairs = [(item.prompt, answer) for item in items for answer in item.answers]
    cut = answer_ids(side.lm, [prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    return Asked([([*context, *answer[:-1]], len(answer)) for context, answer in cut])


def _letters(benchmark: Any, side: Side, items: Sequence[Any], _apart: bool) -> Asked:
    """Behaviours: each letter after the prompt, of which the letter itself is not run."""
    prompts = [item.prompt for item in items]
    ids = side.ids(prompts, benchmark.chat, benchmark.chat_date)
    return Asked([(each, 1) for each, item in zip(ids, items, strict=True) for _ in item.options])


def _windows(benchmark: Any, side: Side, items: Sequence[Any], apart: bool) -> Asked:
    """Perplexity: windows over the passages, run once for neighbours unless these have their own vectors."""
    lm = side.lm
    ids, owner = tokens_of(lm.tokenizer, benchmark.text, benchmark.starts)
    ids, owner = ids[: benchmark.limit], owner[: benchmark.limit]
    (front,) = side.ids([items[0].prompt])
    room, stride = benchmark.sizes(lm, len(front))
    grid = Grid(ids, front, room - len(front), stride)
    spans = [span_of(owner, item.index) for item in items]
    pieces = [piece for span in (spans if apart else merged(spans)) for piece in grid.pieces(*span)]
    return Asked([([*context, *scored[:-1]], len(scored)) for _, context, scored in pieces])


def _continuations(benchmark: Any, side: Side, items: Sequence[Any], _apart: bool) -> Asked:
    """ToxiGen: each prompt is continued."""
    new = benchmark.max_new_tokens
    prompts = [cut_to(side.lm, ids, new) for ids in side.ids([item.prompt for item in items])]
    batch = max(1, benchmark.batch_tokens // (max(map(len, prompts)) + new))
    return Asked(continued={(new, batch): prompts})


def _requests(_: Any, side: Side, items: Sequence[Any], _apart: bool) -> Asked:
    """lm-eval: every request of every document."""
    lm = side.lm
    scored: list[tuple[Ids, Ids]] = []
    continued: dict[tuple[int, int], list[Ids]] = defaultdict(list)
    for item in items:
        for request in item.requests:
            front = item.prompt + request.context
            if request.method == "generate_until":
                prompt = encode_prompt(lm, front, request.max_new_tokens)
                continued[request.max_new_tokens, BATCH_SIZE].append(prompt)
            elif request.method == "loglikelihood_rolling":
                tokens = encode(lm, front + request.continuation)
                scored += rolling(tokens, prefix_token(lm), window(lm))
            else:
                scored.append(encode_pair(lm, front, request.continuation))
    return Asked([([*context, *rest[:-1]], len(rest)) for context, rest in scored], dict(continued))


_ASKED = {
    "emotions": _prompts,
    "truthfulqa": _answers,
    "behaviours": _letters,
    "perplexity": _windows,
    "toxigen": _continuations,
    "lm-eval": _requests,
}
