"""What every pair of blocks is worth: how well it is predicted, and how well it steers."""

import numpy as np

import contrans_dist as ct
from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.mapping.heldout import split_of
from mapping.variants import BEST, STRENGTHS, carried, fitted
from mapping.world import Corpus, World


def pairs_table(world: World, corpus: Corpus, targets: list[int], most_items: int) -> None:
    """Print a Markdown table: for each target block, of every source block held-out R2, mean cosine of the
    carried vectors to the target's own, and Token Acc at the strength that is best, on validation items."""
    split = split_of(corpus.origins)
    items = [world.validation[int(i)] for i in _spread(len(world.validation), most_items)]
    width = max(world.source.d, world.target.d)
    r2 = r2_table(corpus.source, {block: corpus.target[block] for block in targets}, split, width=width)
    sources = sorted(corpus.source)
    heads = [f"from {block}" for block in sources]
    print(f"| target block | own vectors | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}", flush=True)
    for j, target in enumerate(targets):
        rows = {concept: vector.at(target) for concept, vector in world.own.items()}
        cells = [f"{world.accuracy(items, rows, target, STRENGTHS, False).max():.2f}"]
        for i, source in enumerate(sources):
            rows = carried(world, fitted(world, corpus, BEST, split, (source, target)), BEST)
            near = np.mean([ct.cosine(row, world.own[concept].at(target)) for concept, row in rows.items()])
            reached = world.accuracy(items, rows, target, STRENGTHS, False).max()
            cells.append(f"{r2[i, j]:.2f} / {near:.2f} / {reached:.2f}")
        print(f"| {target} | {' | '.join(cells)} |", flush=True)


def _spread(n: int, most: int) -> np.ndarray:
    return np.linspace(0, n - 1, min(n, most)).round()
