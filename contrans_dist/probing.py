"""What steering does to single prompts: continuations before and after, and tokens that rise and fall."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contrans_dist.catalogue import load_benchmark
from contrans_dist.cluster import connected
from contrans_dist.conditions import Steering
from contrans_dist.config import ClusterSettings, EvaluationSettings, ModelSettings
from contrans_dist.errors import RunError
from contrans_dist.models import encode_many
from contrans_dist.models.placement import Placement
from contrans_dist.placing import place
from contrans_dist.pool import Task, run_tasks
from contrans_dist.progress import Progress
from contrans_dist.scoring import BASE, Intervention, generate, token_changes
from contrans_dist.storage import Location
from contrans_dist.systems import TARGET, System

EXAMPLES, TOKENS = "examples.parquet", "tokens.parquet"
_NEW_TOKENS = 40
_MOST_TOKENS = 20
"""Tokens kept a concept and direction; the papers print ten."""


@dataclass(frozen=True)
class Probe:
    """One concept's prompts, and the vector they are read under."""

    concept: str
    condition: str
    strength: float
    rows: dict[int, NDArray[np.float32]]
    examples: list[Any]
    """Items that are continued."""
    prompts: list[str]
    """Prompts whose next tokens are compared."""


class ProbeActor:
    """A loaded target that continues prompts and compares next tokens."""

    def __init__(self, model: ModelSettings, placement: Placement) -> None:
        self.lm = System(TARGET, model).load(placement.device_map)

    def ready(self) -> str:
        return str(self.lm.device)

    def run(self, probe: Probe) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of `examples.parquet` and of `tokens.parquet` for one concept."""
        steered = Intervention(probe.condition, probe.rows, probe.strength)
        return self._examples(probe, steered), self._tokens(probe, steered)

    def _examples(self, probe: Probe, steered: Intervention) -> list[dict[str, Any]]:
        if not probe.examples:
            return []
        prompts = encode_many(self.lm, [item.prompt for item in probe.examples])
        both = [BASE, steered]
        texts = generate(self.lm, prompts, both, max_new_tokens=_NEW_TOKENS)
        return [
            {
                "concept": probe.concept,
                "item": item.id,
                "kind": getattr(item, "kind", ""),
                "prompt": item.prompt,
                "condition": each.name,
                "strength": each.strength,
                "continuation": texts[c][p],
            }
            for p, item in enumerate(probe.examples)
            for c, each in enumerate(both)
        ]

    def _tokens(self, probe: Probe, steered: Intervention) -> list[dict[str, Any]]:
        if not probe.prompts:
            return []
        found = token_changes(self.lm, encode_many(self.lm, probe.prompts), steered)
        rows = []
        for direction, tokens in (("up", found.up), ("down", found.down)):
            for token, count in Counter(tokens.ravel().tolist()).most_common(_MOST_TOKENS):
                rows.append(
                    {
                        "concept": probe.concept,
                        "condition": probe.condition,
                        "strength": probe.strength,
                        "direction": direction,
                        "token_id": token,
                        "token_text": self.lm.tokenizer.decode([token]),
                        "count": count,
                        "n_prompts": len(probe.prompts),
                    }
                )
        return rows


def probe(
    model: ModelSettings,
    settings: EvaluationSettings,
    steering: Steering,
    condition: str,
    strength: float,
    out: Location,
    cluster: ClusterSettings,
) -> None:
    """Write `examples.parquet` and `tokens.parquet` into an evaluation's folder, as its settings ask.

    Read under one condition at one strength, on each concept's negative items where items have a kind. Raises
    RunError when a concept failed.
    """
    items = load_benchmark(settings).items()
    probes = [
        _probe(settings, items, concept, condition, strength, rows[condition])
        for concept, rows in steering.rows.items()
        if condition in rows
    ]
    examples: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []

    with connected(cluster.address), Progress("probe", len(probes), "concepts") as progress:

        def keep(_: Task, found: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
            examples.extend(found[0])
            tokens.extend(found[1])
            progress.advance(1)

        size, placement = place(model, cluster, head=True)
        tasks = [Task(each.concept, each) for each in probes]
        outcome = run_tasks(ProbeActor, (model, placement), tasks, size, keep)
    if outcome.failures:
        concept, reason = next(iter(outcome.failures.items()))
        raise RunError(f"{out}: prompts of {concept!r} were not read ({reason}); run the same command again")
    order = {each.concept: place for place, each in enumerate(probes)}
    for name, rows in ((EXAMPLES, examples), (TOKENS, tokens)):
        if rows:
            rows.sort(key=lambda row: order[row["concept"]])
            with (out / name).staged() as path:
                pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def _probe(
    settings: EvaluationSettings,
    items: Sequence[Any],
    concept: str,
    condition: str,
    strength: float,
    rows: dict[int, NDArray[np.float32]],
) -> Probe:
    own = [
        item
        for item in items
        if item.concept in ("", concept) and getattr(item, "kind", "negative") != "positive"
    ]
    return Probe(
        concept=concept,
        condition=condition,
        strength=strength,
        rows=rows,
        examples=_spread(own, settings.examples),
        prompts=[item.prompt for item in _spread(own, settings.token_changes)],
    )


def _spread(items: list[Any], count: int) -> list[Any]:
    """So many items, evenly spread over the list."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
