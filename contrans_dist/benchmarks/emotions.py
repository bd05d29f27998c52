"""The emotion benchmark of ConTrans: does a steered model name the emotion that it is steered to?

Token Acc: the next token, of the whole vocabulary, is the first sub-token of the emotion's word. Logit Acc:
of the emotions' first sub-tokens, this one has the largest logit. Each over scenarios of the emotion
(positive) and of the others (negative).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from contrans_dist.benchmarks.scenarios import (
    TEMPLATE,
    Item,
    ProtocolName,
    build_items,
    is_official,
    official_items,
    read_scenarios,
)
from contrans_dist.benchmarks.summary import summarise_hits
from contrans_dist.engine.scoring import BASE, Intervention, NextToken, cues, next_token
from contrans_dist.errors import UserError
from contrans_dist.models import After, LanguageModel
from contrans_dist.store.location import Location

_BETWEEN = "\t"
METRICS = {
    "token_acc_negative": ("token_hit", "negative"),
    "token_acc_positive": ("token_hit", "positive"),
    "logit_acc_negative": ("logit_hit", "negative"),
    "logit_acc_positive": ("logit_hit", "positive"),
}
_FIELDS = [
    ("item", pa.string()), ("concept", pa.string()), ("kind", pa.string()), ("condition", pa.string()),
    ("strength", pa.float64()), ("block", pa.int64()), ("scenario", pa.string()), ("argmax", pa.int64()),
    ("argmax_text", pa.string()), ("token_hit", pa.bool_()), ("logit_hit", pa.bool_()),
    ("logprob", pa.float32()), ("shared_with", pa.string()),
]  # fmt: skip


@dataclass(frozen=True)
class EmotionBenchmark:
    """Items and how they are judged; `labels` maps each concept to the word that should be named."""

    all_items: list[Item]
    labels: dict[str, str]
    protocol: ProtocolName = "default"
    batch_tokens: int = 4096
    name: str = field(default="emotions", init=False)

    @classmethod
    def load(
        cls,
        texts: Location | str,
        *,
        concepts: Sequence[str] | None = None,
        protocol: ProtocolName = "default",
        template: str | None = None,
        shots: Location | str | None = None,
        n_shots: int | None = None,
        per_concept: int | None = None,
        labels: Mapping[str, str] | None = None,
        seed: int = 0,
        batch_tokens: int = 4096,
    ) -> "EmotionBenchmark":
        """Read scenarios (see `read_scenarios`) and make the items.

        Under `paper` the authors' `eval_<concept>.json` are used as they are, and other scenarios get six
        examples with wrong labels; under `default` there are examples, one a concept, when `shots` names
        their scenarios. Raises UserError for data that are missing or of another form.
        """
        location = Location.parse(texts)
        if protocol == "paper" and is_official(location):
            if template is not None or shots is not None:
                raise UserError(
                    f"{location}: these prompts are whole; template and shots do not apply to them"
                )
            items = official_items(location, concepts, per_concept)
            named = list(dict.fromkeys(item.concept for item in items))
        else:
            scenarios = read_scenarios(location)
            named = list(concepts or dict.fromkeys(str(record["concept"]) for record in scenarios))
            examples = read_scenarios(shots) if shots is not None else []
            usual = 6 if protocol == "paper" else len(named) if examples else 0
            items = build_items(
                scenarios, named, protocol=protocol, template=(template or TEMPLATE).replace("\\n", "\n"),
                shots=usual if n_shots is None else n_shots, shot_scenarios=examples,
                per_concept=per_concept, seed=seed, labels=labels,
            )  # fmt: skip
        unknown = set(labels or {}) - set(named)
        if unknown:
            raise UserError(f"labels: no concept {min(unknown)!r}; there are: {', '.join(named)}")
        return cls(items, {c: (labels or {}).get(c, c) for c in named}, protocol, batch_tokens)

    def items(self) -> list[Item]:
        """Every item, concept by concept, positive before negative."""
        return self.all_items

    def identity(self) -> dict[str, Any]:
        """The words that are told apart, those of concepts that are not scored among them."""
        return {"words": self.labels}

    def score(
        self, lm: LanguageModel, items: Sequence[Item], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and item, all of them under every intervention given.

        Columns: `item`, `concept`, `kind`, `condition`, `strength`, `block` (lowest one steered, null for
        none), `scenario`, `argmax` (token id), `argmax_text`, `token_hit`, `logit_hit`, `logprob` (of the
        concept's first sub-token), `shared_with` (concepts whose word begins with the same sub-token, tabs
        between), `logits.<concept>` (float32).
        """
        concepts = list(self.labels)
        found = cues(lm, [item.prompt for item in items], list(self.labels.values()))
        tokens = np.array([cue.tokens for cue in found], dtype=np.int64).reshape(len(items), len(concepts))
        contexts = [cue.context for cue in found]
        for item, context in zip(items, contexts, strict=True):
            if lm.context is not None and len(context) > lm.context:
                raise UserError(
                    f"item {item.id} has {len(context)} tokens, the model's context holds {lm.context}: "
                    "use fewer examples"
                )
        after = [After(lm.tokenizer, context) for context in contexts]
        got = next_token(lm, contexts, interventions, watch=tokens, batch_tokens=self.batch_tokens)
        own = np.array([concepts.index(item.concept) for item in items], dtype=np.int64)
        shared = _shared(concepts, tokens, own)
        columns = _judged(got, tokens, own, self.protocol)
        n_c, n_p = len(interventions), len(items)
        columns |= {
            "item": [item.id for item in items] * n_c,
            "concept": [item.concept for item in items] * n_c,
            "kind": [item.kind for item in items] * n_c,
            "scenario": [item.scenario for item in items] * n_c,
            **{
                name: [each.columns[name] for each in interventions for _ in range(n_p)]
                for name in BASE.columns
            },
            "argmax_text": [
                each.text([token], special=True)
                for row in got.argmax.tolist()
                for each, token in zip(after, row, strict=True)
            ],
            "shared_with": shared * n_c,
        }
        arrays = {name: pa.array(columns[name], type=kind) for name, kind in _FIELDS}
        for w, concept in enumerate(concepts):
            arrays[f"logits.{concept}"] = pa.array(got.logits[:, :, w].ravel(), type=pa.float32())
        return pa.table(arrays)

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
            **summarise_hits(table, METRICS, reference),
            "shared_first_tokens": [list(pair) for pair in sorted(pairs)],
            "notes": notes,
        }


def _judged(got: NextToken, tokens: np.ndarray, own: np.ndarray, protocol: ProtocolName) -> dict[str, Any]:
    """Hits and the concept's log-probability, flattened from `[C, P]`."""
    row = np.arange(len(own))
    target = tokens[row, own]
    token_hit = got.argmax == target
    mine = got.logits[:, row, own]
    # Strictly the largest: a tie, likely in low precision, must favour no label by its place in a list.
    rivals = np.where(tokens == target[:, None], -np.inf, got.logits)
    logit_hit = mine > rivals.max(axis=2)
    if protocol == "paper":
        logit_hit |= token_hit
    return {
        "argmax": got.argmax.ravel(),
        "token_hit": token_hit.ravel(),
        "logit_hit": logit_hit.ravel(),
        "logprob": got.logprobs[:, row, own].ravel(),
    }


def _shared(concepts: Sequence[str], tokens: np.ndarray, own: np.ndarray) -> list[str]:
    """The other concepts with each item's first sub-token, joined by commas; warns of every such pair."""
    for a, b in combinations(range(len(concepts)), 2):
        if (tokens[:, a] == tokens[:, b]).any():
            warnings.warn(
                f"{concepts[a]!r} and {concepts[b]!r} begin with the same sub-token and cannot be told apart",
                stacklevel=3,
            )
    return [
        _BETWEEN.join(c for w, c in enumerate(concepts) if w != mine and row[w] == row[mine])
        for row, mine in zip(tokens, own, strict=True)
    ]


def _pairs_in(table: pa.Table) -> list[tuple[str, str]]:
    """Distinct (concept, shared_with) of a result table."""
    grouped = table.group_by(["concept", "shared_with"]).aggregate([]).to_pylist()
    return [(row["concept"], row["shared_with"]) for row in grouped]
