"""What a benchmark asks of one model, laid out without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.benchmarks import Benchmark, Completions, ScoredItem
from contrans_dist.benchmarks.calls import Call, Continuations, Ids, NextTokens
from contrans_dist.engine.scoring import Intervention
from contrans_dist.pipeline.plan.costs import Cost, generated, scored
from contrans_dist.pipeline.plan.models import PlannedModel


@dataclass(frozen=True)
class Once:
    """What is run by the model as it is, however many interventions there are."""

    cost: Cost


class Calls:
    """What a benchmark asks of one model; items that come again are cut into tokens once.

    `most`: tokens of a batch.
    """

    def __init__(self, benchmark: Benchmark, model: PlannedModel, most: int) -> None:
        self.benchmark, self.lm, self.most = benchmark, model.lm, most
        self.texts: list[Ids] = []
        """Token ids of all that was asked, each item's once."""
        self._known: dict[tuple[str, int, bool], list[Counted] | None] = {}

    def cost(self, items: Sequence[ScoredItem], interventions: Sequence[Intervention]) -> Cost:
        """Of the calls that `Benchmark.score` makes."""
        own = [intervention for intervention in interventions if intervention.per_item]
        separate = self._counted(items, apart=True) if own else None
        if separate is None:
            return _under(self._counted(items), interventions)
        others = [intervention for intervention in interventions if not intervention.per_item]
        return _under(self._counted(items), others) + _under(separate, own)

    def _counted(self, items: Sequence[ScoredItem], apart: bool = False) -> "list[Counted] | None":
        """The calls without an intervention; None for `apart` where the benchmark asks nothing apart."""
        key = items[0].id, len(items), apart
        if key not in self._known:
            asked = (self.benchmark.calls_apart if apart else self.benchmark.calls)(self.lm, items)
            self._known[key] = None if asked is None else [self._count(call) for call in asked]
            for call in asked or () if not apart else ():
                self.texts += call.prompts if isinstance(call, Completions) else call.sequences
        return self._known[key]

    def _count(self, call: Call) -> "Counted":
        if isinstance(call, Completions):
            return call
        texts = call.sequences
        owners = call.owners if isinstance(call, Continuations) else range(len(texts))
        cost = scored(self.lm, texts, call.positions, self.most, owners)
        return Once(cost) if isinstance(call, NextTokens) and not call.steered else cost


Counted = Completions | Once | Cost
"""Texts to be written, or the cost of scoring some."""


def _under(calls: Sequence[Counted] | None, interventions: Sequence[Intervention]) -> Cost:
    cost = Cost()
    for call in calls or () if interventions else ():
        if isinstance(call, Cost):
            cost += call.under(interventions)
        elif isinstance(call, Once):
            cost += call.cost
        else:
            cost += generated(call.prompts, len(interventions), call.max_new_tokens, call.batch_size)
    return cost
