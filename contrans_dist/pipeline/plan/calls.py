"""What a benchmark asks of one model, laid out without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrans_dist.benchmarks import Benchmark, Completions, ScoredItem
from contrans_dist.benchmarks.calls import Continuations, Ids, NextTokens
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
        self._known: dict[tuple[str, int, bool, bool], list[Completions | Once | Cost]] = {}
        self._separate: bool | None = None

    def cost(self, items: Sequence[ScoredItem], interventions: Sequence[Intervention]) -> Cost:
        """Of the calls that `Benchmark.score` makes."""
        own = [intervention for intervention in interventions if intervention.per_item]
        if not own or not self._asks_apart(items):
            return self._cost(items, interventions)
        others = [intervention for intervention in interventions if not intervention.per_item]
        return self._cost(items, others) + self._cost(items, own, apart=True)

    def _asks_apart(self, items: Sequence[ScoredItem]) -> bool:
        if self._separate is None:
            self._separate = self.benchmark.calls_apart(self.lm, items) is not None
        return self._separate

    def _cost(
        self, items: Sequence[ScoredItem], interventions: Sequence[Intervention], apart: bool = False
    ) -> Cost:
        cost, kin = Cost(), any(intervention.per_item for intervention in interventions)
        for call in self._calls(items, kin, apart) if interventions else ():
            if isinstance(call, Cost):
                cost += call.under(interventions)
            elif isinstance(call, Once):
                cost += call.cost
            else:
                cost += generated(call.prompts, len(interventions), call.max_new_tokens, call.batch_size)
        return cost

    def _calls(self, items: Sequence[ScoredItem], kin: bool, apart: bool) -> list[Completions | Once | Cost]:
        """The calls without an intervention: texts to be written, or the cost of scoring some. `kin`: whether
        only those of an item share a row."""
        key = items[0].id, len(items), kin, apart
        if key not in self._known:
            self._known[key] = []
            asked = self.benchmark.calls_apart if apart else self.benchmark.calls
            for call in asked(self.lm, items) or ():
                texts: list[Ids]
                if isinstance(call, Completions):
                    texts = call.prompts
                    self._known[key].append(call)
                else:
                    texts = call.sequences
                    owners = call.owners if isinstance(call, Continuations) else range(len(texts))
                    bare = isinstance(call, NextTokens) and not call.steered
                    alike = owners if kin and not bare else None
                    cost = scored(self.lm, texts, call.positions, self.most, alike)
                    self._known[key].append(Once(cost) if bare else cost)
                self.texts += [] if apart else texts
        return self._known[key]
