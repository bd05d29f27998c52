"""Ways to fit a map at one pair of blocks, over many corpora: each one's mean and its worst case."""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contrans_dist.config.map_options import SOURCE_BLOCKS, MapOptions
from contrans_dist.data.spread import spread
from contrans_dist.mapping.map_set import Pair
from mapping.corpora import DRAWN, KINDS, TOLD, Texts
from mapping.variants import BEST, STRENGTHS, Result, Variant, drawn_split, measured_at
from mapping.world import Corpus, World

_MOST_SCORED = 240
Outcomes = dict[str, list[Result]]
"""By corpus, a result a draw."""


def _way(centre: str, regularise: str, count: str) -> Variant:
    words = [f"centre {centre}", "ridge" if regularise == "ridge" else "no ridge"]
    name = ", ".join([*words, "1 block" if count == "1" else f"{count} blocks"])
    centring = {"true": True, "false": False}.get(centre, centre)
    options = {"centre": centring, "regularise": regularise, "source_blocks": int(count)}
    if options == {"centre": _DEFAULT.centring(True), "regularise": "ridge", "source_blocks": SOURCE_BLOCKS}:
        name = f"**{name} (the default)**"
    if options == {"centre": False, "regularise": "none", "source_blocks": 1}:
        name = f"{name} (plain least squares)"
    return BEST.but(name, **options)


_DEFAULT = MapOptions()
WAYS = {
    ",".join(options): _way(*options)
    for options in itertools.product(("token", "true", "false"), ("ridge", "none"), ("2", "1"))
}
"""By the values of centre, regularise and source_blocks."""


@dataclass(frozen=True)
class Summary:
    """What a way to fit reaches: Token Acc, and that of its controls.

    Attributes:
        cells: by corpus, the mean of its draws.
        mean: of the cells.
        worst: the lowest of them.
        random: mean over the corpora, and the highest of them.
        shuffled: the same for the shuffled map.
    """

    cells: dict[str, float]
    mean: float
    worst: float
    random: tuple[float, float]
    shuffled: tuple[float, float]


def summary(outcomes: Outcomes) -> Summary:
    """Corpora count alike, however many draws each has."""
    cells = {kind: float(np.mean([result.accuracy for result in draws])) for kind, draws in outcomes.items()}
    random, shuffled = (
        [float(np.mean([getattr(result, control) for result in draws])) for draws in outcomes.values()]
        for control in ("random", "shuffled")
    )
    return Summary(
        cells,
        float(np.mean(list(cells.values()))),
        min(cells.values()),
        (float(np.mean(random)), max(random)),
        (float(np.mean(shuffled)), max(shuffled)),
    )


def table(reached: dict[str, Outcomes]) -> str:
    """A Markdown table, the way with the highest mean first."""
    told = {name: summary(outcomes) for name, outcomes in reached.items()}
    kinds = list(next(iter(told.values())).cells)
    heads = ["map", *(TOLD[kind] for kind in kinds), "mean", "worst", "random", "shuffled map"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, row in sorted(told.items(), key=lambda item: -item[1].mean):
        cells = [mean_and_spread([result.accuracy for result in reached[name][kind]]) for kind in kinds]
        cells += [f"**{row.mean:.2f}**", f"{row.worst:.2f}"]
        cells += [f"{mean:.2f}, at most {most:.2f}" for mean, most in (row.random, row.shuffled)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def mean_and_spread(values: list[float]) -> str:
    """With the standard deviation, where there are several."""
    text = f"{np.mean(values):.2f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values):.2f}"


def compare(
    world: World, kinds: Sequence[str], pair: Pair, seeds: int, items: int, ways: Sequence[Variant]
) -> None:
    """Print the yardsticks and the table: each way on each corpus, `seeds` draws of each.

    Args:
        world: The models and their texts.
        kinds: Corpora, names of `KINDS`.
        pair: Source and target block.
        seeds: Draws: of a cut that is drawn, and of the texts that are fitted on.
        items: At most so many validation items.
        ways: What is compared.
    """
    texts = {
        kind: [KINDS[kind](world.files, seed) for seed in range(seeds if kind in DRAWN else 1)]
        for kind in kinds
    }
    scored = world.every_negative(world.files.evaluation)
    world.evaluation = [scored[i] for i in spread(len(scored), _MOST_SCORED)]
    scenarios, seen = world.leave_out_seen(
        text for draws in texts.values() for draw in draws for text in draw[0]
    )
    world.validation = [world.validation[i] for i in spread(len(world.validation), items)]
    print(
        f"{scenarios} scenarios, {seen} of them left out: one of the texts shares a sentence. "
        f"{len(world.evaluation)} scored items, {len(world.validation)} to choose the strength on."
    )
    counts = ", ".join(f"{TOLD[kind]} {len(draws[0][0]):,}" for kind, draws in texts.items())
    print(f"Texts: {counts}.")
    print(_yardsticks(world, pair[1]), flush=True)
    reached: dict[str, Outcomes] = {way.name: {} for way in ways}
    for kind, draws in texts.items():
        started = time.monotonic()
        corpora = [_captured(world, draw, pair, ways) for draw in draws]
        captured = time.monotonic() - started
        for seed in range(seeds):
            corpus = corpora[seed % len(corpora)]
            results = measured_at(world, corpus, ways, drawn_split(corpus, seed), pair)
            for way, result in zip(ways, results, strict=True):
                reached[way.name].setdefault(kind, []).append(result)
                _progress(kind, seed, way, result)
        took = time.monotonic() - started
        print(f"{kind}: {took:.0f} s, {captured:.0f} of them harvest", file=sys.stderr, flush=True)
    print(f"\n{table(reached)}")


def _captured(world: World, texts: Texts, pair: Pair, ways: Sequence[Variant]) -> Corpus:
    """The rows of the blocks that these ways read."""
    read = sorted({block for way in ways for block in way.options.blocks_below(pair[0])})
    return world.captured(*texts, read, [pair[1]])


def _progress(kind: str, seed: int, way: Variant, result: Result) -> None:
    told = f"{result.accuracy:.3f} at {result.strength:g} (R2 {result.r2:.2f}, cosine {result.cosine:.2f})"
    controls = f"random {result.random:.3f}, shuffled {result.shuffled:.3f}"
    print(f"{kind} {seed}, {way.name}: {told}, {controls}", file=sys.stderr, flush=True)


def _yardsticks(world: World, block: int) -> str:
    """What the target's own vectors reach at this block, their strength chosen as a map's is, and nothing."""
    rows = {concept: vector.at(block) for concept, vector in world.own.items()}
    accuracy = world.accuracy(world.validation, rows, block, STRENGTHS, False)
    strength = STRENGTHS[int(accuracy.argmax())]
    (scored,) = world.accuracy(world.evaluation, rows, block, [strength], False)
    (random,) = world.accuracy(world.evaluation, rows, block, [strength], True)
    (base,) = world.accuracy(world.evaluation, rows, block, [0.0], False)
    return (
        f"The target's own vectors at block {block}: {scored:.2f} (strength {strength:g}; a random direction "
        f"of their norm {random:.2f}); nothing added: {base:.2f}."
    )
