"""The demo as a user runs it: real actors, bundled models, and what it must show on scenarios never seen."""

import json
from pathlib import Path

import pytest

from contrans_dist import demo
from contrans_dist.pipeline.runs import run_demo
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from tests.other_system import other_system


@pytest.fixture(scope="module")
def run(in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it goes on any system, not only on Linux."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    with other_system():
        summary = run_demo(Location.parse(folder))
    assert summary["report"] == str(folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def best(run: Path) -> dict[str, float]:
    """Token Acc on negative scenarios of each condition at its best strength."""
    conditions = json.loads((run / "evaluations/emotions/metrics.json").read_text())["conditions"]
    found: dict[str, float] = {}
    for entry in conditions:
        value = entry["metrics"]["token_acc_negative"]["value"]
        found[entry["condition"]] = max(value, found.get(entry["condition"], 0.0))
    return found


def test_the_transplanted_vector_works_and_its_controls_do_not(best: dict[str, float]) -> None:
    assert best["base"] < 0.10
    assert best["vector"] >= 0.60
    assert best["random"] < 0.10
    assert best["shuffled-map"] < 0.20
    assert best["self-align"] > best["vector"] - 0.05


def test_nothing_evaluated_was_seen(run: Path) -> None:
    leak = json.loads((run / "evaluations/emotions/metrics.json").read_text())["leak"]
    assert leak["evaluated"] >= 6 * 40
    assert (leak["overlap_vector"], leak["overlap_map"]) == (0, 0)
    corpus = (run / "texts/corpus.jsonl").read_text()
    assert "emotion of the above" not in corpus
    assert "Scenario" not in corpus


def test_the_folder_of_the_run(run: Path) -> None:
    for name in ("recipe.yaml", "run.json", "report.html", "maps/corpus.safetensors"):
        assert (run / name).is_file(), name
    for emotion in demo.EMOTIONS:
        assert (run / "vectors/vector" / f"{emotion}.safetensors").is_file()
    for name in ("corpus-source", "corpus-target", "contrast-source", "contrast-target"):
        rows = ActivationSet.open(str(run / "activations" / name))
        assert rows.manifest.canary.worst_deviation is not None
        assert rows.manifest.canary.worst_deviation < 1e-4
        assert rows.manifest.truncated == 0
    page = (run / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(page) < 5_000_000
