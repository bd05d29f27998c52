"""The public data of jobs/real.py, taken apart: nothing is scored that was seen or chosen on before."""

import json
import random
import runpy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from contrans_dist.config.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
MADE: dict[str, Any] = runpy.run_path(str(REPOSITORY / "jobs/real_data.py"))
CONCEPTS = ("fear", "joy", "rage")


def words(prompts: list[str]) -> set[str]:
    """The scenarios of prompts of `planted`."""
    return {prompt.split("Scenario: ")[-1].split("\n")[0] for prompt in prompts}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """As the authors' files are: 140 scenarios an emotion, negatives from the others', an example first."""
    folder = tmp_path / "emotions/contrans"
    folder.mkdir(parents=True)
    scenarios = {c: [f"{c} number {i}." for i in range(140)] for c in CONCEPTS}
    for concept in CONCEPTS:
        others = [s for c in CONCEPTS if c != concept for s in scenarios[c]]
        drawn = random.Random(concept).sample(others, 140)
        prompts = {
            kind: [f"Scenario: An example.\nIt is joy.\nScenario: {s}\nIt is" for s in chosen]
            for kind, chosen in (("neg", drawn), ("pos", scenarios[concept]))
        }
        (folder / f"eval_{concept}.json").write_text(json.dumps(prompts))
    return tmp_path


def test_emotions_fall_into_three_parts_with_nothing_in_common(planted: Path, tmp_path: Path) -> None:
    MADE["emotions"](planted, tmp_path / "out")
    lines = (tmp_path / "out/contrast.jsonl").read_text().splitlines()
    parts = {"contrast": {json.loads(line)["text"] for line in lines}}
    for part, positives in (("validation", 30), ("scored", 10)):
        parts[part] = set()
        for concept in CONCEPTS:
            prompts = json.loads((tmp_path / "out" / part / f"eval_{concept}.json").read_text())
            assert len(prompts["pos"]) == positives
            assert all(concept in s for s in words(prompts["pos"]))
            assert prompts["neg"]
            assert not any(concept in s for s in words(prompts["neg"]))
            assert all(prompt.startswith("Scenario: An example.") for prompt in prompts["pos"])
            parts[part] |= words(prompts["pos"]) | words(prompts["neg"])
    assert len(parts["contrast"]) == 100 * len(CONCEPTS)
    for a, b in combinations(parts.values(), 2):
        assert not a & b


@pytest.mark.parametrize("name", ["weak-to-strong", "emotions", "truthfulqa", "behaviours"])
def test_the_recipes_take_what_the_script_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "jobs"))
    script = runpy.run_path(str(REPOSITORY / "jobs/real.py"))
    set_ = script["PLACES"][name] | script["TAKEN_APART"].get(name, {})
    recipe = load_recipe(REPOSITORY / f"jobs/real/{name}.yaml", [f"{key}=there" for key in set_])
    for settings in recipe.evaluations.values():
        assert settings.only_unseen
        assert settings.has_validation
        assert settings.search is not None
        assert settings.search.perplexity == "there"
        assert "random" in settings.conditions


@pytest.mark.skipif(not (SHARED / "data/caa").exists(), reason="../shared/data is not there")
def test_behaviours_are_balanced_by_position_and_share_no_question(tmp_path: Path) -> None:
    MADE["behaviours"](SHARED / "data", tmp_path)
    for behaviour in MADE["BEHAVIOURS"]:
        files = {
            "contrast": tmp_path / f"contrast/{behaviour}.json",
            "validation": tmp_path / f"validation/{behaviour}/test_dataset_ab.json",
            "scored": SHARED / f"data/caa/test/{behaviour}/test_dataset_ab.json",
        }
        parts = {name: json.loads(file.read_text()) for name, file in files.items()}
        for name, count in (("contrast", 100), ("validation", 24)):
            letters = [q["answer_matching_behavior"].strip() for q in parts[name]]
            assert len(letters) == count
            assert letters.count("(A)") == letters.count("(B)") == count // 2
        for a, b in combinations(parts.values(), 2):
            assert not {q["question"] for q in a} & {q["question"] for q in b}
