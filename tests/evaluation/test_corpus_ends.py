"""The map of a recipe's blocks: the note where its corpus ends otherwise than the prompts that vectors come
from, and the table that a pair was chosen by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrans_dist.config import MapSettings, Recipe
from contrans_dist.evaluation.block_search import fit_chosen, fit_sides
from contrans_dist.evaluation.sides import Sides, refine_sides
from contrans_dist.mapping import block_pairs
from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.store.location import Location
from tests.sets import make_set

PROMPTS = [7, 9] * 20


def sides_of(folder: Path, *tokens: list[int], blocks: int = 1, **columns: Any) -> Sides:
    """Random rows of both corpora and both contrast sets, each taken from these tokens."""
    made = []
    for seed, ends in enumerate(tokens):
        rng = np.random.default_rng(seed)
        rows = {b: rng.standard_normal((len(ends), 4)).astype(np.float32) for b in range(blocks)}
        made.append(make_set(folder / str(seed), rows, blocks, token_id=ends, **columns))
    return Sides(*made)


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (PROMPTS, PROMPTS, None),
        ([7] * 25 + [3] * 15, PROMPTS, None),
        (PROMPTS, [7] * 10 + [3] * 30, "25%"),
        ([4] * 40, PROMPTS, "0%"),
    ],
)
def test_it_is_told_where_few_texts_end_as_the_prompts_do(
    source: list[int], target: list[int], told: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_sides(sides_of(tmp_path, source, target, PROMPTS, PROMPTS), MapSettings(), "0:0")
    said = capsys.readouterr().err
    assert ("end on a token that contrast prompts end on" in said) == (told is not None)
    assert told is None or f"{told} of the corpus" in said


def test_nothing_is_told_of_rows_that_are_the_mean_of_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean = [-1] * 40
    fit_sides(sides_of(tmp_path / "prompts", PROMPTS, PROMPTS, mean, mean), MapSettings(), "0:0")
    fit_sides(sides_of(tmp_path / "corpus", mean, mean, PROMPTS, PROMPTS), MapSettings(), "0:0")
    assert "of the corpus" not in capsys.readouterr().err


def test_the_table_of_a_pair_by_r2_is_the_one_that_chose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the split of the map's own protocol, and computed once."""
    split = []

    def counted(*given: Any, **named: Any) -> Any:
        split.append(given[2])
        return r2_table(*given, **named)

    monkeypatch.setattr(block_pairs, "r2_table", counted)
    columns = {"concept": ["a"] * 40, "label": ["positive", "negative"] * 20}
    sides = sides_of(tmp_path, *[PROMPTS] * 4, blocks=3, **columns)
    recipe = Recipe.model_validate({
        "name": "r", "source": "s", "target": "t", "corpus": {"texts": "c"}, "concepts": {"texts": "d"},
        "map": {"protocol": "paper", "blocks": "r2"}, "evaluations": {"e": {"texts": "f"}},
    })  # fmt: skip
    out = Location.parse(tmp_path / "run")
    maps = fit_chosen(recipe, sides, refine_sides(sides.contrast, out), out)
    assert [parts.tolist() for parts in split] == [["fit"] * 32 + ["validation"] * 4 + ["test"] * 4]
    assert maps.r2_table is not None
    assert maps.only_pair() == maps.r2_table.best()
