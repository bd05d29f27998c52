"""What a benchmark asks a model about its items, as the cost of its calls of the engine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks import Call as EngineCall
from contrans_dist.benchmarks.calls import Completions, Continuations, NextTokens
from contrans_dist.engine.scoring import Intervention
from contrans_dist.pipeline.plan.calls import Call, Generated, Scored
from contrans_dist.pipeline.plan.sides import Side


class Asking:
    """The calls of one benchmark on one model; items that come again are cut into tokens once."""

    def __init__(self, benchmark: Benchmark, side: Side, most: int) -> None:
        self.benchmark, self.side, self.most = benchmark, side, most
        self._known: dict[tuple[str, int, bool], list[tuple[EngineCall, Scored | None]]] = {}

    @property
    def tokens(self) -> int:
        """Of all that was asked, each item once."""
        calls = [call for (*_, apart), known in self._known.items() if not apart for call, _ in known]
        return sum(
            len(ids)
            for call in calls
            for ids in (call.prompts if isinstance(call, Completions) else call.sequences)
        )

    def of(self, items: Sequence[Any], interventions: Sequence[Intervention]) -> list[Call]:
        """What `Benchmark.score` asks the engine for."""
        costs: list[Call] = []
        for apart in (False, True):
            blocks = tuple(each.block for each in interventions if _per_item(each) == apart)
            for call, scored in self._calls(items, apart) if blocks or not apart else ():
                if isinstance(call, Completions):
                    if not apart:
                        texts = call.prompts, len(interventions), call.max_new_tokens, call.batch_size
                        costs.append(Generated.of(*texts))
                elif blocks and scored is not None:
                    costs.append(replace(scored, blocks=blocks))
        return costs

    def _calls(self, items: Sequence[Any], apart: bool) -> list[tuple[EngineCall, Scored | None]]:
        key = items[0].id, len(items), apart
        if key not in self._known:
            self._known[key] = [
                (
                    call,
                    None
                    if isinstance(call, Completions)
                    else self._scored(call.sequences, call.positions, apart),
                )
                for call in self.benchmark.calls(self.side.lm, items, apart)
            ]
        return self._known[key]

    def _scored(self, call: NextTokens | Continuations, apart: bool) -> Scored:
        return Scored.of(self.side.lm, call.sequences, call.positions, (None,), apart, self.most)


def _per_item(intervention: Intervention) -> bool:
    """Whether it has a vector for each item."""
    return any(np.ndim(vector) == 2 for vector in intervention.vectors.values())
