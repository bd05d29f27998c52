"""The examples of the README and the documentation: read from the pages, run, held against what is printed.

A fenced block is one of these:

- `shell`: commands, run one after another in one folder a page; a `text` block right behind it is what they
  print on standard output. A line `...` in it stands for any lines. Numbers may differ a little, since other
  processors round otherwise; all else may not.
- `sh`: commands that need a cluster, large models or the network; their options are parsed, no more.
- `python`: run in one namespace a page, with a `text` block as above.
- any other with a `title`: a file of that name, which the next blocks may use.

`python -m tests.docs.examples` runs all, and the notebook, and writes into them what is printed now.
"""

import base64
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOME = "/home/you/contrans-dist"
"""Where the printed commands are run."""
PAGES = [ROOT / "README.md", ROOT / "cluster/README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs/notebook.ipynb"
SEED = {"make demo": "contrans demo --out runs/demo"}
"""What `make` does once everything is installed."""
_FENCE = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")
_RELATIVE, _ABSOLUTE = 0.1, 0.05


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str
    start: int
    """Where its text begins in the page."""
    end: int
    follows: bool
    """Whether nothing but blank lines stands between it and the block before."""


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    blocks: list[Block] = []
    last = 0
    for match in _FENCE.finditer(page):
        follows = bool(blocks) and not page[last : match.start()].strip()
        blocks.append(Block(match[2], match[3], match[4], match.start(4), match.end(4), follows))
        last = match.end()
    return blocks


def commands_in(text: str) -> list[list[str]]:
    """The commands of a shell block as words: a line each, or more where a quote or a backslash goes on."""
    commands, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # inside a quoted text
            pending += "\n"
            continue
        if words:
            commands.append(words)
        pending = ""
    assert not pending, f"a command that does not end: {pending!r}"
    return commands


def near(printed: str, real: str) -> bool:
    """Whether two lines say the same, but for blanks and small differences of numbers."""
    if shape(printed) != shape(real):
        return False
    pairs = zip(_numbers(printed), _numbers(real), strict=True)
    return all(abs(a - b) <= _ABSOLUTE + _RELATIVE * max(abs(a), abs(b)) for a, b in pairs)


def shape(line: str) -> str:
    """A line without its numbers and with single blanks."""
    return " ".join(_NUMBER.sub("#", line).split())


def _numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(line)]


def matched(printed: str, real: str, same: Callable[[str, str], bool] = near) -> list[str]:
    """The printed lines, each as it really is, `...` as it stands. AssertionError where one is not there."""
    lines, there = printed.splitlines(), real.rstrip("\n").splitlines()
    result, at, skipping = [], 0, False
    for line in lines:
        if line.strip() == "...":
            result.append(line)
            skipping = True
            continue
        while skipping and at < len(there) and not same(line, there[at]):
            at += 1
        assert at < len(there) and same(line, there[at]), (  # noqa: PT018
            f"printed: {line!r}\nreally: {there[at] if at < len(there) else None!r}\nof:\n{real}"
        )
        result.append(there[at])
        at, skipping = at + 1, False
    assert skipping or at == len(there), f"not printed: {there[at]!r}\nof:\n{real}"
    return result


def run_page(page: str, shell: Callable[[str], str]) -> Iterator[tuple[Block, str]]:
    """Run a page's blocks in the working directory; each `text` block with what was really printed.

    `shell` runs the commands of a block and returns their standard output.
    """
    names, output = namespace("page"), None
    for block in blocks_of(page):
        if block.language == "text" and block.follows and output is not None:
            yield block, output.replace(os.getcwd(), HOME)
            output = None
        elif block.language == "shell":
            output = shell(block.text)
        elif block.language == "python":
            output = run_python(block.text, names)
        else:
            output = None
            if block.title:
                Path(block.title).write_text(block.text, "utf-8")


def namespace(name: str) -> dict[str, Any]:
    """The names of a new module: classes that are made in it look there for what their annotations name."""
    module = sys.modules[name] = ModuleType(name)
    return vars(module)


def run_python(code: str, names: dict[str, Any]) -> str:
    """What a piece of Python prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<page>", "exec", dont_inherit=True), names)
    return printed.getvalue()


def run_notebook(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Run a notebook's code cells without Jupyter; each with its outputs, as they are stored."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = namespace("notebook")
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed = run_python("".join(cell["source"]), names)
        outputs: list[dict[str, Any]] = []
        if printed:
            lines = printed.splitlines(keepends=True)
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
        for number in pyplot.get_fignums():
            image = io.BytesIO()
            pyplot.figure(number).savefig(image, format="png", dpi=100)
            data = {"image/png": base64.b64encode(image.getvalue()).decode()}
            outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
        pyplot.close("all")
        yield cell, outputs


def bash(text: str) -> str:
    """A block as bash runs it, with this environment's programs first. AssertionError where one fails."""
    for command, instead in SEED.items():
        text = re.sub(rf"^{command}\b.*$", instead, text, flags=re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _rewrite(path: Path) -> None:
    page = path.read_text("utf-8")
    if not any(block.language in ("shell", "python") for block in blocks_of(page)):
        return
    changes = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block, real in run_page(page, bash):
            lines = real.rstrip("\n").splitlines()
            if any(line.strip() == "..." for line in block.text.splitlines()):
                lines = matched(block.text, real, lambda a, b: shape(a) == shape(b))
            changes.append((block, "".join(f"{line.rstrip()}\n" for line in lines)))
    for block, text in reversed(changes):
        page = page[: block.start] + text + page[block.end :]
    path.write_text(page, "utf-8")


def _rewrite_notebook(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    for count, (cell, outputs) in enumerate(run_notebook(notebook), 1):
        cell["outputs"], cell["execution_count"] = outputs, count
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    for chosen in [Path(name).resolve() for name in sys.argv[1:]] or [*PAGES, NOTEBOOK]:
        print(chosen.relative_to(ROOT), flush=True)
        (_rewrite_notebook if chosen == NOTEBOOK else _rewrite)(chosen)
