"""Recipes from YAML with overrides: values, nested keys, templates, and mistakes named in one line."""

import re
from pathlib import Path

import pytest
import yaml

from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.errors import UserError

MINIMAL = """
name: small
source: a
target: b
corpus: {texts: corpus.jsonl}
concepts: {texts: contrast.jsonl}
evaluations:
  emotions: {texts: evaluation.jsonl}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(MINIMAL)
    return file


def test_overrides_reach_nested_keys(path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "source={id: c, dtype: bfloat16}",
            "corpus.cut=after",
            "corpus.words=[very, so]",
            "map.blocks=best",
            "evaluations.emotions.strengths=[0, 4]",
            "evaluations.other={texts: other.jsonl}",
            "cluster.actors=2",
        ],
    )
    assert recipe.source is not None
    assert recipe.corpus is not None
    assert (recipe.source.id, recipe.source.dtype, recipe.target.id) == ("c", "bfloat16", "b")
    assert (recipe.corpus.texts, recipe.corpus.words) == ("corpus.jsonl", ("very", "so"))
    assert (recipe.map.blocks, recipe.map.protocol) == ("best", "default")
    assert recipe.evaluations["emotions"].strengths == (0.0, 4.0)
    assert recipe.evaluations["other"].texts == "other.jsonl"
    assert recipe.cluster.actors == 2


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("{text} {name} was very ", "{text} {name} was very "),
        ('"{text} "', "{text} "),
        ("Scenario: {text}", "Scenario: {text}"),
        ("null", None),
    ],
)
def test_a_template_is_taken_as_it_is_written(path: Path, given: str, wanted: str | None) -> None:
    assert load_recipe(path, [f"concepts.source_template={given}"]).concepts.source_template == wanted


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("map.protocl=paper", "unknown key 'map.protocl'; did you mean protocol?"),
        ("map.norm=larger", "map.norm"),
        ("evaluations.emotions.strenghts=[1]", "did you mean strengths?"),
        ("source.dtype=float32", "source={id: ..., ...}"),
        ("name.x=1", "name has no keys of its own"),
        ("nothing", "expected key=value"),
    ],
)
def test_a_mistaken_override_is_named(path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(path, [override])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


SEVERAL = (
    MINIMAL
    + """
runs:
  ten: {concepts.limit: 10}
  "20": {concepts.limit: 20, target: {id: c, dtype: bfloat16}, evaluations.emotions.strengths: [0, 3]}
small:
  source: demo:source
  runs: {}
"""
)


def test_runs_are_the_recipe_with_their_changes(path: Path) -> None:
    path.write_text(SEVERAL)
    recipe = load_recipe(path)
    ten, twenty = runs_of(recipe).values()
    assert list(runs_of(recipe)) == ["ten", "20"]
    assert (ten.concepts.limit, ten.target.id, ten.target.dtype) == (10, "b", None)
    assert (twenty.concepts.limit, twenty.target.id, twenty.target.dtype) == (20, "c", "bfloat16")
    assert twenty.evaluations["emotions"].strengths == (0, 3)
    assert (twenty.runs, twenty.small, twenty.published) == ({}, None, None)


def test_small_takes_the_place_of_what_it_names(path: Path) -> None:
    path.write_text(SEVERAL)
    recipe = load_recipe(path, small=True)
    assert recipe.source is not None
    assert (recipe.source.id, recipe.target.id, recipe.runs) == ("demo:source", "b", {})
    assert list(runs_of(recipe)) == ["all"]
    path.write_text(MINIMAL)
    with pytest.raises(UserError, match="--small: the recipe has no key `small`"):
        load_recipe(path, small=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{a: {concepts.limt: 10}}", r"runs.a: unknown key 'concepts.limt'; did you mean limit\?"),
        ("{a/b: {}}", r"runs.a/b"),
        ("{a: {source.dtype.x: 1}}", "runs.a.source.dtype.x: dtype has no keys of its own"),
    ],
)
def test_runs_that_are_none(path: Path, changes: str, message: str) -> None:
    path.write_text(f"{MINIMAL}runs: {changes}")
    with pytest.raises(UserError, match=message):
        runs_of(load_recipe(path))


def test_settings_of_an_evaluation_are_its_benchmarks(path: Path) -> None:
    path.write_text(MINIMAL + "  text: {benchmark: perplexity, texts: t.txt, window: 64}\n")
    assert load_recipe(path).evaluations["text"].model_dump()["window"] == 64
    for change, message in [
        ("evaluations.text.windw=3", "unknown key 'evaluations.text.windw'; did you mean window"),
        ("evaluations.text.shots=x", "unknown key 'evaluations.text.shots'"),
        ("evaluations.text.benchmark=toxgen", "evaluations.text.benchmark: no .*; did you mean toxigen"),
        ("evaluations.text.benchmark=mmlu", "no benchmark 'mmlu'; expected one of emotions"),
    ]:
        with pytest.raises(UserError, match=message):
            load_recipe(path, [change])


OVERLAPPING = (
    MINIMAL
    + """
runs:
  one: {target: {id: c, dtype: bfloat16}, map.blocks: "1:2"}
  two: {target.dtype: float16, concepts.limit: 20}
  three: {}
"""
)


def test_an_override_holds_in_every_run(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(OVERLAPPING.replace("target: b", "target: {id: b}"))
    runs = runs_of(load_recipe(file, ["target.dtype=float32", "map.blocks=depth", "cluster.actors=3"]))
    assert {name: (run.target.id, run.target.dtype) for name, run in runs.items()} == {
        "one": ("c", "float32"), "two": ("b", "float32"), "three": ("b", "float32"),
    }  # fmt: skip
    assert {run.map.blocks for run in runs.values()} == {"depth"}
    assert {run.cluster.actors for run in runs.values()} == {3}
    assert runs["two"].concepts.limit == 20
    # A run's own setting can still be named, and what lies beneath another key stays the run's.
    one = runs_of(load_recipe(file, ["runs.one.target={id: d}", "target={id: e}"]))
    assert (one["one"].target.id, one["two"].target.dtype) == ("e", "float16")
    assert runs_of(load_recipe(file, ["runs.one.target={id: d}"]))["one"].target.id == "d"


def test_blocks_are_chosen_where_there_is_something_to_choose_on(path: Path) -> None:
    assert load_recipe(path).blocks == "depth"
    with_items = "evaluations.emotions.validation=validation.jsonl"
    assert load_recipe(path, [with_items]).blocks == "best"
    assert load_recipe(path, [with_items, "map.protocol=paper"]).blocks == "depth"
    assert load_recipe(path, [with_items, "map.blocks=1:2"]).blocks == "1:2"
    # ToxiGen sets prompts aside itself.
    assert load_recipe(path, ["evaluations.toxic={benchmark: toxigen}"]).blocks == "best"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x" * 101, "a\\b", "a\n"])
@pytest.mark.parametrize("key", ["evaluations", "sources", "name"])
def test_what_names_a_folder_names_one_inside_the_run(path: Path, key: str, name: str) -> None:
    content = yaml.safe_load(path.read_text())
    of_it = {"texts": "x"} if key == "evaluations" else {"id": "m"}
    content[key] = name if key == "name" else {name: of_it}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"recipe.yaml: '?{key}.*expected a name of"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("corpus={texts: a, cut: after}", "corpus: expected `words` and `cut: after` together"),
        ("corpus={texts: a, words: [so]}", "corpus: expected `words` and `cut: after` together"),
        ("corpus={texts: a, per_text: 3}", "corpus: expected `per_text` with `cut: random` alone"),
        ("evaluations.emotions.search={budget: 1.2}", "search: expected `perplexity`, a text, where"),
        ("concepts={texts: a, positive: '{text}', negative: '{text}'}", "expected `texts` by concept"),
        ("concepts={texts: {a: {texts: b, template: '{text}', positive: '{text}', negative: '{text}'}}}",
         "or `template`, or `positive` and `negative`"),
        ("concepts={texts: {a: {texts: b}}, source_template: '{text}'}", "expected no `source_template`"),
    ],
)  # fmt: skip
def test_settings_that_would_not_be_used_are_refused(path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load_recipe(path, [override])


def test_a_pair_of_blocks_is_no_number(path: Path) -> None:
    text = path.read_text()
    path.write_text(text + "map: {blocks: 24:30}\n")  # 1,470 in YAML 1.1
    assert load_recipe(path).blocks == "24:30"
    path.write_text(text + "map: {blocks: 24}\n")
    with pytest.raises(UserError, match=r"map.blocks: expected a pair such as 24:30"):
        load_recipe(path)
