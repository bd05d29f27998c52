"""What a recipe harvests: contrast texts under one template, under two, or with prompts of their own."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.benchmarks.registry import load_benchmark
from contrans_dist.benchmarks.toxigen import ToxigenEvaluation
from contrans_dist.config import MapSettings, Recipe
from contrans_dist.data.templates import prompts
from contrans_dist.errors import UserError
from contrans_dist.pipeline.inputs import RecipeTexts, captures

QUESTIONS = [
    {"question": "Where do fish live?", "mc1_targets": {"In water.": 1}, "yes": "water", "no": "sand"},
    {"question": "What is {snow}?", "mc1_targets": {"Cold.": 1}, "yes": "cold", "no": "hot"},
]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(QUESTIONS))
    return str(path)


def texts_of(tmp_path: Path, concepts: dict[str, Any]) -> tuple[RecipeTexts, Recipe]:
    content = {
        "name": "r", "source": "a", "target": "b", "corpus": {"texts": "c"}, "concepts": concepts,
        "evaluations": {"e": {"texts": "f"}},
    }  # fmt: skip
    recipe = Recipe.model_validate(content)
    return RecipeTexts(recipe, tmp_path), recipe


@pytest.mark.parametrize(
    ("settings", "source", "target"),
    [
        ({}, "2,3", "3"),  # the default reads the block below as well
        ({"protocol": "paper"}, "3", "3"),
        ({"blocks": "0:2"}, "0", "2"),
        ({"blocks": "2:1", "source_blocks": 3}, "0,1,2", "1"),
        ({"blocks": "best"}, "all", "all"),
    ],
)
def test_the_blocks_that_a_map_needs_are_harvested(
    tmp_path: Path, settings: dict[str, Any], source: str, target: str
) -> None:
    _, recipe = texts_of(tmp_path, {"texts": "x"})
    recipe = recipe.model_copy(update={"map": MapSettings.model_validate(settings)})
    for side, wanted in (("source", source), ("target", target)):
        assert {each.blocks for each in captures(recipe, side, 4).values()} == {wanted}


def test_toxigen_evaluations_that_draw_differently_leave_nothing_for_both(tmp_path: Path) -> None:
    folder = tmp_path / "toxigen"
    folder.mkdir()
    for kind in ("hate", "neutral"):
        lines = [f"{kind} remark number {i}" for i in range(30)]
        (folder / f"{kind}_men.txt").write_text("\n".join(lines) + "\n")
    _, recipe = texts_of(tmp_path, {"texts": {"fairness": str(folder)}})

    def with_(**evaluations: dict[str, Any]) -> RecipeTexts:
        made = {
            name: ToxigenEvaluation(texts=str(folder), per_group=5, validation_per_group=2, **settings)
            for name, settings in evaluations.items()
        }
        return RecipeTexts(recipe.model_copy(update={"evaluations": made}), tmp_path / "made")

    texts = with_(a={}, b={"max_new_tokens": 5}).contrast().column("text").to_pylist()
    scored = {item.scenario for item in load_benchmark(with_(a={}).recipe.evaluations["a"]).items()}
    assert len(scored) == 7
    assert not scored & set(texts)
    with pytest.raises(UserError, match="evaluations a, b: expected the same seed, per_group"):
        with_(a={}, b={"seed": 1}).contrast()


def harvested(texts: RecipeTexts, recipe: Recipe) -> list[str]:
    """The prompts as the harvest makes them."""
    return prompts(texts.contrast(), captures(recipe, "target", 4)["contrast"].template)


def test_each_text_under_both_templates(tmp_path: Path, questions: str) -> None:
    texts, recipe = texts_of(
        tmp_path,
        {
            "texts": {"honesty": questions},
            "positive": "[INST] Be honest. [/INST] {text}\\n{yes}",
            "negative": "[INST] Lie. [/INST] {text}\\n{no}",
        },
    )
    table = texts.contrast()
    # The leak check knows a question by itself, whatever stood around it.
    assert table.column("text").to_pylist() == [q["question"] for q in QUESTIONS] * 2
    assert table.column("label").to_pylist() == ["positive"] * 2 + ["negative"] * 2
    assert table.column("pair_id").to_pylist() == [0, 1, 0, 1]
    assert set(table.column("concept").to_pylist()) == {"honesty"}
    assert harvested(texts, recipe) == [
        "[INST] Be honest. [/INST] Where do fish live?\nwater",
        "[INST] Be honest. [/INST] What is {snow}?\ncold",
        "[INST] Lie. [/INST] Where do fish live?\nsand",
        "[INST] Lie. [/INST] What is {snow}?\nhot",
    ]


def test_concepts_with_prompts_of_their_own(tmp_path: Path, questions: str) -> None:
    other = tmp_path / "kind.json"
    other.write_text(json.dumps({"pos": ["You are kind."], "neg": ["You are rude."]}))
    texts, recipe = texts_of(
        tmp_path,
        {
            "texts": {
                "honesty": {"texts": questions, "positive": "+ {text}", "negative": "- {text}"},
                "kindness": {"texts": str(other), "template": "Consider: {text}!"},
            }
        },
    )
    assert harvested(texts, recipe) == [
        "+ Where do fish live?",
        "+ What is {snow}?",
        "- Where do fish live?",
        "- What is {snow}?",
        "Consider: You are kind.!",
        "Consider: You are rude.!",
    ]
    assert texts.contrast().column("label").to_pylist()[-2:] == ["positive", "negative"]


def test_plain_files_keep_the_common_template(tmp_path: Path) -> None:
    path = tmp_path / "fear.json"
    path.write_text(json.dumps({"pos": ["A dog."], "neg": ["A cake."]}))
    texts, recipe = texts_of(tmp_path, {"texts": {"fear": str(path)}, "template": "S: {text}"})
    assert harvested(texts, recipe) == ["S: A dog.", "S: A cake."]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text} {gone}", "the template names a column 'gone' that is not there"),
        ("no place", "expected a place for the text"),
    ],
)
def test_templates_that_do_not_fit(tmp_path: Path, questions: str, template: str, message: str) -> None:
    concepts = {"texts": {"honesty": questions}, "positive": template, "negative": "{text}"}
    texts, _ = texts_of(tmp_path, concepts)
    with pytest.raises(UserError, match=message):
        texts.contrast()


def test_texts_without_labels_need_two_templates(tmp_path: Path, questions: str) -> None:
    texts, _ = texts_of(tmp_path, {"texts": {"honesty": questions}})
    with pytest.raises(UserError, match=r"questions.json: expected positive and negative texts"):
        texts.contrast()


def test_one_template_of_two_is_refused(tmp_path: Path, questions: str) -> None:
    with pytest.raises(ValueError, match="`positive` and `negative` together"):
        texts_of(tmp_path, {"texts": {"honesty": questions}, "positive": "+ {text}"})


@pytest.mark.parametrize(
    "changes",
    [
        {"texts": {"fear": {"texts": "{labelled}", "positive": "+ {text}", "negative": "- {text}"}}},
        {"texts": {"fear": "{labelled}"}, "positive": "+ {text}", "negative": "- {text}"},
    ],
)
def test_texts_with_labels_are_not_labelled_by_templates_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Before, the templates were passed over."""
    path = tmp_path / "fear.json"
    path.write_text(json.dumps({"pos": ["A dog."], "neg": ["A cake."]}))
    texts, _ = texts_of(tmp_path, json.loads(json.dumps(changes).replace("{labelled}", str(path))))
    with pytest.raises(UserError, match=r"fear.json: has labels"):
        texts.contrast()


def test_a_template_of_one_s_own_leaves_texts_without_labels(tmp_path: Path, questions: str) -> None:
    """Before, the labels of all other concepts were dropped for it."""
    concepts = {
        "texts": {"a": {"texts": questions, "template": "T {text}"}, "b": questions},
        "positive": "+ {text}", "negative": "- {text}",
    }  # fmt: skip
    texts, _ = texts_of(tmp_path, concepts)
    with pytest.raises(UserError, match=r"questions.json: expected positive and negative texts"):
        texts.contrast()


def test_columns_of_several_files_agree_or_are_named(tmp_path: Path) -> None:
    """A string of pandas is a large one; numbers are widened; a number and a word are neither."""
    columns = {"label": ["positive", "negative"], "text": ["a", "b"]}
    pq.write_table(pa.table({**columns, "n": pa.array([1, 2], pa.int32())}), tmp_path / "a.parquet")
    wide = {name: pa.array(values, pa.large_string()) for name, values in columns.items()}
    pq.write_table(pa.table({**wide, "n": pa.array([1.5, None])}), tmp_path / "b.parquet")
    pq.write_table(pa.table({**columns, "n": ["x", "y"]}), tmp_path / "c.parquet")
    given = {name: str(tmp_path / f"{name}.parquet") for name in "abc"}
    texts, _ = texts_of(tmp_path, {"texts": {name: given[name] for name in "ab"}})
    assert texts.contrast().column("n").to_pylist() == [1.0, 2.0, 1.5, None]
    texts, _ = texts_of(tmp_path, {"texts": given})
    with pytest.raises(UserError, match=r"concepts.texts: expected columns of one type in all files"):
        texts.contrast()
