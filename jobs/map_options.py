"""What each option of the map adds between two small models, and what is lost without it: a Markdown table.

    python jobs/map_options.py --demo
    python jobs/map_options.py --source DIR --target DIR --corpus FILE --words very --contrast FILE \
        --validation FILE --scenarios FILE --template '{text} {name} was very'

Token Acc is over negative scenarios, of all concepts together. Block pair and strength are chosen on the
validation scenarios, scored are the others, but for those that share a sentence with a text behind vectors,
choices or maps. Figures are means over `--seeds` draws
of the texts that the map is fitted on (of the cut as well, where texts are cut at random words), ± the
standard deviation. Runs in this process, without Ray.

`--rows 60 150 400` instead: what few rows carry over, at matched depth, with and without some of the options.
`--pairs 8 14 20` instead: R2, cosine to the target's own vectors and Token Acc of every source block with
these target blocks, on `--items` validation items.
`--corpora random sentence other` instead (without names, all there are): every way to fit, at the blocks of
`--pair`, on each of these corpora, with its mean over them and its worst case; `--other` names the texts of
another world.
"""

import argparse
import sys
import time
from dataclasses import replace

import numpy as np
from mapping.corpora import KINDS
from mapping.few import rare, thinned
from mapping.pairs import pairs_table
from mapping.variants import (
    ADDED,
    CUTS,
    FEW,
    REMOVED,
    STRENGTHS,
    Result,
    Variant,
    measured,
    reached,
)
from mapping.ways import WAYS, compare, mean_and_spread
from mapping.world import Corpus, Files, World
from speed.machine import processor

HEADER = (
    "| map | blocks | strength | R2 | cosine to own | Token Acc | random | shuffled map |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", action="store_true", help="the bundled pair and its texts")
    for name in ("source", "target", "corpus", "contrast", "validation", "scenarios"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--template", help="prompt around contrast texts and scenarios")
    parser.add_argument("--source-template", help="another for the source; default: the same")
    parser.add_argument("--corpus-source-template", default="{text}")
    parser.add_argument("--words", nargs="*", default=[], help="cut the corpus after these words")
    parser.add_argument("--limit", type=int, help="texts of the corpus")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("added", "removed", "cuts"), help="one part of the table")
    parser.add_argument("--rows", nargs="+", type=int, help="so many fit rows, and all of them")
    parser.add_argument("--pairs", nargs="+", type=int, help="target blocks that are compared")
    parser.add_argument("--items", type=int, default=96, help="validation items for --pairs and --corpora")
    parser.add_argument("--corpora", nargs="*", choices=KINDS, help="compare ways to fit on these corpora")
    parser.add_argument("--other", help="texts of another world than the models'")
    parser.add_argument("--pair", type=_pair, help="source and target block for --corpora, such as 1:4")
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=WAYS, help="centre,regularise,source_blocks of each"
    )
    options = parser.parse_args()
    if options.corpora is not None and options.pair is None:
        parser.error("--corpora: expected --pair SOURCE:TARGET")
    return options


def _pair(text: str) -> tuple[int, int]:
    """ValueError, which argparse tells, for what is no pair."""
    source, target = text.split(":")
    return int(source), int(target)


def _files(options: argparse.Namespace) -> Files:
    if options.demo:
        files = Files.bundled()
        return replace(files, limit=options.limit or files.limit)
    wanted = ("source", "target", "corpus", "contrast", "validation", "scenarios", "template")
    missing = [f"--{name}" for name in wanted if getattr(options, name) is None]
    if missing:
        raise SystemExit(f"expected --demo, or {', '.join(missing)}")
    return Files(
        source=options.source,
        target=options.target,
        contrast=options.contrast,
        validation=options.validation,
        evaluation=options.scenarios,
        corpus=options.corpus,
        template=options.template,
        source_template=options.source_template or options.template,
        corpus_source_template=options.corpus_source_template,
        words=tuple(options.words),
        limit=options.limit,
        other=options.other,
    )


def _corpora(world: World, seeds: int, parts: set[str]) -> dict[str, list[Corpus]]:
    """The corpora by name, one a seed where their cut is drawn."""
    corpora = {}
    if parts & {"added", "removed", "few", "pairs"}:
        corpora["main"] = [world.corpus("after" if world.files.words else "none")] * seeds
    rows = (world.files.limit or 2000) // 4 * 4
    if parts & {"cuts", "few", "pairs"}:
        corpora["random"] = [world.corpus("random", 1, 42 + seed, rows) for seed in range(seeds)]
    if "cuts" in parts:
        corpora["random-4"] = [world.corpus("random", 4, 42 + seed, rows // 4) for seed in range(seeds)]
    return corpora


def _line(name: str, results: list[Result]) -> str:
    first = results[0]
    strengths = [f"{value:g}" for value in sorted({result.strength for result in results})]
    cells = [
        name,
        f"{first.pair[0]} → {first.pair[1]}",
        "–".join([strengths[0], strengths[-1]] if len(strengths) > 1 else strengths),
        f"{np.mean([result.r2 for result in results]):.2f}",
        f"{np.mean([result.cosine for result in results]):.2f}",
        mean_and_spread([result.accuracy for result in results]),
        f"{np.mean([result.random for result in results]):.2f}",
        f"{np.mean([result.shuffled for result in results]):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _table(world: World, corpora: dict[str, list[Corpus]], variants: list[Variant], seeds: int) -> None:
    print(HEADER)
    for variant in variants:
        rows = corpora[variant.corpus]
        results = [measured(world, rows[0], variant, 0, None)]
        for seed in range(1, seeds):
            if variant.options.protocol == "paper":
                break  # its split is the input's order: there is nothing to draw
            results.append(measured(world, rows[seed], variant, seed, results[0].pair))
        print(_line(variant.name, results), flush=True)


def _few_table(world: World, corpus: Corpus, sizes: list[int], seeds: int) -> None:
    """Token Acc by the number of rows that are fitted on, over `seeds` draws of them."""
    columns = {f"{size:,} rows": size for size in sizes} | {"all rows": len(corpus.texts)}
    drawn = {name: [thinned(corpus, size, seed) for seed in range(seeds)] for name, size in columns.items()}
    print(f"| map | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    shares = [np.mean([rare(*draw) for draw in few], axis=0) for few in drawn.values()]
    for name, index in (("fit rows alone of their token", 0), ("validation rows of a token unseen", 1)):
        print(f"| *{name}* | {' | '.join(f'*{share[index]:.0%}*' for share in shares)} |")
    for variant in FEW:
        cells = [
            mean_and_spread([reached(world, corpus, variant, part) for corpus, part in few])
            for few in drawn.values()
        ]
        print(f"| {variant.name} | {' | '.join(cells)} |", flush=True)


def _own(world: World) -> None:
    """The yardstick: the target's own vectors, at the block and strength best on validation."""
    tried = []
    for block in range(len(world.target.blocks)):
        rows = {concept: vector.at(block) for concept, vector in world.own.items()}
        accuracy = world.accuracy(world.validation, rows, block, STRENGTHS, False)
        tried.append((float(accuracy.max()), block, STRENGTHS[int(accuracy.argmax())], rows))
    _, block, strength, rows = max(tried, key=lambda candidate: candidate[0])
    scored = world.accuracy(world.evaluation, rows, block, [strength], False)[0]
    base = world.accuracy(world.evaluation, rows, block, [0.0], False)[0]
    print(
        f"The target's own vectors: {scored:.2f} (block {block}, strength {strength:g}); base {base:.2f}.\n"
    )


def _compare(world: World, options: argparse.Namespace) -> None:
    kinds = options.corpora or [
        kind
        for kind in KINDS
        if (kind != "after" or world.files.words) and (not kind.startswith("other") or world.files.other)
    ]
    compare(world, kinds, options.pair, options.seeds, options.items, [WAYS[way] for way in options.ways])


def _finished(started: float) -> None:
    print(f"\n{time.monotonic() - started:.0f} s on {processor()}")


def main() -> int:
    options = _options()
    started = time.monotonic()
    world = World(_files(options))
    if options.corpora is not None:
        _compare(world, options)
        _finished(started)
        return 0
    parts = {options.only} if options.only else {"added", "removed", "cuts"}
    if options.rows or options.pairs:
        parts = {"pairs"} if options.pairs else {"few"}
    # With few rows, one cut of the texts: what is drawn anew is the rows.
    corpora = _corpora(world, 1 if parts & {"few", "pairs"} else options.seeds, parts)
    scenarios, seen = world.leave_out_seen(
        text for cuts in corpora.values() for corpus in cuts for text in corpus.texts
    )
    print(
        f"{scenarios} different scenarios, {seen} of them left out: the texts behind a map share a sentence."
    )
    for name, cuts in corpora.items():
        print(f"Corpus {name}: {len(cuts[0].texts):,} rows.")
    if options.pairs:
        for name, cuts in corpora.items():
            print(f"\n{name}\n")
            pairs_table(world, cuts[0], options.pairs, options.items)
        return 0
    _own(world)
    for name in ("main", "random") if "few" in parts else ():
        print(f"\n{name}\n")
        _few_table(world, corpora[name][0], options.rows, options.seeds)
    for part, variants in (("added", ADDED), ("removed", REMOVED), ("cuts", CUTS)):
        if part in parts:
            print(f"\n{part}\n")
            _table(world, corpora, variants, options.seeds)
    _finished(started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
