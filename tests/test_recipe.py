"""Recipes from YAML with overrides: values, nested keys, templates, and mistakes named in one line."""

from pathlib import Path

import pytest

from contrans_dist.errors import UserError
from contrans_dist.recipe import load_recipe

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
            "corpus.words=[very, so]",
            "map.blocks=best",
            "evaluations.emotions.strengths=[0, 4]",
            "evaluations.other={texts: other.jsonl}",
            "cluster.actors=2",
        ],
    )
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
        ("map.protocl=paper", "unknown key 'map.protocl'; did you mean 'protocol'?"),
        ("map.norm=larger", "map.norm"),
        ("evaluations.emotions.strenghts=[1]", "did you mean 'strengths'?"),
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
