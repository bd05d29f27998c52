"""The strength of each condition, chosen on validation items under a perplexity budget."""

import itertools
import random

import pytest

from contrans_dist.evaluation.strength_search import choose_strength
from contrans_dist.store.results import SearchFile, Trial


def by_hand(
    scores: dict[float, float], costs: dict[float, float], base: float | None, budget: float, higher: bool
) -> tuple[float, bool]:
    """The definition as a loop."""
    best: float | None = None
    for strength in sorted(scores, key=abs):
        if strength == 0 or (base is not None and costs.get(strength, float("inf")) > budget * base):
            continue
        better = best is None or (
            scores[strength] > scores[best] if higher else scores[strength] < scores[best]
        )
        best = strength if better else best
    return (best, True) if best is not None else (min((s for s in scores if s), key=abs), False)


def choose(
    scores: dict[float, float], costs: dict[float, float], base: float | None, budget: float, higher: bool
) -> tuple[float, bool]:
    tried = [
        Trial(condition="vector", strength=strength, score=score, perplexity=costs.get(strength))
        for strength, score in scores.items()
    ]
    trials = SearchFile(
        criterion="mc1", higher=higher, budget=budget if base is not None else None, base_perplexity=base,
        candidates=tried, chosen={},
    )  # fmt: skip
    best, within = choose_strength(tried, trials)
    return best.strength, within


@pytest.mark.parametrize(("higher", "with_budget"), list(itertools.product([True, False], repeat=2)))
def test_the_choice_is_the_definition(higher: bool, with_budget: bool) -> None:
    rng = random.Random(3)
    for _ in range(300):
        strengths = rng.sample([0.0, 0.3, 0.5, 0.8, 1.0, 1.5, -0.5], rng.randint(2, 6))
        if not any(strengths):
            continue
        scores = {s: rng.choice([0.1, 0.2, 0.3]) for s in strengths}
        costs = {s: rng.choice([10.0, 11.0, 12.5, 30.0]) for s in strengths} if with_budget else {}
        base = 10.0 if with_budget else None
        assert choose(scores, costs, base, 1.1, higher) == by_hand(scores, costs, base, 1.1, higher)


def test_without_a_strength_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="no strength other than 0"):
        choose({0.0: 0.5}, {}, None, 1.1, True)
