"""Runs of recipes: what is wrong with one is told before it begins, and two do not harm each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from contrans_dist.config.recipe import load_recipe
from contrans_dist.errors import UserError
from contrans_dist.pipeline import run as one
from contrans_dist.pipeline import runs as room
from contrans_dist.pipeline.run import identity_of
from contrans_dist.pipeline.runs import run_recipe
from contrans_dist.report import write_report
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from tests import commands
from tests.recipes import World, tiny_world
from tests.sets import write_lines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


Run = Callable[..., Path]


@pytest.fixture
def run(world: World, tmp_path: Path) -> Run:
    """Runs the recipe with changes, by dotted key; returns its folder."""

    def made(**changes: Any) -> Path:
        run_recipe(load_recipe(write_recipe(world, tmp_path, changes)), Location.parse(tmp_path / "run"))
        return tmp_path / "run"

    return made


def write_recipe(world: World, folder: Path, changes: dict[str, Any]) -> Path:
    content = yaml.safe_load(Path(world.recipe).read_text())
    for key, value in changes.items():
        inner, (*above, last) = content, key.split(".")
        for part in above:
            inner = inner[part]
        inner[last] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


SECOND = {"texts": "{scenarios}", "strengths": [0, 1], "conditions": ["vector"]}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "texts": ({"texts": "nowhere.jsonl"}, {}, "nowhere.jsonl"),
    "instruction": ({"conditions": ["vector", "inst-align"]}, {}, "inst-align: it needs an `instruction`"),
    "guide": ({"conditions": ["vector", "proxy-tuning"]}, {}, "it needs `source_base` in the recipe"),
    "search": ({"search": {}}, {}, "expected validation items to choose on"),
    "search at 0": ({"search": {}, "strengths": [0], "validation": "{validation}"}, {}, "other than 0"),
    "model": ({"conditions": ["align-training"]}, {"target_instruct": "demo:nowhere"}, "demo:nowhere"),
    "judge": (
        {"benchmark": "toxigen", "texts": "demo:remarks", "classifier": "demo:judge", "per_group": 1,
         "validation_per_group": 0, "template": "{{text}}"}, {}, "demo:judge",
    ),
}  # fmt: skip
"""Of the second evaluation, and of the recipe, what is changed; and what is said of it."""


def placed(content: Any, **files: str) -> Any:
    if isinstance(content, dict):
        return {key: placed(value, **files) for key, value in content.items()}
    return content.format(**files) if isinstance(content, str) else content


@pytest.mark.parametrize("several", [False, True], ids=["alone", "second-of-two"])
@pytest.mark.parametrize("name", WRONG)
def test_what_an_evaluation_lacks_is_told_before_anything_is_made(
    world: World, run: Run, tmp_path: Path, name: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when all is harvested and the evaluations before it are done."""
    monkeypatch.setattr(room, "connected", None)  # Ray is not even started
    validation = write_lines(
        tmp_path / "validation.jsonl",
        [{"text": f"{concept} it was", "concept": concept} for concept in ("joy", "fear")],
    )
    of_evaluation, of_recipe, said = WRONG[name]
    changes = {"evaluations.second": {**SECOND, **of_evaluation}, **of_recipe}
    changes = placed(changes, scenarios=world.scenarios, validation=validation)
    with pytest.raises(UserError, match=said):
        run(**({"runs": {"first": {}, "second": changes}} if several else changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("several", [False, True], ids=["alone", "several"])
def test_a_run_of_another_recipe_at_work_in_the_folder_is_left_alone(
    in_process: None, world: World, run: Run, tmp_path: Path, several: bool
) -> None:
    """Before, its recipe, vectors and maps were written over, and finished evaluations of it removed."""
    runs: dict[str, Any] = {"runs": {"one": {}}} if several else {}
    at_work = identity_of(load_recipe(Path(world.recipe), [f"runs={runs['runs']}"] if several else []))
    changed = {"evaluations.emotions.strengths": [0, 2], **runs}
    with claimed(Location.parse(tmp_path / "run"), at_work):
        said = r"another run is at work there .*evaluations.emotions.strengths: found \[0.0, 1.0\], asked for"
        with pytest.raises(UserError, match=said):
            run(**changed)
        assert [path.name[:7] for path in (tmp_path / "run").iterdir()] == [".claim-"]
        run(**runs)  # one of the same recipe goes on beside it
    run(**changed)


@pytest.mark.parametrize("several", [False, True], ids=["alone", "one-of-two"])
def test_an_evaluation_whose_logits_overflow_ends_alone(
    in_process: None, world: World, tmp_path: Path, several: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float16, at a strength that is swept and not chosen. All else is done, and told of."""
    loud = {
        "target": {"id": world.target, "dtype": "float16", "compute_dtype": "float16"},
        "evaluations.emotions.strengths": [0, 1e6],
    }
    changes = {"evaluations.second": placed(SECOND, scenarios=world.scenarios)}
    changes |= {"runs": {"quiet": {}, "loud": loud, "last": {}}} if several else loud
    ended = commands.run(
        capsys, "run", write_recipe(world, tmp_path, changes), "--out", str(tmp_path / "run")
    )
    assert ended.code == 1
    assert "condition vector at strength 1e+06: the model's logits overflow" in ended.err
    loud_run = tmp_path / "run/runs/loud" if several else tmp_path / "run"
    assert not (loud_run / "evaluations/emotions/metrics.json").exists()
    assert (loud_run / "evaluations/second/metrics.json").exists()
    assert "emotions: unfinished evaluation" in (loud_run / "report.html").read_text()
    if several:
        assert (tmp_path / "run/runs/last/evaluations/emotions/metrics.json").exists()
        assert "last" in (tmp_path / "run/report.html").read_text()


def test_what_an_earlier_recipe_left_is_not_taken_for_this_one_s(
    in_process: None, world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is done is begun again under another recipe, and ends before it has evaluated anything."""

    def warned() -> bool:
        write_report(whole)
        return "not finished: what is here may be of an earlier recipe" in (out / "report.html").read_text()

    out = run()
    whole, kept = Location.parse(out), (out / "recipe.yaml").read_bytes()
    assert not warned()
    with pytest.raises(UserError):  # refused before it begins: nothing has changed
        run(**{"evaluations.emotions.texts": "nowhere.jsonl"})
    assert (out / "recipe.yaml").read_bytes() == kept
    assert not warned()
    monkeypatch.setattr(one, "assess", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(**{"evaluations.emotions.strengths": [0, 2]})
    assert (out / "evaluations/emotions/metrics.json").exists()
    assert warned()
    with pytest.raises(KeyboardInterrupt):  # what of which recipe there is, nothing tells any more
        run()
    assert warned()
    monkeypatch.undo()
    run()
    assert not warned()


def stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
