"""What a GPU is to show: the gpu tests, then the whole benchmark, written to jobs/BENCHMARKS-<device>.md.

    python jobs/gpu.py                      # in about half an hour, a 7B model and blocks of a 70B one
    python jobs/gpu.py --parts tests,harvest --figures figures.json     # in several commands, each of which
    python jobs/gpu.py --parts stream --figures figures.json            # adds to what is there
    python jobs/gpu.py --wheels wheels      # what a machine lacks that has torch and transformers

Needs neither Ray nor the network: a machine that has none is given the wheels, and there
`pip install --no-index --no-deps wheels/*.whl`; without that of bitsandbytes nothing quantised is run. Exit
code 1: a test failed, a part could not be measured, two sides of a row differ, or a row is below its bar.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmark import PARTS

REPOSITORY = Path(__file__).resolve().parents[1]
BARS = {
    "harvest/contrans-bfloat16": 20.0,
    "harvest/usual-bfloat16": 3.0,
    "harvest/peak-bfloat16": 0.55,
    "evaluate/emotion-sweep": 60.0,
}
"""The least that a ratio, or share of the matmul rate, is to be."""
LACKING = (
    "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "rich", "markdown-it-py", "mdurl",
    "pygments", "pytest", "pluggy", "iniconfig", "scipy", "bitsandbytes",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="only download wheels there")
    parser.add_argument("--python-version", metavar="3.12", help="of the machine that the wheels are for")
    parser.add_argument("--parts", type=_parts, default=["tests", *PARTS], help="comma-separated")
    parser.add_argument("--figures", type=Path, help="file of all that is measured, part by part")
    parser.add_argument("--out", type=Path, help="default: jobs/BENCHMARKS-<device>.md")
    parser.add_argument("--quick", action="store_true", help="shows that it runs, on any machine")
    options = parser.parse_args()
    if options.wheels is not None:
        return _download(options.wheels, options.python_version)
    if not (torch.cuda.is_available() or options.quick):
        print("no CUDA device here (--quick shows that it runs)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return _measure(options, options.figures or Path(folder) / "figures.json")


def _parts(given: str) -> list[str]:
    wrong = set(given.split(",")) - {"tests", *PARTS}
    if wrong:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(wrong))}")
    return given.split(",")


def _download(folder: Path, python: str | None) -> int:
    constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *constraints]
    version = ["--python-version", python] if python else []
    return subprocess.run([*pip, *version, "--dest", str(folder), *LACKING], check=False).returncode


def _measure(options: argparse.Namespace, figures: Path) -> int:
    """What was asked for, into the file of figures, and a page of all that this holds; the exit code."""
    # Python puts a script's own folder on its path, not the repository.
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    content = json.loads(figures.read_text()) if figures.exists() else {}
    if "tests" in options.parts:
        failed = subprocess.run(pytest(), cwd=REPOSITORY, env=environment, check=False).returncode
        content["tests"] = "failed" if failed else "passed"
        figures.write_text(json.dumps(content))
    parts, measured = [part for part in options.parts if part != "tests"], 0
    if parts:
        quick = ["--quick"] if options.quick else []
        command = [sys.executable, "jobs/benchmark.py", *parts, *quick, "--add", "--json"]
        command.append(str(figures.resolve()))
        measured = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
        content = json.loads(figures.read_text()) if figures.exists() else {}
    if "machine" in content:
        out = options.out or REPOSITORY / "jobs" / f"BENCHMARKS-{_slug(content['machine']['device'])}.md"
        out.write_text(page(content))
        print(out)
    below = [row["name"] for row in content.get("rows", ()) if row["ratio"] < BARS.get(row["name"], 0.0)]
    for name in below:
        print(f"{name}: below {BARS[name]:g}", file=sys.stderr)
    wrong = measured or content.get("tests") == "failed" or (below and not options.quick)
    return 1 if wrong else 0


def pytest() -> list[str]:
    """The command for the gpu tests, with the files alone that have some: others want what may be missing."""
    marked = re.compile(r"^(@|pytestmark = )pytest\.mark\.gpu$", re.MULTILINE)
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    of_gpu = [str(path.relative_to(REPOSITORY)) for path in files if marked.search(path.read_text())]
    return [sys.executable, "-m", "pytest", "-m", "gpu", *of_gpu]


def page(content: dict[str, Any]) -> str:
    """Machine and rows of a run of the benchmark, as Markdown."""
    about = [f"- {name}: {value}" for name, value in content["machine"].items()]
    head = ["| row | bar | ratio | ours | theirs | unit | max. error | |", "|" + "---|" * 8]
    rows = [
        f"| `{row['name']}` | {BARS.get(row['name'], '')} | {row['ratio']:.3g} | {row['ours']:.4g} | "
        f"{row['theirs']:.4g} | {row['unit']} | "
        f"{'' if row['max_error'] is None else format(row['max_error'], '.0e')} | {row['note']} |"
        for row in content["rows"]
    ]
    tests = {"passed": "The gpu tests passed.", "failed": "GPU TESTS FAILED."}
    said = tests.get(content.get("tests", ""), "The gpu tests were not run.")
    lines = [
        f"# Benchmarks on {content['machine']['device']}", "",
        f"`python jobs/gpu.py`; both sides of a row in turns in one run. {said}", "",
        *about, "", *head, *rows,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
