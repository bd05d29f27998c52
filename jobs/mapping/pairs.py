"""What every pair of blocks is worth: how well it is predicted, and how well it steers."""

import numpy as np

import contrans_dist as ct
from contrans_dist.benchmarks.scenarios import Item
from contrans_dist.data.spread import spread
from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.mapping.heldout import split_of
from mapping.variants import BEST, STRENGTHS, carried, fitted
from mapping.world import Corpus, World


def pairs_table(world: World, corpus: Corpus, targets: list[int], most_items: int) -> None:
    """Print a Markdown table: for each target block, of every source block held-out R2, mean cosine of the
    carried vectors to the target's own, gain on contrast prompts in nats (`benchmarks.contrast`), and Token
    Acc on validation items, both at the strength that is best for them."""
    split = split_of(corpus.origins)
    items = [world.validation[i] for i in spread(len(world.validation), most_items)]
    width = max(world.source.d, world.target.d)
    r2 = r2_table(corpus.source, {block: corpus.target[block] for block in targets}, split, width=width)
    sources = sorted(corpus.source)
    heads = [f"from {block}" for block in sources]
    print(f"| target block | own vectors | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}", flush=True)
    for j, target in enumerate(targets):
        rows = {concept: vector.at(target) for concept, vector in world.own.items()}
        cells = [_steers(world, items, rows, target)]
        for i, source in enumerate(sources):
            rows = carried(world, fitted(world, corpus, BEST, split, (source, target)), BEST)
            near = np.mean([ct.cosine(row, world.own[concept].at(target)) for concept, row in rows.items()])
            cells.append(f"{r2[i, j]:.2f} / {near:.2f} / {_steers(world, items, rows, target)}")
        print(f"| {target} | {' | '.join(cells)} |", flush=True)


def _steers(world: World, items: list[Item], rows: dict[str, np.ndarray], block: int) -> str:
    """Gain on contrast prompts / Token Acc."""
    gain = world.contrast_gain(rows, block, STRENGTHS).max()
    return f"{gain:.2f} / {world.accuracy(items, rows, block, STRENGTHS, False).max():.2f}"
