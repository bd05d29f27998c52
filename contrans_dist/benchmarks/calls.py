"""What benchmarks ask of the engine: run by `Benchmark.score`, and laid out without a model by a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from contrans_dist.benchmarks.base import ScoredItem
from contrans_dist.config import BATCH_TOKENS
from contrans_dist.errors import UserError

if TYPE_CHECKING:  # a benchmark's names are read without torch
    from contrans_dist.engine.scoring import Intervention, NextToken, TokenScores
    from contrans_dist.models import LanguageModel

Ids = list[int]


@dataclass(frozen=True)
class NextTokens:
    """Prompts after which the next token is looked at, one for each item."""

    contexts: list[Ids]
    watch: np.ndarray
    """int64 `[W]`, or `[items, W]`: tokens whose logits are wanted."""
    steered: bool = True
    """For a plan: whether they are run under every intervention, or once, by the model as it is."""

    may_overflow: bool = False
    """Whether the benchmark has a score for a model whose logits are no numbers."""

    @property
    def sequences(self) -> list[Ids]:
        """What the model runs."""
        return self.contexts

    @property
    def positions(self) -> list[int]:
        """Places at the end of each sequence whose logits are wanted."""
        return [1] * len(self.contexts)

    def run(
        self,
        lm: LanguageModel,
        items: Sequence[ScoredItem],
        interventions: Sequence[Intervention],
        batch_tokens: int = BATCH_TOKENS,
    ) -> NextToken:
        """Raises UserError, naming the item, for a prompt that is longer than the model's context; RunError,
        naming the intervention, where a log-probability is no number."""
        from contrans_dist.engine.scoring import check_finite, next_token

        for item, context in zip(items, self.contexts, strict=True):
            _check_context(lm, item, len(context))
        got = next_token(lm, self.contexts, interventions, watch=self.watch, batch_tokens=batch_tokens)
        if not self.may_overflow:
            check_finite(interventions, got.logprobs)
        return got


@dataclass(frozen=True)
class Continuations:
    """Given continuations, each scored after its context, token by token."""

    contexts: list[Ids]
    continuations: list[Ids]
    owners: Sequence[int]
    """The item that each belongs to, by its place among the items."""

    @property
    def sequences(self) -> list[Ids]:
        """What the model runs: the last token of a continuation predicts nothing that is asked for."""
        return [[*c, *rest[:-1]] for c, rest in zip(self.contexts, self.continuations, strict=True)]

    @property
    def positions(self) -> list[int]:
        """Places at the end of each sequence whose logits are wanted."""
        return [len(continuation) for continuation in self.continuations]

    def by_item(self, values: np.ndarray) -> list[np.ndarray]:
        """Values `[continuations]` by item, where the continuations of an item follow each other."""
        return np.split(values, np.flatnonzero(np.diff(self.owners)) + 1)

    def run(
        self,
        lm: LanguageModel,
        items: Sequence[ScoredItem],
        interventions: Sequence[Intervention],
        batch_tokens: int = BATCH_TOKENS,
    ) -> TokenScores:
        """Log-likelihoods `[interventions, continuations]`.

        Raises UserError, naming the item, for a sequence that is longer than the model's context; RunError,
        naming the intervention, where a log-likelihood is no number.
        """
        from contrans_dist.engine.scoring import check_finite, continuation_logprobs

        for owner, sequence in zip(self.owners, self.sequences, strict=True):
            _check_context(lm, items[owner], len(sequence))
        spread = [_for_owners(intervention, self.owners) for intervention in interventions]
        scores = continuation_logprobs(
            lm, self.contexts, self.continuations, spread, batch_tokens=batch_tokens
        )
        check_finite(interventions, scores.sums)
        return scores


@dataclass(frozen=True)
class Completions:
    """Prompts that the model goes on with."""

    prompts: list[Ids]
    owners: Sequence[int]
    """The item that each belongs to, by its place among the items."""
    max_new_tokens: int
    batch_size: int
    """Texts in one batch."""
    temperature: float = 0.0
    seed: int = 0
    until: tuple[str, ...] = ()
    """Strings that end a text; the text holds them still."""
    alone: bool = False
    """See `engine.scoring.generate`."""

    def run(
        self, lm: LanguageModel, items: Sequence[ScoredItem], interventions: Sequence[Intervention]
    ) -> list[list[str]]:
        """Texts without their prompts, `[interventions][prompts]`."""
        from contrans_dist.engine.scoring import generate

        return generate(
            lm,
            self.prompts,
            [_for_owners(intervention, self.owners) for intervention in interventions],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            temperature=self.temperature,
            seed=self.seed,
            until=self.until,
            alone=self.alone,
        )


Call = NextTokens | Continuations | Completions


def _for_owners(intervention: Intervention, owners: Sequence[int]) -> Intervention:
    """The intervention on texts that belong to these items: vectors `[items, d]` are given row by row."""
    vectors = {k: v[list(owners)] if np.ndim(v) == 2 else v for k, v in intervention.vectors.items()}
    return replace(intervention, vectors=vectors)


def _check_context(lm: LanguageModel, item: ScoredItem, tokens: int) -> None:
    if lm.context is not None and tokens > lm.context:
        raise UserError(
            f"item {item.id} needs {tokens} tokens, the model's context holds {lm.context}: "
            "use shorter prompts, or fewer examples"
        )
