"""One evaluation in full: strengths chosen on other items, prompts read, no leftovers of other settings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.benchmarks.lm_eval import HarnessEvaluation
from contrans_dist.benchmarks.toxigen import ToxigenEvaluation
from contrans_dist.cli.main import app
from contrans_dist.config import ClusterSettings, ModelSettings, Recipe, SearchSettings
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.distributed.placement import place
from contrans_dist.distributed.pool import run_tasks
from contrans_dist.engine.scoring import BASE, Intervention, generate
from contrans_dist.errors import OverflowedError, UserError
from contrans_dist.evaluation import actors as scorers
from contrans_dist.evaluation import assess as whole
from contrans_dist.evaluation import driver as room
from contrans_dist.evaluation.assess import assess
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.block_trials import check_choice
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.evaluation.trials import try_out, validation_of
from contrans_dist.models import encode, load_model
from contrans_dist.report import write_report
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.tiny import CONTEXT, save_tiny

N_BLOCKS, D, BLOCK = 4, 32, 2
CONCEPTS = ("happy", "sad", "angry")
ONE = ClusterSettings(address="local", actors=1)
SEEN = "The boy saw the dog of the happy girl."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return ModelSettings(id=str(save_tiny(tmp_path_factory.mktemp("model"), n_blocks=N_BLOCKS, d=D)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, things in (("scored", ("dog", "park", "tree")), ("validation", ("ball", "cat"))):
        rows = [
            {"text": f"The boy saw the {thing} of the {concept} girl.", "concept": concept}
            for concept in CONCEPTS
            for thing in things
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "budget.txt").write_text(
        "Once upon a time there was a little girl who lived near the forest.\n" * 9
    )
    remarks = folder / "remarks"
    remarks.mkdir()
    for group in ("boys", "birds"):
        lines = [
            f"the {group} ran after the {thing}" for thing in ("dog", "cat", "ball", "man", "girl", "sun")
        ]
        (remarks / f"hate_{group}.txt").write_text("\n".join(lines) + "\n")
        (remarks / f"neutral_{group}.txt").write_text(f"the {group} went home\n")
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> EmotionEvaluation:
    return EmotionEvaluation(
        texts=str(folder / "scored.jsonl"),
        validation=str(folder / "validation.jsonl"),
        strengths=(0.0, 1.0, 4.0),
        template="{text} The girl was",
    )


def steered(*conditions: str, lengths: Mapping[str, float] = MappingProxyType({})) -> Steering:
    made = {}
    for seed, concept in enumerate(CONCEPTS):
        values = np.zeros((N_BLOCKS, D), np.float32)
        values[BLOCK] = np.random.default_rng(seed).standard_normal(D) * lengths.get(concept, 1.0)
        made[concept] = ConceptVector(values, concept, "tiny", text_hashes=unit_hashes([SEEN]))
    return steering({"vector": made}, conditions or ("vector", "random"))


def rows_of(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / name).to_pylist()


def test_one_pool_serves_every_part(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Choosing, scoring, answering under an instruction, reading prompts: the model is loaded once."""
    placed = []

    def counted(*given: Any, **named: Any) -> Any:
        placed.append(given[0])
        return place(*given, **named)

    monkeypatch.setattr(scorers, "place", counted)
    asked = settings.model_copy(update={"search": SearchSettings(), "examples": 1})
    others = [System("align-training", ModelSettings(id=model.id, dtype="float32")),
              System("inst-align", model, instruction="Be happy.")]  # fmt: skip
    metrics = assess(model, asked, steered(), Location.parse(tmp_path / "e"), ONE, others[1:])
    assert placed == [model]
    assert {"base", "vector", "random", "inst-align"} == {e.condition for e in metrics.conditions}
    assess(model, asked, steered(), Location.parse(tmp_path / "f"), ONE, others)
    assert placed == [model, model, others[0].model, model]  # examples are read at the end


def test_validation_items_that_are_scored_are_refused(
    settings: EmotionEvaluation, folder: Path, tmp_path: Path
) -> None:
    """Under another label, too: what was chosen on them would be scored on them."""
    lines = (folder / "validation.jsonl").read_text().splitlines()
    first = json.loads((folder / "scored.jsonl").read_text().splitlines()[0])
    (tmp_path / "both.jsonl").write_text("\n".join([*lines, json.dumps(first)]) + "\n")
    asked = settings.model_copy(
        update={"validation": str(tmp_path / "both.jsonl"), "kinds": ("negative", "positive")}
    )
    never = ModelSettings(id="never loaded")
    with pytest.raises(UserError, match=r"validation: 1 of 14 items are scored too, such as .*; name others"):
        try_out(never, asked, steered(), (1.0,), Location.parse(tmp_path), ONE, "choose")


def test_blocks_are_not_chosen_on_what_another_evaluation_scores(
    settings: EmotionEvaluation, folder: Path, tmp_path: Path
) -> None:
    """The block is that of every evaluation, whichever has the items that it is chosen on."""
    other = {"texts": settings.validation, "conditions": ["self-align"]}
    recipe = Recipe.model_validate({
        "name": "r", "target": "never/loaded", "concepts": {"texts": str(folder / "scored.jsonl")},
        "evaluations": {"first": {**settings.model_dump(), "conditions": ["self-align"]}, "other": other},
    })  # fmt: skip
    said = r"validation: 12 of 12 items are scored too by evaluations.other, such as .*; name others"
    with pytest.raises(UserError, match=said):
        check_choice(recipe)


def test_strengths_are_those_of_the_validation_items_and_nothing_stays_of_them(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, folder: Path, tmp_path: Path
) -> None:
    out = Location.parse(tmp_path / "e")
    asked = settings.model_copy(
        update={"search": SearchSettings(perplexity=str(folder / "budget.txt"), budget=1e6)}
    )
    metrics = assess(model, asked, steered(), out, ONE)
    found = json.loads((tmp_path / "e/search.json").read_text())
    # By hand: the sweep over the validation file alone, as an evaluation of its own.
    own = settings.model_copy(
        update={"texts": str(folder / "validation.jsonl"), "kinds": ("negative",), "validation": None}
    )
    sweep = assess(model, own, steered("vector"), Location.parse(tmp_path / "by-hand"), ONE)
    score = {entry.strength: entry.metrics["token_acc_negative"].value for entry in sweep.conditions}
    tried = {each["strength"]: each["score"] for each in found["candidates"] if each["condition"] == "vector"}
    assert tried == {s: value for s, value in score.items() if s}
    best = max((1.0, 4.0), key=lambda s: (score[s], -s))
    assert found["chosen"] == {"vector": best, "random": best}
    assert {(e.condition, e.strength) for e in metrics.conditions} == {
        ("base", 0.0), ("vector", best), ("random", best),
    }  # fmt: skip
    assert all(each["perplexity"] > 1 for each in found["candidates"])
    unbounded = settings.model_copy(update={"search": SearchSettings()})
    assess(model, unbounded, steered(), out, ONE)
    # What steering costs was asked for no more.
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "metrics.json", "results.parquet", "search.json", "validation",
    ]  # fmt: skip

    with pytest.raises(UserError, match="holds another evaluation"):
        assess(model, settings, steered(), out, ONE)
    assert (tmp_path / "e/search.json").exists()
    assess(model, settings, steered(), out, ONE, replace=True)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["metrics.json", "results.parquet"]


@pytest.mark.parametrize("name", ["validation", "perplexity", ""])
def test_what_another_run_is_trying_is_left_to_it(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path, name: str
) -> None:
    """Nor is it removed while that run scores, in the evaluation's folder, what it has chosen by it."""
    out, kept = Location.parse(tmp_path / "e"), tmp_path / "e/validation/parts/part-00000.parquet"
    (out / "validation" / "parts" / kept.name).write_bytes(b"hours of work")
    (out / "perplexity" / "metrics.json").write_bytes(b"more of it")
    with claimed(out / name if name else out, {"strengths": [0.0, 9.0]}):
        for asked in (settings, settings.model_copy(update={"search": SearchSettings()})):
            if name != "perplexity" and asked.search is not None:
                continue  # what it tries itself, it clears itself
            with pytest.raises(UserError, match="another run is at work there under other settings"):
                assess(model, asked, steered(), out, ONE)
        assert kept.exists()
        assert (tmp_path / "e/perplexity/metrics.json").exists()
    assess(model, settings, steered(), out, ONE)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["metrics.json", "results.parquet"]


def test_a_trial_whose_logits_overflow_is_lost_alone(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In float16, whose largest number is 65,504: under one of three concepts' vectors, at one strength."""
    half = model.model_copy(update={"dtype": "float16", "compute_dtype": "float16"})
    loud = steered("vector", lengths={"happy": 1e-3, "angry": 1e-3})

    def chosen(name: str, *strengths: float) -> dict[str, Any]:
        asked = settings.model_copy(update={"search": SearchSettings(), "strengths": (0.0, *strengths)})
        assess(half, asked, loud, Location.parse(tmp_path / name), ONE)
        found = json.loads((tmp_path / name / "search.json").read_text())
        return {key: found[key] for key in ("candidates", "chosen")}

    expected = chosen("without", 1.0, 4.0)
    assert {each["strength"] for each in expected["candidates"]} == {0.0, 1.0, 4.0}
    capsys.readouterr()
    assert chosen("with", 1.0, 1e5, 4.0) == expected
    assert "vector at strength 100000 is left out: the model's logits overflow" in capsys.readouterr().err
    assert json.loads((tmp_path / "with/search.json").read_text())["lost"] == [["vector", 1e5]]
    pages = [Path(write_report(Location.parse(tmp_path / name)).path) for name in ("with", "without")]
    said = ["logits overflow: 1 trial, at strength 100000." in page.read_text() for page in pages]
    assert said == [True, False]
    with pytest.raises(
        OverflowedError, match="search: condition vector: the model's logits overflow at ever"
    ):
        chosen("none", 1e5)
    # What is scored is not chosen between.
    swept = settings.model_copy(update={"strengths": (0.0, 1e5)})
    with pytest.raises(OverflowedError, match="condition vector at strength 100000: the model's logits over"):
        assess(half, swept, loud, Location.parse(tmp_path / "scored"), ONE)
    with pytest.raises(OverflowedError):  # under whatever title
        evaluate(half, swept, loud, Location.parse(tmp_path / "titled"), ONE, title="a sweep")


def test_a_strength_that_writes_nothing_but_overflow_is_not_the_least_toxic(
    in_process: None, model: ModelSettings, folder: Path, tmp_path: Path
) -> None:
    half = model.model_copy(update={"dtype": "float16", "compute_dtype": "float16"})
    asked = ToxigenEvaluation(
        texts=str(folder / "remarks"), classifier="demo:classifier", template="{text}", per_group=2,
        validation_per_group=2, max_new_tokens=4, strengths=(0.0, 1.0, 1e5), search=SearchSettings(),
    )  # fmt: skip
    assess(half, asked, steered("vector"), Location.parse(tmp_path / "e"), ONE)
    found = json.loads((tmp_path / "e/search.json").read_text())
    assert {each["strength"] for each in found["candidates"]} == {0.0, 1.0}
    assert found["chosen"] == {"vector": 1.0}


def test_what_no_choice_of_strengths_can_help_is_told_before_one_is_made(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    """A folder that is taken, a baseline's model that there is not, nothing that is left to be scored."""
    asked = settings.model_copy(update={"search": SearchSettings()})
    gone = System("align-training", ModelSettings(id="demo:nowhere"))
    seen = [json.loads(line)["text"] for line in Path(str(settings.texts)).read_text().splitlines()]
    unseen, everything = asked.model_copy(update={"only_unseen": True}), unit_hashes(seen)
    out = Location.parse(tmp_path / "e")
    with pytest.raises(UserError, match="demo:nowhere"):
        assess(model, asked, steered(), out, ONE, [gone])
    with pytest.raises(UserError, match="only_unseen leaves nothing"):
        assess(model, unseen, replace(steered(), map_texts=everything), out, ONE)
    assess(model, settings, steered(), out, ONE)
    with pytest.raises(UserError, match=r"holds another evaluation \(search: found no choice"):
        assess(model, asked, steered(), out, ONE)
    with pytest.raises(UserError, match=r"holds another evaluation \(strengths: found"):
        assess(model, asked.model_copy(update={"strengths": (0.0, 2.0)}), steered(), out, ONE)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["metrics.json", "results.parquet"]


def test_without_validation_items_nothing_is_chosen(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    out = Location.parse(tmp_path / "e")
    asked = settings.model_copy(update={"search": SearchSettings(), "validation": None})
    with pytest.raises(UserError, match="benchmark emotions: expected validation items to choose on"):
        assess(model, asked, steered(), out, ONE)
    # A task of the harness has no second set of items: choosing on those that are scored would be a leak.
    with pytest.raises(UserError, match="benchmark lm-eval: expected validation items"):
        validation_of(HarnessEvaluation(tasks=("any",)), (0.0, 1.0))
    still = settings.model_copy(update={"search": SearchSettings(), "strengths": (0.0,)})
    with pytest.raises(UserError, match="search: expected a strength other than 0"):
        assess(model, still, steered(), out, ONE)


def test_prompts_that_are_read_are_those_that_are_scored(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    out = Location.parse(tmp_path / "e")
    asked = settings.model_copy(
        update={"examples": 50, "token_changes": 50, "only_unseen": True, "concepts": ("sad", "angry")}
    )
    assess(model, asked, steered(), out, ONE)
    scored = {row["scenario"] for row in rows_of(tmp_path / "e", "results.parquet")}
    examples = rows_of(tmp_path / "e", "examples.parquet")
    assert SEEN not in scored
    assert {row["prompt"].removesuffix(" The girl was") for row in examples} <= scored
    assert {row["concept"] for row in examples} == {"sad", "angry"}
    lm = load_model(model.id)
    row = next(row for row in examples if row["condition"] == "vector")
    vector = steered().rows[row["concept"]]["vector"]
    for each in (BASE, Intervention("vector", vector, row["strength"])):
        (wanted,) = generate(lm, [encode(lm, row["prompt"])], [each], max_new_tokens=40)[0]
        mine = [
            other["continuation"]
            for other in examples
            if (other["concept"], other["item"], other["condition"])
            == (row["concept"], row["item"], each.name)
        ]
        assert mine == [wanted]

    written = (tmp_path / "e/examples.parquet").stat().st_mtime_ns
    assess(model, asked, steered(), out, ONE)
    assert (tmp_path / "e/examples.parquet").stat().st_mtime_ns == written
    assess(model, asked.model_copy(update={"examples": 0, "token_changes": 2}), steered(), out, ONE)
    assert not (tmp_path / "e/examples.parquet").exists()
    assert {row["n_prompts"] for row in rows_of(tmp_path / "e", "tokens.parquet")} == {2}


def test_a_prompt_as_long_as_the_context_is_read_without_its_beginning(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    lm = load_model(model.id)
    template = "{text}" + " One day a bird asked the old man where is the water" * 3
    asked = settings.model_copy(
        update={"template": template, "examples": 1, "token_changes": 1, "concepts": ("sad",)}
    )
    prompt = template.format(text="The boy saw the dog of the angry girl.")
    ids = encode(lm, prompt)
    assert lm.context == CONTEXT
    assert CONTEXT - 40 < len(ids) < CONTEXT
    assess(model, asked, steered(), Location.parse(tmp_path / "e"), ONE)
    base = next(r for r in rows_of(tmp_path / "e", "examples.parquet") if r["condition"] == "base")
    kept = [ids[0], *encode(lm, base["prompt"])[-(CONTEXT - 40 - 1) :]]
    ((wanted,),) = generate(lm, [kept], [BASE], max_new_tokens=40)
    assert base["continuation"] == wanted


def test_judging_goes_on_where_it_was(
    in_process: None, model: ModelSettings, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ToxigenEvaluation(
        texts=str(folder / "remarks"), classifier="demo:classifier", template="{text}", per_group=3,
        validation_per_group=0, max_new_tokens=4, strengths=(0.0, 2.0),
    )  # fmt: skip
    whole = assess(model, asked, steered(), Location.parse(tmp_path / "whole"), ONE)
    out = Location.parse(tmp_path / "broken")
    judging: list[int] = []

    def interrupted(actor: Any, arguments: Any, tasks: Any, *rest: Any, **named: Any) -> Any:
        judging.append(len(tasks))
        if len(judging) == 1:
            run_tasks(actor, arguments, tasks[:1], *rest, **named)
            raise KeyboardInterrupt
        return run_tasks(actor, arguments, tasks, *rest, **named)

    monkeypatch.setattr(room, "run_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assess(model, asked, steered(), out, ONE)
    assert not (tmp_path / "broken/metrics.json").exists()
    assert len(list((tmp_path / "broken/judged").iterdir())) == 1
    monkeypatch.setattr(room, "run_on", no_work)  # everything is written already
    again = assess(model, asked, steered(), out, ONE)
    parts = len(CONCEPTS)  # the prompts are scored under each concept's vectors
    assert judging == [parts, parts - 1]
    assert again.conditions == whole.conditions


def no_work(*_: Any, **__: Any) -> None:
    raise AssertionError("something was scored again")


def test_the_command_searches_and_reads_too(
    in_process: None, model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path
) -> None:
    files = []
    for concept, rows in steered().rows.items():
        values = np.zeros((N_BLOCKS, D), np.float32)
        values[BLOCK] = rows["vector"][BLOCK]
        files += ["--vector", str(tmp_path / f"{concept}.safetensors")]
        ConceptVector(values, concept, "tiny").save(Location.parse(files[-1]))
    common = [
        "evaluate", "--model", model.id, "--benchmark", "emotions", "--data", str(settings.texts), *files,
        "--block", str(BLOCK), "--strengths", "0,1,4", "--address", "local", "--actors", "1",
        "--template", str(settings.template), "--out", str(tmp_path / "e"),
    ]  # fmt: skip
    sets = ["search={}", f"validation={settings.validation}", "examples=1", "concepts=[sad]"]
    done = CliRunner().invoke(app, [*common, *(word for each in sets for word in ("--set", each))])
    assert done.exit_code == 0, done.output
    chosen = json.loads((tmp_path / "e/search.json").read_text())["chosen"]["vector"]
    assert {row["strength"] for row in rows_of(tmp_path / "e", "results.parquet")} == {0.0, chosen}
    assert {row["concept"] for row in rows_of(tmp_path / "e", "examples.parquet")} == {"sad"}


@pytest.mark.parametrize(
    ("change", "flag"), [("conditions=[vector]", "--controls"), ("instruction=Be kind.", "--inst-align")]
)
def test_a_setting_with_a_flag_of_its_own_is_refused(change: str, flag: str) -> None:
    given = ["evaluate", "--model", "m", "--benchmark", "emotions", "--data", "d", "--out", "o"]
    done = CliRunner().invoke(app, [*given, "--set", change])
    assert isinstance(done.exception, UserError)
    assert f"expected {flag} for that" in str(done.exception)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--data={nowhere}", "nowhere.jsonl"),
        ("--data={malformed}", "malformed.jsonl"),
        ("--model={nowhere}", "nowhere.jsonl"),
        ("--set=validation={malformed}", "malformed.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_ray_is_started(
    model: ModelSettings, settings: EmotionEvaluation, tmp_path: Path, change: str, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    started: list[Any] = []
    monkeypatch.setattr(whole, "connected", started.append)
    (tmp_path / "malformed.jsonl").write_text('{"text": ')
    change = change.format(**{name: tmp_path / f"{name}.jsonl" for name in ("nowhere", "malformed")})
    searching = [] if "validation" not in change else ["--set", "search={}"]
    done = CliRunner().invoke(app, [
        "evaluate", "--model", model.id, "--benchmark", "emotions", "--data", str(settings.texts),
        "--template", str(settings.template), "--out", str(tmp_path / "e"), change, *searching,
    ])  # fmt: skip
    assert isinstance(done.exception, UserError), done.exception
    assert said in str(done.exception)
    assert started == []
