"""The note where a map's corpus ends otherwise than the prompts that vectors come from."""

from pathlib import Path

import numpy as np
import pytest

from contrans_dist.config import MapSettings
from contrans_dist.evaluation.block_search import fit_sides
from contrans_dist.evaluation.sides import Sides
from tests.sets import make_set

PROMPTS = [7, 9] * 20


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
    ends = {
        "corpus-source": source, "corpus-target": target, "contrast-source": PROMPTS,
        "contrast-target": PROMPTS,
    }  # fmt: skip
    made = []
    for seed, (name, tokens) in enumerate(ends.items()):
        rows = {0: np.random.default_rng(seed).standard_normal((40, 4)).astype(np.float32)}
        made.append(make_set(tmp_path / name, rows, 1, token_id=tokens))
    fit_sides(Sides(*made), MapSettings(), "0:0")
    said = capsys.readouterr().err
    assert ("end on a token that contrast prompts end on" in said) == (told is not None)
    assert told is None or f"{told} of the corpus" in said
