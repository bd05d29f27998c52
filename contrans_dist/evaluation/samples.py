"""What steering does to single prompts: continuations before and after, and tokens that rise and fall."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrans_dist.benchmarks import Benchmark, ScoredItem, load_benchmark
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings
from contrans_dist.console import Progress, one_by_one
from contrans_dist.data.spread import spread
from contrans_dist.distributed.cluster import connected
from contrans_dist.distributed.pool import Task
from contrans_dist.engine.scoring import BASE, Intervention, generate, token_changes
from contrans_dist.errors import RunError, UserError
from contrans_dist.evaluation.actors import SystemActor, run_on
from contrans_dist.evaluation.baselines import TARGET, System
from contrans_dist.evaluation.sizes import Texts
from contrans_dist.evaluation.steering import Steering
from contrans_dist.evaluation.work_units import scored_items
from contrans_dist.models import After, LanguageModel, cut_to, encode_many
from contrans_dist.store.location import Location
from contrans_dist.store.tables import (
    EXAMPLES,
    TOKENS,
    ContinuationRow,
    TokenRow,
    facts_of,
    read_table,
    table_of,
    write_table,
)

NEW_TOKENS = 40
_TWICE = 2
"""Each prompt is read without the vector and under it."""
_MOST_TOKENS = 20
"""Tokens kept a concept and direction; the papers print ten."""


@dataclass(frozen=True)
class Probe:
    """One concept's prompts, and the vector they are read under."""

    concept: str
    condition: str
    strength: float
    rows: dict[int, NDArray[np.float32]]
    examples: Sequence[ScoredItem]
    """Items that are continued."""
    kinds: list[str]
    """Which kind of item each of them is."""
    prompts: list[str]
    """Prompts whose next tokens are compared."""

    @property
    def size(self) -> int:
        """Prompts that are read."""
        return len(self.examples) + len(self.prompts)

    def on(self, actor: SystemActor, _: Any) -> tuple[list[ContinuationRow], list[TokenRow]]:
        """Rows of `examples.parquet` and of `tokens.parquet` for one concept."""
        steered = Intervention(self.condition, self.rows, self.strength)
        continuations: list[ContinuationRow] = []
        tokens: list[TokenRow] = []
        for examples in one_by_one((True, False)):
            if examples:
                continuations = self._examples(actor.lm, steered)
            else:
                tokens = self._tokens(actor.lm, steered)
        return continuations, tokens

    def _examples(self, lm: LanguageModel, steered: Intervention) -> list[ContinuationRow]:
        if not self.examples:
            return []
        prompts = _prompts(lm, [item.prompt for item in self.examples], NEW_TOKENS)
        both = [BASE, steered]
        texts = generate(lm, prompts, both, max_new_tokens=NEW_TOKENS)
        return [
            ContinuationRow(
                concept=self.concept,
                item=item.id,
                kind=self.kinds[p],
                prompt=item.prompt,
                condition=intervention.name,
                strength=intervention.strength,
                continuation=texts[c][p],
            )
            for p, item in enumerate(self.examples)
            for c, intervention in enumerate(both)
        ]

    def _tokens(self, lm: LanguageModel, steered: Intervention) -> list[TokenRow]:
        if not self.prompts:
            return []
        prompts = _prompts(lm, self.prompts)
        changes = token_changes(lm, prompts, steered)
        after = After(lm.tokenizer, prompts[0])
        rows = []
        for direction, tokens in (("up", changes.up), ("down", changes.down)):
            for token, count in Counter(tokens.ravel().tolist()).most_common(_MOST_TOKENS):
                rows.append(
                    TokenRow(
                        concept=self.concept,
                        condition=self.condition,
                        strength=self.strength,
                        direction=direction,
                        token_id=token,
                        token_text=after.text([token], special=True),
                        count=count,
                        n_prompts=len(self.prompts),
                    )
                )
        return rows


def _prompts(lm: LanguageModel, texts: list[str], new_tokens: int = 0) -> list[list[int]]:
    return [cut_to(lm, ids, new_tokens) for ids in encode_many(lm, texts)]


def probe(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    condition: str,
    strength: float,
    out: Location,
    cluster: ClusterSettings,
    fingerprint: str,
) -> None:
    """Write `examples.parquet` and `tokens.parquet` into an evaluation's folder, as its settings ask.

    Read under one condition at one strength, on each concept's items but the positive ones; a
    prompt that the context has no room for loses its first tokens. `fingerprint`: of the evaluation; files
    that already stand for it are kept, and those not asked for are taken away. Raises RunError when a
    concept failed.
    """
    counts = {EXAMPLES: settings.examples, TOKENS: settings.token_changes}
    facts = {"evaluation": fingerprint, "condition": condition, "strength": strength}
    wanted = {name: {**facts, "prompts": count} for name, count in counts.items() if count}
    for name in counts:
        if name not in wanted:
            (out / name).delete()
    if all(_facts(out / name) == facts for name, facts in wanted.items()):
        return
    benchmark = load_benchmark(settings)
    items = scored_items(benchmark, settings, steering)
    probes = [
        probe_of(benchmark, settings, items, concept, condition, strength, rows[condition])
        for concept, rows in steering.rows.items()
        if condition in rows
    ]
    continuations: list[ContinuationRow] = []
    tokens: list[TokenRow] = []
    total = sum(probe.size for probe in probes)
    with connected(cluster.address), Progress("probe", total, "prompts") as progress:

        def keep(task: Task, rows: tuple[list[ContinuationRow], list[TokenRow]]) -> None:
            continuations.extend(rows[0])
            tokens.extend(rows[1])
            progress.finish(task.payload.size, total)

        def reached(besides: float) -> None:
            progress.under_way(besides, total)

        tasks = [Task(probe.concept, probe) for probe in probes]
        read = sum(len(item.prompt) for probe in probes for item in probe.examples)
        read += sum(len(prompt) for probe in probes for prompt in probe.prompts)
        written = NEW_TOKENS * sum(len(probe.examples) for probe in probes)
        texts = Texts(_TWICE * read, _TWICE * written)
        outcome = run_on(System(TARGET, model), cluster, tasks, keep, on_progress=reached, texts=texts)
    if outcome.failures:
        concept, reason = next(iter(outcome.failures.items()))
        raise RunError(f"{out}: prompts of {concept!r} were not read ({reason}); run the same command again")
    order = {probe.concept: place for place, probe in enumerate(probes)}
    for name, rows, row in ((EXAMPLES, continuations, ContinuationRow), (TOKENS, tokens, TokenRow)):
        if name in wanted:
            rows.sort(key=lambda row: order[row.concept])
            write_table(out / name, table_of(rows, row), wanted[name])


def _facts(location: Location) -> dict[str, Any] | None:
    """What a file that is there was read under; None for none, and for a damaged one, which is made again."""
    try:
        return facts_of(read_table(location)) if location.exists() else None
    except UserError:
        return None


def probe_of(
    benchmark: Benchmark,
    settings: EvaluationSettings,
    items: Sequence[ScoredItem],
    concept: str,
    condition: str,
    strength: float,
    rows: dict[int, NDArray[np.float32]],
) -> Probe:
    """What is read for one concept: its items but the positive ones, spread over all of them."""
    readable = [
        item for item in items if item.concept in ("", concept) and benchmark.kind(item) != "positive"
    ]
    examples = [readable[i] for i in spread(len(readable), settings.examples)]
    return Probe(
        concept=concept,
        condition=condition,
        strength=strength,
        rows=rows,
        examples=examples,
        kinds=[benchmark.kind(item) for item in examples],
        prompts=[readable[i].prompt for i in spread(len(readable), settings.token_changes)],
    )
