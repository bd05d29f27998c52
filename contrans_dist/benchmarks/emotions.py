"""The emotion benchmark of ConTrans: does a steered model name the emotion that it is steered to?

Token Acc: the next token, of the whole vocabulary, is the first sub-token of the emotion's word. Logit Acc:
of the emotions' first sub-tokens, this one has the largest logit. Each over scenarios of the emotion
(positive) and of the others (negative).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from contrans_dist.benchmarks.base import Benchmark, result_table
from contrans_dist.benchmarks.calls import NextTokens
from contrans_dist.benchmarks.scenarios import (
    TEMPLATE,
    Item,
    build_items,
    is_official,
    official_items,
    read_scenarios,
)
from contrans_dist.benchmarks.summary import Metric
from contrans_dist.config import ValidatedEvaluation
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

if TYPE_CHECKING:
    from contrans_dist.engine.scoring import Intervention, NextToken
    from contrans_dist.models import LanguageModel

_BETWEEN = "\t"
_FIELDS = [
    ("kind", pa.string()), ("scenario", pa.string()), ("argmax", pa.int64()), ("argmax_text", pa.string()),
    ("token_hit", pa.bool_()), ("logit_hit", pa.bool_()), ("logprob", pa.float32()),
    ("shared_with", pa.string()),
]  # fmt: skip


class EmotionEvaluation(ValidatedEvaluation):
    """Does the steered model name the emotion that it is steered to?"""

    benchmark: Literal["emotions"] = "emotions"
    texts: str
    """Scenarios to score: a file with columns `text` and `concept`, or a folder of `<concept>.json`."""
    shots: str | None = None
    """Scenarios that may serve as few-shot examples; None asks without examples."""
    protocol: Literal["default", "paper"] = "default"
    """`paper` asks as the authors' code does, labels of the examples included."""
    template: str | None = None
    """Prompt with `{text}` for the scenario; None is the protocol's."""
    kinds: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")
    """Scenarios that are about the steered concept, and scenarios that are not."""
    per_concept: int | None = Field(None, ge=1)
    """Positive and negative scenarios a concept; None takes all."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The word the model should answer, where it is not the concept's own name."""

    files: ClassVar[tuple[str, ...]] = ("texts", "validation", "shots")

    def on_validation(self) -> Self:
        # Only scenarios of another emotion show an effect.
        changes = {"kinds": ("negative",), "per_concept": None}
        return super().on_validation().model_copy(update=changes)


def _metrics(kind: str) -> tuple[Metric, Metric]:
    scenarios = f"{kind} scenarios"
    return (
        Metric(f"token_acc_{kind}", f"Token Acc on {scenarios}", "token_hit", kind=kind, items=scenarios),
        Metric(f"logit_acc_{kind}", f"Logit Acc on {scenarios}", "logit_hit", kind=kind, items=scenarios),
    )


_NEGATIVE, _POSITIVE = _metrics("negative"), _metrics("positive")


@dataclass(frozen=True)
class EmotionBenchmark(Benchmark[EmotionEvaluation, Item]):
    """Items and how they are judged."""

    all_items: list[Item]
    labels: dict[str, str]
    """The word that should be named, by concept; those of concepts that are not scored are told apart too."""

    settings_class = EmotionEvaluation
    metrics = (_NEGATIVE[0], _POSITIVE[0], _NEGATIVE[1], _POSITIVE[1])
    noun = "scenarios"
    group = ("Emotion", "emotions")

    @classmethod
    def load(cls, settings: EmotionEvaluation) -> Self:
        """Read scenarios (see `read_scenarios`) and make the items.

        Under `paper` the authors' `eval_<concept>.json` are used as they are, and other scenarios get six
        examples with wrong labels; under `default` there are examples, one a concept, when `shots` names
        their scenarios. Raises UserError for data that are missing or of another form.
        """
        location, paper = Location.parse(settings.texts), settings.protocol == "paper"
        if paper and is_official(location):
            if settings.template is not None or settings.shots is not None:
                raise UserError(
                    f"{location}: these prompts are whole; template and shots do not apply to them"
                )
            items = official_items(location, settings.per_concept)
            concepts = list(dict.fromkeys(item.concept for item in items))
        else:
            scenarios = read_scenarios(location)
            concepts = list(dict.fromkeys(str(record["concept"]) for record in scenarios))
            examples = read_scenarios(settings.shots) if settings.shots is not None else []
            items = build_items(
                scenarios, concepts, protocol=settings.protocol,
                template=(settings.template or TEMPLATE).replace("\\n", "\n"),
                shots=6 if paper else len(concepts) if examples else 0, shot_scenarios=examples,
                per_concept=settings.per_concept, seed=settings.seed, labels=settings.labels,
            )  # fmt: skip
        unknown = set(settings.labels) - set(concepts)
        if unknown:
            raise UserError(f"labels: no concept {min(unknown)!r}; there are: {', '.join(concepts)}")
        return cls(settings, items, {concept: settings.labels.get(concept, concept) for concept in concepts})

    def items(self) -> list[Item]:
        """Every item, concept by concept, positive before negative."""
        return self.all_items

    def scores(self, item: Item) -> bool:
        """Whether its kind is among the settings' `kinds`."""
        return not self.settings.kinds or item.kind in self.settings.kinds

    def kind(self, item: Item) -> str:
        return item.kind

    def identity(self) -> dict[str, Any]:
        """The words that are told apart, those of concepts that are not scored among them."""
        return {"words": self.labels}

    def calls(self, lm: LanguageModel, items: Sequence[Item]) -> list[NextTokens]:
        """The token after each prompt; each word's first one is watched."""
        from contrans_dist.engine.scoring import cues

        cut = cues(lm, [item.prompt for item in items], list(self.labels.values()))
        watch = np.array([cue.tokens for cue in cut], dtype=np.int64).reshape(len(items), len(self.labels))
        return [NextTokens([cue.context for cue in cut], watch)]

    def score(
        self, lm: LanguageModel, items: Sequence[Item], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and item, all of them under every intervention given.

        Columns besides the common ones: `kind`, `scenario`, `argmax` (token id), `argmax_text`, `token_hit`,
        `logit_hit`, `logprob` (of the concept's first sub-token), `shared_with` (concepts whose word begins
        with the same sub-token, tabs between), `logits.<concept>` (float32).
        """
        from contrans_dist.models import After

        concepts = list(self.labels)
        (call,) = self.calls(lm, items)
        tokens = call.watch
        after = [After(lm.tokenizer, context) for context in call.contexts]
        got = call.run(lm, items, interventions, self.batch_tokens)
        places = np.array([concepts.index(item.concept) for item in items], dtype=np.int64)
        columns: dict[str, list[list[Any]]] = _judged(got, tokens, places, self.settings.protocol)
        columns |= {f"logits.{concept}": got.logits[:, :, w].tolist() for w, concept in enumerate(concepts)}
        shared = _shared(concepts, tokens, places)
        rows = [
            [
                {
                    "kind": item.kind,
                    "scenario": item.scenario,
                    "argmax_text": after[p].text([int(got.argmax[c, p])], special=True),
                    "shared_with": shared[p],
                    **{name: values[c][p] for name, values in columns.items()},
                }
                for p, item in enumerate(items)
            ]
            for c in range(len(interventions))
        ]
        logits = [(f"logits.{concept}", pa.float32()) for concept in concepts]
        return result_table(items, interventions, rows, [*_FIELDS, *logits])

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """`conditions`, `reference`, `shared_first_tokens` (pairs of concepts) and `notes`."""
        pairs = {
            tuple(sorted((concept, other)))
            for concept, others in _pairs_in(table)
            for other in others.split(_BETWEEN)
            if others
        }
        notes = [
            f"{a} and {b} begin with the same sub-token in this tokenizer: a hit for one is one for both"
            for a, b in sorted(pairs)
        ]
        return {
            **super().summarise(table, reference),
            "shared_first_tokens": [list(pair) for pair in sorted(pairs)],
            "notes": notes,
        }


def _judged(
    got: NextToken, tokens: np.ndarray, places: np.ndarray, protocol: str
) -> dict[str, list[list[Any]]]:
    """Hits and the concept's log-probability, `[C][P]`."""
    row = np.arange(len(places))
    target = tokens[row, places]
    token_hit = got.argmax == target
    mine = got.logits[:, row, places]
    # Strictly the largest: a tie, likely in low precision, must favour no label by its place in a list.
    rivals = np.where(tokens == target[:, None], -np.inf, got.logits)
    logit_hit = mine > rivals.max(axis=2)
    if protocol == "paper":
        logit_hit |= token_hit
    return {
        "argmax": got.argmax.tolist(),
        "token_hit": token_hit.tolist(),
        "logit_hit": logit_hit.tolist(),
        "logprob": got.logprobs[:, row, places].tolist(),
    }


def _shared(concepts: Sequence[str], tokens: np.ndarray, places: np.ndarray) -> list[str]:
    """The other concepts whose word begins with the same sub-token as each item's own."""
    return [
        _BETWEEN.join(c for w, c in enumerate(concepts) if w != mine and row[w] == row[mine])
        for row, mine in zip(tokens, places, strict=True)
    ]


def _pairs_in(table: pa.Table) -> list[tuple[str, str]]:
    """Distinct (concept, shared_with) of a result table."""
    grouped = table.group_by(["concept", "shared_with"]).aggregate([]).to_pylist()
    return [(row["concept"], row["shared_with"]) for row in grouped]
