"""How fast the engines are, against the papers' way and against other libraries, on this machine.

    python jobs/benchmark.py all --json figures.json
    python jobs/benchmark.py harvest --texts 400
    python jobs/benchmark.py libraries --folder ~/libraries        # install what to compare with, once
    python jobs/benchmark.py harvest --libraries ~/libraries

Both sides of a row run in turns in this process (a library in one of its own), on the same model, texts and
dtype; the figures are medians. Needs neither Ray nor the network; what needs Ray, or control groups, is left
out without. Exit code 1: a part could not be measured, or the two sides of a row did not compute the same
numbers.
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from speed.common import SHAPES, Bench, Row
from speed.machine import machine

from contrans_dist.models.precision import choice

PARTS = ("harvest", "evaluate", "reduce", "store", "stream", "driver", "pipeline")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "all", "libraries"), metavar="PART")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file, row by row")
    parser.add_argument("--add", action="store_true", help="keep what that file has of other parts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="default: 7b on a GPU, else 134m")
    parser.add_argument(
        "--dtypes",
        help="comma-separated; default: bfloat16 on a GPU, else float32, and bfloat16 too where it is fast",
    )
    parser.add_argument("--texts", type=int, help="default: 2000 on a GPU, else 200")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="shows that it runs; measures nothing")
    parser.add_argument("--libraries", type=Path, help="folder of the libraries to compare with")
    parser.add_argument("--folder", type=Path, help="for `libraries`: where they are installed")
    return parser.parse_args()


def _bench(options: argparse.Namespace, scratch: Path) -> Bench:
    gpu = options.device.startswith("cuda")
    bench = Bench(
        device=options.device,
        shape=options.shape or ("7b" if gpu else "134m"),
        dtypes=tuple((options.dtypes or ("bfloat16" if gpu else _fast_dtypes())).split(",")),
        repeats=options.repeats,
        n_texts=options.texts or (2000 if gpu else 200),
        quick=options.quick,
        scratch=scratch,
        libraries=options.libraries,
    )
    if options.quick:
        bench = replace(bench, shape=options.shape or "tiny", repeats=1, n_texts=options.texts or 24)
    return bench


def _fast_dtypes() -> str:
    """Those that this processor is good at: in another, every row would take hours and say nothing."""
    return "float32,bfloat16" if choice("bfloat16")[0] == "bfloat16" else "float32"


def _show(row: Row) -> None:
    error = "" if row.max_error is None else f"{row.max_error:.1e}"
    figures = f"{row.ratio:9.3f} {row.ours:12.5g} {row.theirs:12.5g} {row.unit:12} {error:8}"
    print(f"{row.name:28} {figures} {row.note}", flush=True)


def _measure(parts: list[str], bench: Bench, found: Callable[[Row], None]) -> list[str]:
    """Each row of all parts is `found`; returns what went wrong. A part that fails does not take the others
    along."""
    wrong = []
    print(f"{'name':28} {'ratio':>9} {'ours':>12} {'theirs':>12} {'unit':12} {'error':8} note")
    for part in parts:
        try:
            for row in importlib.import_module(f"speed.{part}").rows(bench):
                _show(row)
                found(row)
                allowed = bench.allowed(row)
                if row.max_error is not None and not row.max_error <= allowed:
                    wrong.append(
                        f"{row.name}: the two sides differ by {row.max_error:.1e} (allowed {allowed:.0e})"
                    )
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "ray":
                print(f"{part}: the rest is left out, ray is not installed")
                continue
            bench.miss(f"{part}: the rest could not be measured: {type(error).__name__}: {error}")
    return wrong + bench.missed


def main() -> int:
    options = _options()
    if "libraries" in options.parts:
        from speed.libraries import install

        return install(options.folder or Path("libraries"))
    parts = list(PARTS) if "all" in options.parts else list(dict.fromkeys(options.parts))
    with tempfile.TemporaryDirectory() as scratch:
        bench = _bench(options, Path(scratch))
        about = machine(bench)
        print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
        before = json.loads(options.json.read_text()) if options.add and options.json.exists() else {}
        rows = [row for row in before.get("rows", ()) if row["part"] not in parts]

        def found(row: Row) -> None:
            rows.append(asdict(row))
            if options.json:
                content = {**before, "machine": about, "rows": rows}
                options.json.write_text(json.dumps(content, indent=2) + "\n")

        wrong = _measure(parts, bench, found)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
