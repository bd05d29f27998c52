"""Every recipe's small variant, one after another: `python jobs/experiments.py --out runs/experiments`.

Prints a line for each with its time, and at the end how long all took. Harvests are shared between recipes;
what is already there is reused. Ends with exit code 1 when one failed.
"""

import argparse
import sys
import time
from pathlib import Path

from contrans_dist.distributed.actors import kept_actors
from contrans_dist.distributed.cluster import connected
from contrans_dist.errors import RunError, UserError
from contrans_dist.pipeline.runs import RECIPES, open_recipe, run_recipe
from contrans_dist.store.location import Location


def names() -> list[str]:
    """The recipes that have a small variant."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if "\nsmall:\n" in path.read_text("utf-8"))


def main() -> int:
    """Run what was asked for; 0 when all of it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(names())}; default: all")
    parser.add_argument("--out", default="runs/experiments", help="folder or URI")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names()))
    if unknown:
        print(f"experiments: no recipe {unknown[0]!r} with a small variant", file=sys.stderr)
        return 2
    out, began, failed = Location.parse(arguments.out), time.monotonic(), []
    with connected("local"), kept_actors():
        for name in arguments.names or names():
            started = time.monotonic()
            try:
                recipe = open_recipe(Path(name), small=True)
                found = run_recipe(recipe, out / name, shared=out / "activations")
            except Exception as error:  # one that fails must not cost the others
                known = isinstance(error, UserError | RunError)
                reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"
                print(f"{name}: failed: {reason}", flush=True)
                failed.append(name)
                continue
            print(f"{name}: {time.monotonic() - started:.0f} s, {found['report']}", flush=True)
            for part, result in found["evaluations"].items():
                print(f"  {part}: {result['verdict']}", flush=True)
    print(f"{time.monotonic() - began:.0f} s in all", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
