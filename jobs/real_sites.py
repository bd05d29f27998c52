"""Where the vectors of a finished run work: at which blocks, at several together, at which positions.

    python jobs/real_sites.py runs/real/weak-to-strong --pairs 4:22 4:24 4:27

A Markdown table of Token Acc on the validation scenarios of the run's evaluation of emotions, at each
strength, whatever it costs in perplexity, of the transplanted vectors and of the target's own. In a row of
several blocks the vector is added at each of them. It is added at every position, in the last rows at the
prompt's last token alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import torch

from contrans_dist.benchmarks.calls import NextTokens
from contrans_dist.benchmarks.emotions import EmotionBenchmark, EmotionEvaluation
from contrans_dist.config import Recipe
from contrans_dist.config.recipe import load_recipe
from contrans_dist.engine.scoring import Intervention, next_token
from contrans_dist.evaluation.trials import validation_of
from contrans_dist.mapping.driver import fit
from contrans_dist.mapping.map_set import Pair
from contrans_dist.models import LanguageModel, load_model
from contrans_dist.models.passing import first_of, like
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.concept_vector import ConceptVector

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
Rows = dict[int, np.ndarray]
"""What is added at which of the target's blocks."""


def vectors_of(run: Path, recipe: Recipe, pairs: list[Pair]) -> dict[str, dict[str, Rows]]:
    """kind -> concept -> rows: those that maps over these pairs carry, and the target's own there."""
    source, target = (
        ActivationSet.open(str(run / "activations" / f"corpus-{side}")) for side in ("source", "target")
    )
    maps = fit(source, target, ",".join(f"{a}:{b}" for a, b in pairs), recipe.map.options(), shuffled=False)
    kinds: dict[str, dict[str, Rows]] = {"transplanted": {}, "own": {}}
    for file in sorted((run / "vectors" / "source").glob("*.safetensors")):
        vector, own = (
            ConceptVector.load(str(file.parents[1] / side / file.name)) for side in ("source", "target")
        )
        carried = {pair[1]: maps.carry(vector, recipe.map.norm, pair).at(pair[1]) for pair in pairs}
        kinds["transplanted"][vector.concept] = carried
        kinds["own"][vector.concept] = {block: own.at(block) for block in carried}
    return kinds


@dataclass(frozen=True)
class Asked:
    """The validation scenarios of one concept."""

    concept: str
    call: NextTokens
    named: np.ndarray
    """int64 `[scenarios]`: the token that names the concept after each."""

    def hits(self, argmax: np.ndarray) -> np.ndarray:
        """At each strength, how many of the next tokens `[strengths, scenarios]` name it."""
        found: np.ndarray = (argmax == self.named).sum(axis=1)
        return found


def asked(lm: LanguageModel, recipe: Recipe) -> Iterator[Asked]:
    """What is asked about each concept."""
    settings = next(each for each in recipe.evaluations.values() if isinstance(each, EmotionEvaluation))
    chosen_on = validation_of(settings, settings.strengths)
    assert isinstance(chosen_on, EmotionEvaluation)  # as it was
    benchmark = EmotionBenchmark.load(chosen_on)
    words = list(benchmark.labels)
    for concept in words:
        items = [
            item
            for item in benchmark.items()
            if item.concept == concept and benchmark.scores(item) and benchmark.kind(item) == "negative"
        ]
        (call,) = benchmark.calls(lm, items)
        yield Asked(concept, call, call.watch[:, words.index(concept)])


@torch.inference_mode()
def at_the_last(lm: LanguageModel, contexts: list[list[int]], rows: Rows) -> np.ndarray:
    """Next tokens `[strengths, prompts]`, `rows` added at each prompt's last token alone."""
    found = []
    for strength in STRENGTHS:

        def added(k: int, strength: float = strength):  # type: ignore[no-untyped-def]
            def hook(_module: object, _args: object, output: object) -> object:
                state = first_of(output).clone()
                state[:, -1] += strength * torch.as_tensor(rows[k])
                return like(output, state)

            return hook

        handles = [lm.blocks[k].register_forward_hook(added(k)) for k in rows]
        found.append([int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in contexts])
        for handle in handles:
            handle.remove()
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", nargs="+", required=True, help="source:target blocks, by target block")
    arguments = parser.parse_args()
    pairs = [(int(a), int(b)) for a, b in (pair.split(":") for pair in arguments.pairs)]
    recipe = load_recipe(arguments.run / "recipe.yaml")
    lm = load_model(recipe.target.id)
    scenarios = list(asked(lm, recipe))
    total = sum(len(of_concept.named) for of_concept in scenarios)
    blocks = [block for _, block in pairs]
    sites = list(chain.from_iterable(combinations(blocks, n) for n in range(1, len(blocks) + 1)))
    print(f"| vectors | blocks | {' | '.join(f'{strength:g}' for strength in STRENGTHS)} |")
    print(f"|---|---|{'---|' * len(STRENGTHS)}")
    for kind, vectors in vectors_of(arguments.run, recipe, pairs).items():
        for site in sites:
            right = np.zeros(len(STRENGTHS))
            for one in scenarios:
                rows = {k: vectors[one.concept][k] for k in site}
                swept = [Intervention(kind, rows, strength) for strength in STRENGTHS]
                right += one.hits(next_token(lm, one.call.contexts, swept, watch=[0]).argmax)
            print(f"| {kind} | {', '.join(map(str, site))} | {_cells(right / total)} |", flush=True)
        for block in blocks:
            right = np.zeros(len(STRENGTHS))
            for one in scenarios:
                right += one.hits(at_the_last(lm, one.call.contexts, {block: vectors[one.concept][block]}))
            print(f"| {kind} | {block}, last token | {_cells(right / total)} |", flush=True)


def _cells(values: np.ndarray) -> str:
    return " | ".join(f"{value:.2f}".removeprefix("0") for value in values)


if __name__ == "__main__":
    main()
