"""`blocks: best` without validation items: a recipe's run, and `contrans reduce` on its harvests."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from contrans_dist import demo
from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.errors import OverflowedError, RunError
from contrans_dist.evaluation import block_trials
from contrans_dist.evaluation.block_candidates import Candidate
from contrans_dist.evaluation.block_trials import BlockTrials, few_strengths, nearest, on_contrast, selected
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.models import placement
from contrans_dist.pipeline.runs import open_recipe, run_recipe
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import seal_of
from contrans_dist.store.results import SearchFile, Trial
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.commands import Ended
from tests.commands import run as command

TEMPLATE = "Scenario: {text}\nThe emotion of the above scenario is"
RECIPE = {
    "name": "unseen",
    "source": "demo:source",
    "target": "demo:target",
    "corpus": {"texts": "demo:corpus.jsonl", "limit": 300},
    "concepts": {"template": TEMPLATE},
    "map": {"blocks": "best"},
    "evaluations": {
        "emotions": {
            "texts": "demo:evaluation.jsonl", "template": TEMPLATE, "kinds": ["negative"], "sample": 24,
            "strengths": [0, 2, 4], "conditions": ["vector"],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unseen")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    demo.write_texts(folder)
    lines = (folder / "contrast.jsonl").read_text().splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[::3]))
    recipe = open_recipe(folder / "recipe.yaml", [f"concepts.texts={folder / 'few.jsonl'}"])
    run_recipe(recipe, Location.parse(folder / "run"))
    return folder / "run"


def reduced(capsys: pytest.CaptureFixture[str], activations: Path, out: Path, *options: str) -> Ended:
    sets = [
        f"--{side}-{what}={activations / f'{what}-{side}'}"
        for side in ("source", "target")
        for what in ("contrast", "corpus")
    ]
    return command(capsys, "reduce", *sets, f"--out={out}", "--blocks=best", "--json", *options)


def test_the_pair_is_the_one_that_steers_contrast_prompts_best(made: Path) -> None:
    maps = MapSet.load(str(made / "maps/corpus.safetensors"))
    chosen = maps.selection
    assert chosen is not None
    assert chosen.best is not None
    assert (chosen.criterion, chosen.tried_on) == ("contrast_gain", "contrast prompts")
    best = max(chosen.candidates, key=lambda tried: tried.score)
    assert maps.only_pair() == chosen.chosen == (best.source, best.target)
    assert {tried.strength for tried in chosen.candidates} == {4.0}
    metrics = json.loads((made / "selection/validation/metrics.json").read_text())
    assert (metrics["benchmark"], set(metrics["rows"].values())) == ("contrast", {96})
    scores = {
        (entry["condition"], entry["strength"]): entry["metrics"]["contrast_gain"]["value"]
        for entry in metrics["conditions"]
    }
    assert scores.pop(("base", 0.0)) == pytest.approx(0, abs=1e-5)
    assert scores == {
        (f"{tried.source}:{tried.target}", tried.strength): tried.score for tried in chosen.candidates
    }
    # What steers contrast prompts names the emotion of scenarios that were not seen.
    metrics = json.loads((made / "evaluations/emotions/metrics.json").read_text())
    reached = {
        (entry["condition"], entry["strength"]): entry["metrics"]["token_acc_negative"]["value"]
        for entry in metrics["conditions"]
    }
    assert reached["vector", 4.0] >= 0.4 > 0.1 > reached["base", 0.0]


def test_the_report_says_what_pairs_were_tried_on(made: Path) -> None:
    page = (made / "report.html").read_text()
    said = "".join(re.findall(r"The best \d+ of \d+ candidates on [a-z ]*\.", page))
    assert said.endswith("candidates on contrast prompts.")
    assert "Gain in nats" in page


def test_reduce_tries_the_model_that_was_harvested(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = reduced(capsys, made / "activations", tmp_path / "reduced")
    assert ended.code == 0
    chosen = MapSet.load(str(tmp_path / "reduced/maps/corpus.safetensors")).selection
    assert chosen is not None
    assert chosen.tried_on == "contrast prompts"
    assert list(chosen.chosen) == json.loads(ended.out)["blocks"]
    strengths = sorted({tried.strength for tried in chosen.candidates})
    assert strengths[-1] == pytest.approx(8 * strengths[0], rel=0.1)


@pytest.mark.parametrize("other", ["missing", "weights"])
def test_where_the_model_is_not_there_the_nearest_pair_is_taken_and_that_is_told(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    shutil.copytree(made / "activations", tmp_path / "activations")
    file = tmp_path / "activations/contrast-target/manifest.json"
    content: dict[str, Any] = json.loads(file.read_text())
    if other == "missing":
        content["identity"]["model"] = str(tmp_path / "gone")
    else:
        content["identity"]["weights"] = "of another"
    content.pop("seal")
    file.write_text(json.dumps({**content, "seal": seal_of(content)}))
    ended = reduced(capsys, tmp_path / "activations", tmp_path / "reduced")
    assert ended.code == 0
    (line,) = [line for line in ended.err.splitlines() if "chosen among" in line]
    assert "nearest to the target's own" in line
    assert "the target cannot be steered here" in line
    assert ("gone" if other == "missing" else "other weights than those that were harvested") in line
    chosen = MapSet.load(str(tmp_path / "reduced/maps/corpus.safetensors")).selection
    assert chosen is not None
    assert (chosen.criterion, chosen.candidates) == ("mean cosine to the target's own vectors", [])


def test_so_it_is_where_the_model_does_not_fit(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a megabyte, where `--quantization`, which this command has not, is no advice."""
    monkeypatch.setattr(placement, "free_memory", lambda: {"cpu": 1_000_000})
    ended = reduced(capsys, made / "activations", tmp_path / "reduced")
    assert ended.code == 0
    (line,) = [line for line in ended.err.splitlines() if "chosen among" in line]
    assert re.search(r"the target cannot be steered here \(demo:target: .* more than the 1\.0 MB free", line)
    assert "--" not in line
    chosen = MapSet.load(str(tmp_path / "reduced/maps/corpus.safetensors")).selection
    assert chosen is not None
    assert (chosen.criterion, chosen.candidates) == ("mean cosine to the target's own vectors", [])


def test_so_it_is_where_the_unsteered_models_logits_overflow(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: Any) -> BlockTrials:
        raise OverflowedError("condition base at strength 0: the model's logits overflow; use float32")

    monkeypatch.setattr(block_trials, "on_contrast", fails)
    ended = reduced(capsys, made / "activations", tmp_path / "reduced")
    assert ended.code == 0
    assert "steered here (condition base at strength 0: the model's logits overflow)" in ended.err


def test_where_the_trials_cannot_be_written_the_command_ends(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "selection").write_text("in the way")
    ended = reduced(capsys, made / "activations", tmp_path)
    assert ended.code != 0
    assert "selection" in ended.err
    assert not (tmp_path / "maps").exists()


def test_a_trial_that_fails_ends_the_command(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the trials would have found is not known; the nearest pair is no stand-in for it."""

    def fails(*_given: Any) -> BlockTrials:
        raise RunError("2 of 8 parts failed")

    monkeypatch.setattr(block_trials, "on_contrast", fails)
    ended = reduced(capsys, made / "activations", tmp_path / "reduced")
    assert ended.code == 1
    assert "2 of 8 parts failed" in ended.err
    assert not (tmp_path / "reduced/maps").exists()


def test_the_highest_gain_wins_then_the_nearest_then_the_least_strength() -> None:
    candidates = [Candidate((0, 1), {}, 0.5), Candidate((1, 2), {}, 0.6), Candidate((1, 3), {}, 0.1)]

    def chosen(*trials: tuple[str, float, float]) -> tuple[tuple[int, int], float]:
        tried = [Trial(condition=name, strength=s, score=score) for name, s, score in trials]
        found = SearchFile(
            criterion="contrast_gain",
            higher=True,
            budget=9.0,
            base_perplexity=2.0,
            candidates=tried,
            chosen={},
        )
        selection = selected(BlockTrials(found, "contrast prompts"), candidates)
        assert selection.best is not None
        assert (selection.higher, selection.limit) == (True, 18.0)
        return selection.chosen, selection.best.strength

    base = ("base", 0.0, 9.0)
    assert chosen(base, ("0:1", 1, 0.2), ("1:2", 1, 0.1), ("1:3", 2, 0.3)) == ((1, 3), 2)
    assert chosen(base, ("0:1", 1, 0.2), ("1:2", 2, 0.2), ("1:2", 1, 0.2)) == ((1, 2), 1)
    assert nearest(candidates, "").chosen == (1, 2)


def test_where_no_pair_gains_the_nearest_is_taken_and_that_is_told(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Vectors so short that they do nothing."""
    states = ActivationSet.open(str(made / "activations/contrast-target"))
    own = {path.stem: ConceptVector.load(str(path)) for path in (made / "vectors/target").iterdir()}
    own = {vector.concept: replace(vector, values=vector.values * 1e-6) for vector in own.values()}
    candidates = [
        Candidate((0, block), {concept: vector.only(block) for concept, vector in own.items()}, near)
        for block, near in ((3, 0.1), (4, 0.2))
    ]
    capsys.readouterr()
    carried = {candidate.name: candidate.carried for candidate in candidates}
    tried = on_contrast(
        ModelSettings(id="demo:target"), carried, own, states, (1.0,), Location.parse(tmp_path),
        ClusterSettings(),
    )  # fmt: skip
    chosen = selected(tried, candidates)
    assert (chosen.chosen, chosen.tried_on, chosen.candidates) == ((0, 4), "", [])
    assert "contrast prompts do not tell: contrast_gain 0.000 at most" in capsys.readouterr().err


def test_of_few_strengths_the_largest_is_one() -> None:
    assert few_strengths((0.0, 1.0, 2.0, 3.0, 4.0)) == (4.0, 2.0)
    assert few_strengths((0.0,)) == ()
    assert few_strengths((-1.0, 1.0)) == (1.0,)
