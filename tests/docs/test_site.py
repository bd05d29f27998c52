"""The documentation as it is built: strictly, without the network, and about all that there is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import contrans_dist
from contrans_dist.benchmarks.registry import ours
from contrans_dist.config import Recipe, SearchSettings
from contrans_dist.evaluation.conditions import CONDITIONS
from tests.docs.examples import ROOT
from tests.test_imports import ROOMS

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


def words(page: Path) -> str:
    """A page without its tags."""
    return re.sub(r"<[^>]+>", "", page.read_text("utf-8"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]+)"', page.read_text("utf-8"))
        loaded += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)"', page.read_text("utf-8"))
        assert not loaded, page


def test_every_command_recipe_key_and_condition_is_there(site: Path) -> None:
    commands = words(site / "command-line/index.html")
    for name in ("harvest", "refine", "fit", "evaluate", "--blocks", "--strengths", "--skip-bad"):
        assert name in commands
    keys = words(site / "your-own-data/index.html")
    names = {*Recipe.model_fields, *(key for one in ours() for key in one.settings_class.model_fields)}
    assert [name for name in sorted(names) if name not in keys] == []
    assert [name for name in SearchSettings.model_fields if name not in keys] == []
    assert all(heading in keys for heading in ("concepts.texts.NAME", "evaluations.NAME.search"))
    undescribed = r"<td><code>(\w+)</code></td>\s*<td></td>"
    assert not re.findall(undescribed, (site / "your-own-data/index.html").read_text("utf-8"))
    conditions = words(site / "concepts/index.html")
    assert [entry.name for entry in CONDITIONS if entry.name not in conditions] == []
    for page in site.rglob("*.html"):
        assert "<!-- " not in words(page)


def test_the_library_is_described(site: Path) -> None:
    page = (site / "library/index.html").read_text("utf-8")
    assert [name for name in contrans_dist.__all__ if f'id="contrans_dist.{name}"' not in page] == []
    told = re.findall(r"^::: contrans_dist\.(\w+)$", (DOCS / "library.md").read_text("utf-8"), re.M)
    assert sorted(told) == sorted(contrans_dist.__all__)


def test_the_house_is_described_as_it_is() -> None:
    table = (DOCS / "architecture.md").read_text("utf-8").partition("## What goes")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == ROOMS


def test_every_bundled_recipe_is_listed() -> None:
    listed = (DOCS / "experiments.md").read_text("utf-8")
    bundled = {path.stem for path in (ROOT / "contrans_dist/pipeline/recipes").glob("*.yaml")} - {"demo"}
    assert [name for name in bundled if f"`{name}`" not in listed and f"run {name}`" not in listed] == []


def test_the_notebook_is_a_notebook() -> None:
    notebook = json.loads((DOCS / "notebook.ipynb").read_text("utf-8"))
    assert notebook["nbformat"] == 4
    assert 8 <= sum(cell["cell_type"] == "code" for cell in notebook["cells"]) <= 12
