"""Contrast prompts: does steering take the next token to where it is after the prompts with the concept?

For vectors that there is nothing else to try on. An item is a negative prompt of a concept, as it was
harvested. Two distributions of the unsteered model are held against the steered one after it: the one it
should come to, after the positive prompt of its pair or, where texts are in no pairs, the mean one after the
concept's positive prompts; and the mean one after its negative prompts. The gain of each is how much more
likely the steered model makes it, in nats: the sum over its tokens of p log q, less that of the unsteered q.

Steering too strongly does not pay: what has collapsed to a few tokens makes all others unlikely. Nor does a
model that forgets its prompt: it makes the mean after negative prompts likelier too, and that is taken off.

These are the prompts behind the vectors. The score tells vectors of the same texts apart, at several blocks
say; it proves nothing. Nor does it see what shows only later than in the next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from contrans_dist.benchmarks.base import Benchmark, result_table
from contrans_dist.benchmarks.calls import Ids, NextTokens
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.statistics import wilcoxon
from contrans_dist.benchmarks.summary import Estimate, Metric, mean
from contrans_dist.config import CaptureSettings, EvaluationSettings
from contrans_dist.data.spread import spread
from contrans_dist.data.templates import prompts
from contrans_dist.errors import UserError
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.from_activations import contrast_rows

if TYPE_CHECKING:
    from contrans_dist.engine.scoring import Intervention
    from contrans_dist.models import LanguageModel

_TOKENS = 256
"""Of a distribution, the likeliest: they are nearly all of it."""
_RUINED = -100.0
"""Nats that a token loses in a model whose logits overflow, or at most in one that never expected it."""
_FIELDS = [("towards", pa.float64()), ("away", pa.float64())]
_NONE = np.empty(0, np.int64)


class ContrastEvaluation(EvaluationSettings):
    """Does steering move negative contrast prompts to where the positive ones are?"""

    benchmark: Literal["contrast"] = "contrast"
    texts: str
    """The activation set of the contrast texts, of the model that is steered."""
    prompts: int = Field(96, ge=1)
    """Negative prompts over all concepts, and as many positive ones, evenly spread."""
    limit: int | None = Field(None, ge=1)
    """The first so many of each side of a concept, as the vectors were made from."""

    files: ClassVar[tuple[str, ...]] = ("texts",)


@dataclass(frozen=True)
class ContrastPrompt:
    """A negative prompt."""

    id: str
    concept: str
    scenario: str
    """Its text, without what stands around it."""
    prompt: str
    partner: str = ""
    """The positive prompt of its pair; empty where texts are in no pairs."""


def _gain(values: np.ndarray) -> Estimate:
    """From the gains of the one distribution and the other, `[n, 2]`."""
    towards, away = values.T
    return mean(towards - away if away.mean() > 0 else towards)


def _gains_differ(a: np.ndarray, b: np.ndarray) -> float:
    return wilcoxon(a[:, 0], b[:, 0])


@dataclass(frozen=True)
class ContrastBenchmark(Benchmark[ContrastEvaluation, ContrastPrompt]):
    """Negative prompts, and the positive ones that they should come to."""

    capture: CaptureSettings
    """How the prompts were run: template, chat, position."""
    all_items: tuple[ContrastPrompt, ...]
    positive: dict[str, tuple[str, ...]]
    """Prompts of each concept."""

    settings_class = ContrastEvaluation
    metrics = (
        Metric("contrast_gain", "Gain in nats", ("towards", "away"), _gain, _gains_differ,
               percent=False, items="prompts"),
    )  # fmt: skip
    noun = "prompts"

    @classmethod
    def load(cls, settings: ContrastEvaluation) -> Self:
        """Raises UserError where there is no activation set, or none of contrast texts."""
        states = ActivationSet.open(settings.texts)
        made = states.manifest.identity
        given = {"position": made.position, "chat_date": made.chat_date, "chat": made.chat}
        capture = CaptureSettings(
            template=made.template,
            max_tokens=made.max_tokens,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        names = [name for name in states.columns if name not in ("n_tokens", "token_id")]
        table, where = states.read_columns(names), str(states.location)
        return cls.of(settings, table, capture, where, bool(states.manifest.skipped))

    @classmethod
    def of(
        cls,
        settings: ContrastEvaluation,
        table: pa.Table,
        capture: CaptureSettings,
        where: str,
        left_out: bool = False,
    ) -> Self:
        """The benchmark of contrast texts that need not be harvested.

        Args:
            settings: Of them `prompts`, `limit` and `seed` count.
            table: A column `concept`, and `label`, or each concept stands against the others.
            capture: Template, chat, position and `max_tokens` of the harvest.
            where: What a message calls the texts.
            left_out: Whether texts were left out of the harvest, and with them halves of pairs.

        Raises:
            UserError: For a concept without texts of both kinds.
        """
        missing = [name for name in ("text", "concept") if name not in table.column_names]
        if missing:
            raise UserError(f"{where}: expected contrast texts, with a column {missing[0]!r}")
        concepts = [str(c) for c in dict.fromkeys(table.column("concept").to_pylist()) if c is not None]
        if not concepts:
            raise UserError(f"{where}: expected contrast texts, but none has a concept")
        whole, texts = prompts(table, capture.template), table.column("text").to_pylist()
        paired = {"label", "pair_id"} <= set(table.column_names)
        pairs = table.column("pair_id").to_pylist() if paired else [None] * table.num_rows
        items: list[ContrastPrompt] = []
        positive: dict[str, tuple[str, ...]] = {}
        most = max(1, settings.prompts // len(concepts))
        for concept in concepts:
            with_it, without = contrast_rows(table, where, concept, settings.seed, settings.limit, left_out)
            partners = {pairs[row]: whole[row] for row in with_it if pairs[row] is not None}
            chosen = [
                ContrastPrompt(
                    f"{concept}/{row:05d}", concept, texts[row], whole[row], partners.get(pairs[row], "")
                )
                for row in without[spread(len(without), most)]
            ]
            of_pairs = dict.fromkeys(item.partner for item in chosen if item.partner)
            positive[concept] = tuple(of_pairs) or tuple(
                whole[row] for row in with_it[spread(len(with_it), most)]
            )
            items += chosen
        return cls(settings, capture, tuple(items), positive)

    def items(self) -> tuple[ContrastPrompt, ...]:
        """Every negative prompt, concept by concept."""
        return self.all_items

    def identity(self) -> dict[str, Any]:
        """The prompts of both sides, whichever are scored, and how all are run."""
        run = self.capture.model_dump(mode="json", include={"chat", "chat_date", "position", "max_tokens"})
        return {
            "positive": content_hash(self.positive),
            "negative": content_hash(list(self.all_items)),
            "capture": run,
        }

    def calls(self, lm: LanguageModel, items: Sequence[ContrastPrompt]) -> list[NextTokens]:
        """The concept's prompts by the model as it is, first the positive ones; and the items."""
        positive, negative = self._sides(items[0].concept)
        return [
            NextTokens(self._ids(lm, [*positive, *negative]), _NONE, steered=False),
            NextTokens(self._ids(lm, [item.prompt for item in items]), _NONE),
        ]

    def score(
        self, lm: LanguageModel, items: Sequence[ContrastPrompt], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and item: `towards` and `away`, what the distribution after positive
        prompts and the one after negative prompts gain, in nats. Raises RunError where the unsteered model's
        logits are no numbers: nothing can be held against it."""
        from contrans_dist.engine.scoring import BASE, check_finite, distributions

        positive, _ = self._sides(items[0].concept)
        known, asked = self.calls(lm, items)
        base = distributions(lm, known.contexts, [BASE], batch_tokens=self.batch_tokens)
        check_finite([BASE], base)
        (whole,) = base
        with_it, without = whole[: len(positive)], whole[len(positive) :]
        meant = with_it.mean(axis=0)
        goals = np.stack([with_it[positive.index(item.partner)] if item.partner else meant for item in items])
        rest = np.broadcast_to(without.mean(axis=0), goals.shape)
        watch = np.argsort(-(goals + rest), axis=1, kind="stable")[:, :_TOKENS]
        got = replace(asked, watch=watch, may_overflow=True).run(lm, items, interventions, self.batch_tokens)
        places = [[item.id for item in self._of(items[0].concept)].index(item.id) for item in items]
        before = np.take_along_axis(without[places], watch, axis=1).astype(np.float64)
        change = got.logprobs - np.log(np.maximum(before, np.exp(_RUINED)))
        change = np.nan_to_num(change, nan=_RUINED, posinf=_RUINED, neginf=_RUINED)
        towards, away = (
            (np.take_along_axis(side, watch, axis=1) * change).sum(axis=2) for side in (goals, rest)
        )
        rows = [
            [{"towards": float(towards[c, p]), "away": float(away[c, p])} for p in range(len(items))]
            for c in range(len(interventions))
        ]
        return result_table(items, interventions, rows, _FIELDS)

    def _of(self, concept: str) -> list[ContrastPrompt]:
        return [item for item in self.all_items if item.concept == concept]

    def _sides(self, concept: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The positive and the negative prompts of a concept."""
        return self.positive[concept], tuple(item.prompt for item in self._of(concept))

    def _ids(self, lm: LanguageModel, texts: Sequence[str]) -> list[Ids]:
        """Prompts as they were harvested, up to the token that rows are taken from; for `mean` the last."""
        from contrans_dist.engine.capture import prepare, truncate
        from contrans_dist.models import encode_many

        ids = encode_many(lm, texts, self.capture.chat, self.capture.chat_date)
        ready = prepare(lm, truncate(lm, ids, self.capture.max_tokens)[0], self.capture.position)
        return [text[: at + 1] for text, at in zip(ready.ids, ready.tokens, strict=True)]
