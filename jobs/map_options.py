"""What each option of the map adds between two small models, and what is lost without it: a Markdown table.

    python jobs/map_options.py --demo
    python jobs/map_options.py --source DIR --target DIR --corpus FILE --words very --contrast FILE \
        --validation FILE --scenarios FILE --template '{text} {name} was very'

Token Acc is over negative scenarios, of all concepts together. Block pair and strength are chosen on the
validation scenarios, scored are the others; every scored scenario is looked for in the texts behind vectors,
choices and maps, and one that is found ends the run with exit code 1. Figures are means over `--seeds` draws
of the texts that the map is fitted on (of the cut as well, where texts are cut at random words), ± the
standard deviation. Runs in this process, without Ray.
"""

import argparse
import platform
import sys
import time

import numpy as np
from mapping.variants import ADDED, CUTS, REMOVED, STRENGTHS, Result, Variant, measured
from mapping.world import Corpus, Files, World

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
    return parser.parse_args()


def _files(options: argparse.Namespace) -> Files:
    if options.demo:
        return Files.bundled()
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
    )


def _corpora(world: World, seeds: int, parts: set[str]) -> dict[str, list[Corpus]]:
    """The corpora by name, one a seed where their cut is drawn."""
    found = {}
    if parts & {"added", "removed"}:
        found["main"] = [world.corpus("after" if world.files.words else "none")] * seeds
    if "cuts" in parts:
        rows = (world.files.limit or 2000) // 4 * 4
        found["random"] = [world.corpus("random", 1, 42 + seed, rows) for seed in range(seeds)]
        found["random-4"] = [world.corpus("random", 4, 42 + seed, rows // 4) for seed in range(seeds)]
    return found


def _line(name: str, results: list[Result]) -> str:
    def spread(values: list[float], digits: int = 2) -> str:
        text = f"{np.mean(values):.{digits}f}"
        return text if len(values) == 1 else f"{text} ± {np.std(values):.{digits}f}"

    first = results[0]
    strengths = [f"{value:g}" for value in sorted({each.strength for each in results})]
    cells = [
        name,
        f"{first.pair[0]} → {first.pair[1]}",
        "–".join([strengths[0], strengths[-1]] if len(strengths) > 1 else strengths),
        f"{np.mean([each.r2 for each in results]):.2f}",
        f"{np.mean([each.cosine for each in results]):.2f}",
        spread([each.accuracy for each in results]),
        f"{np.mean([each.random for each in results]):.2f}",
        f"{np.mean([each.shuffled for each in results]):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _table(world: World, corpora: dict[str, list[Corpus]], variants: list[Variant], seeds: int) -> None:
    print(HEADER)
    for variant in variants:
        rows = corpora[variant.corpus]
        results = [measured(world, rows[0], variant, 0, None)]
        for seed in range(1, seeds):
            if variant.paper:
                break  # its split is the input's order: there is nothing to draw
            results.append(measured(world, rows[seed], variant, seed, results[0].pair))
        print(_line(variant.name, results), flush=True)


def _own(world: World) -> None:
    """The yardstick: the target's own vectors, at the block and strength best on validation."""
    tried = []
    for block in range(len(world.target.blocks)):
        rows = {concept: vector.at(block) for concept, vector in world.own.items()}
        found = world.accuracy(world.validation, rows, block, STRENGTHS, False)
        tried.append((float(found.max()), block, STRENGTHS[int(found.argmax())], rows))
    _, block, strength, rows = max(tried, key=lambda each: each[0])
    scored = world.accuracy(world.evaluation, rows, block, [strength], False)[0]
    base = world.accuracy(world.evaluation, rows, block, [0.0], False)[0]
    print(
        f"The target's own vectors: {scored:.2f} (block {block}, strength {strength:g}); base {base:.2f}.\n"
    )


def main() -> int:
    options = _options()
    started = time.monotonic()
    world = World(_files(options))
    parts = {options.only} if options.only else {"added", "removed", "cuts"}
    corpora = _corpora(world, options.seeds, parts)
    leak = world.leak([corpus for each in corpora.values() for corpus in each])
    shared = leak["overlap_vector"] + leak["overlap_map"]
    print(f"{leak['evaluated']} different scenarios, {shared} of them seen before.")
    if shared:
        print(
            f"seen before: {leak['examples']}; expected scenarios that nothing was made of", file=sys.stderr
        )
        return 1
    for name, each in corpora.items():
        print(f"Corpus {name}: {len(each[0].texts):,} rows.")
    _own(world)
    for part, variants in (("added", ADDED), ("removed", REMOVED), ("cuts", CUTS)):
        if part in parts:
            print(f"\n{part}\n")
            _table(world, corpora, variants, options.seeds)
    print(f"\n{time.monotonic() - started:.0f} s on {platform.processor() or platform.machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
