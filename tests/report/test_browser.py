"""Texts of strangers on the pages, in a real browser: none is taken for markup, no script runs, nothing is
fetched."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from contrans_dist.evaluation.analysis import run_folders
from contrans_dist.report import write_comparison, write_report
from contrans_dist.store.location import Location
from tests.runextras import MC1, PUBLISHED, write_runs, write_whole_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEPT = {"emotions", "truthfulqa", "toxigen", "perplexity", "activations", "vector", "map", "default"}


def hostile(name: str) -> str:
    """Closes whatever it may stand in, and asks the server for `/ran/NAME` as markup and as a script."""
    breaks = "'\"]]>--></title></style></pre></text></svg>"
    return (
        f'{breaks}<img src="/ran/{name}"><script>new Image().src="/ran/script-{name}"</script>{{{{ 7*7 }}}}'
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder on a server of this machine; what was asked for, beside the pages themselves."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def shown(url: str, profile: Path) -> str:
    """A page as the browser has it once all of it is there."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ]
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", url], capture_output=True, text=True, check=False)
    assert "<html" in done.stdout, done.stderr
    return done.stdout


def poisoned(content: Any, name: str) -> Any:
    """JSON with every text in it made hostile, but for names that decide what is read."""
    if isinstance(content, dict):
        return {key: poisoned(value, f"{name}-{key}"[:60]) for key, value in content.items()}
    if isinstance(content, list):
        return [poisoned(value, name) for value in content]
    return content + hostile(name) if isinstance(content, str) and content not in KEPT else content


def hostile_run(folder: Path) -> Path:
    concepts = (hostile("concept-a"), hostile("concept-b"))
    published = {**PUBLISHED, "source": hostile("paper"), "remarks": hostile("remarks")}
    write_whole_run(folder, published, concepts=concepts, source=hostile("source"), target=hostile("target"))
    (folder / "run.json").write_text(
        json.dumps(poisoned(json.loads((folder / "run.json").read_text()), "run"))
    )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe = {key: poisoned(value, key) if key != "evaluations" else value for key, value in recipe.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("emotions", "truthfulqa"):
        place = folder / "evaluations" / name / "metrics.json"
        metrics = json.loads(place.read_text())
        metrics["notes"] = [hostile("note")]
        metrics["leak"] = {"evaluated": 9, "overlap_vector": 2, "examples": [hostile("leak")]}
        metrics["conditions"].append(
            {**metrics["conditions"][1], "condition": f"from:{hostile('condition')}"}
        )
        metrics["costs"] = {hostile("system"): {"rows": 1, "seconds": 2.0}}
        place.write_text(json.dumps(metrics))
    for place in folder.glob("activations/*/manifest.json"):
        manifest = json.loads(place.read_text())
        manifest |= {"devices": [hostile("device")], "command": hostile("command")}
        manifest["identity"] |= {"template": hostile("template"), "dtype": hostile("dtype")}
        place.write_text(json.dumps(manifest))
    return folder


def without_policy(page: Path) -> str:
    """The page, but for what forbids a browser to run and to load anything: what is left is the escaping."""
    text = page.read_text()
    policy = next(line for line in text.splitlines() if "Content-Security-Policy" in line)
    assert "default-src 'none'" in policy
    return text.replace(policy, "")


@pytest.mark.slow
def test_what_strangers_wrote_is_text_and_nothing_more(tmp_path: Path, served: tuple[str, list[str]]) -> None:
    url, asked = served
    run = hostile_run(tmp_path / "run")
    write_report(Location.parse(run))
    names: dict[str, dict[str, Any]] = {
        hostile("run-name").replace("/", "|"): {"map": {"blocks": hostile("blocks")}}
    }
    several = write_runs(tmp_path / "several", names, dict.fromkeys(names, MC1), description=hostile("what"))
    write_comparison(run_folders(Location.parse(several)), Location.parse(several))
    pages = {"run": run / "report.html", "several": several / "report.html"}
    for name, page in pages.items():
        (tmp_path / f"bare-{name}.html").write_text(without_policy(page))
        (tmp_path / f"injected-{name}.html").write_text(
            page.read_text().replace("</body>", f"{hostile('injected')}</body>")
        )
    (tmp_path / "control.html").write_text(f"<p>{hostile('control')}")
    figures = [path.relative_to(tmp_path) for path in sorted(run.rglob("*.svg"))]
    assert len(figures) > 8
    inside = [
        "control.html",
        *(f"{kind}-{name}.html" for kind in ("bare", "injected") for name in pages),
        *figures,
    ]
    (tmp_path / "all.html").write_text(
        "".join(f'<iframe src="{name}"></iframe>' for name in map(str, inside))
    )
    shown(f"{url}/all.html", tmp_path / "profile")
    assert {"/control.html", f"/{figures[0]}"} <= {line.partition("?")[0] for line in asked}
    assert {line for line in asked if line.startswith("/ran/")} == {"/ran/control", "/ran/script-control"}
    bare = (tmp_path / "bare-run.html").read_text()
    for name in ("concept-a", "source", "note", "leak", "condition", "system", "paper"):
        assert f"/ran/{name}" in bare, name
    assert "7*7" in bare
