"""The table of ways to fit a map over many corpora: its cuts, its figures, and all of it on small models."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("jobs_importable")


def part(name: str) -> Any:
    return importlib.import_module(f"mapping.{name}")


def ends_of(text: str) -> list[str]:
    """Every beginning of a text that ends with a sentence: a plain loop over its characters."""
    beginnings = []
    for i, mark in enumerate(text):
        following = text[i + 1 : i + 2]
        if mark in "\"'" and i > 0 and text[i - 1] in ".!?" and (not following or following.isspace()):
            beginnings.append(text[: i + 1])
        if mark in ".!?" and (not following or following.isspace()):
            beginnings.append(text[: i + 1])
    return beginnings


def test_texts_are_cut_at_the_ends_of_their_sentences() -> None:
    texts = [
        'Tom ran. He fell! "Are you fine?" said Mum. It cost 3.50 and he cried...',
        "no end at all, v1.2",
        "One sentence.",
        "Line one.\nLine two? And more",
    ]
    beginnings, origins = part("corpora").sentence_ends(texts * 50, seed=3)
    assert origins == [i for i in range(200) if i % 4 != 1]
    for beginning, origin in zip(beginnings, origins, strict=True):
        assert beginning in ends_of(texts[origin % 4])
    drawn = {beginning for beginning, origin in zip(beginnings, origins, strict=True) if origin % 4 == 0}
    assert drawn == set(ends_of(texts[0]))
    assert part("corpora").sentence_ends(texts * 50, seed=3)[0] == beginnings
    assert part("corpora").sentence_ends(texts * 50, seed=4)[0] != beginnings


def result(accuracy: float, random: float, shuffled: float) -> Any:
    return part("variants").Result((0, 1), 2.0, 0.5, 0.5, accuracy, random, shuffled)


def test_the_mean_counts_corpora_alike_and_the_worst_is_one_of_them() -> None:
    ways = part("ways")
    outcomes = {
        "random": [result(0.9, 0.0, 0.1), result(0.6, 0.2, 0.3), result(0.6, 0.1, 0.2)],
        "whole": [result(0.3, 0.4, 0.0)],
    }
    told = ways.summary(outcomes)
    assert told.cells == pytest.approx({"random": 0.7, "whole": 0.3})
    assert (told.mean, told.worst) == pytest.approx((0.5, 0.3))
    assert told.random == pytest.approx((0.25, 0.4))
    assert told.shuffled == pytest.approx((0.1, 0.2))
    better = {"random": [result(0.8, 0.1, 0.1)] * 3, "whole": [result(0.4, 0.1, 0.1)]}
    lines = ways.table({"one": outcomes, "other": better}).splitlines()
    assert lines[0] == "| map | random words | whole | mean | worst | random | shuffled map |"
    assert lines[2] == (
        "| other | 0.80 ± 0.00 | 0.40 | **0.60** | 0.40 | 0.10, at most 0.10 | 0.10, at most 0.10 |"
    )
    assert lines[3] == (
        "| one | 0.70 ± 0.14 | 0.30 | **0.50** | 0.30 | 0.25, at most 0.40 | 0.10, at most 0.20 |"
    )


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundled pair with few of its texts."""
    from contrans_dist import demo

    folder = tmp_path_factory.mktemp("texts")
    paths = demo.write_texts(folder)
    read = {name: [json.loads(line) for line in path.open()] for name, path in paths.items()}
    few = {
        name: [row for emotion in ("happiness", "fear") for row in rows if row.get("concept") == emotion]
        for name, rows in read.items()
    }
    few = {name: rows[:6] + rows[-6:] for name, rows in few.items()}
    for row in few["contrast"]:
        row["name"] = "Tom"
    return part("world").Files(
        source="demo:source",
        target="demo:target",
        contrast=write(folder / "few-contrast.jsonl", few["contrast"]),
        validation=write(folder / "few-validation.jsonl", few["validation"]),
        evaluation=write(folder / "few-evaluation.jsonl", few["evaluation"]),
        corpus=str(paths["corpus"]),
        template=demo.TEMPLATE,
        source_template=demo.TEMPLATE,
        limit=60,
        other=str(folder / "family-corpus.jsonl"),
    )


def test_a_corpus_inside_the_template_of_the_prompts(files: Any) -> None:
    corpora = part("corpora")
    texts, origins = corpora.KINDS["sentence"](files, 1)
    inside, same = corpora.KINDS["sentence-template"](files, 1)
    assert inside == [files.template.format(text=text) for text in texts]
    assert same == origins
    assert all(re.search(r"[.!?]\"?$", text) for text in texts)
    from dataclasses import replace

    named = corpora.framed(["So it was."], replace(files, template="{text} {name} was very"), 0)
    assert named == ["So it was. Tom was very"]


def test_trials_that_share_a_pass_score_as_each_alone(files: Any) -> None:
    world = part("world").World(files)
    items = world.every_negative(files.evaluation)
    assert len(items) == 12
    assert all(item.kind == "negative" and item.scenario in item.prompt for item in items)
    rows = {concept: vector.at(4) for concept, vector in world.own.items()}
    trial = part("world").Trial
    together = world.accuracies(items, 4, [trial(rows, 0.0), trial(rows, 4.0), trial(rows, 4.0, random=True)])
    alone = [world.accuracy(items, rows, 4, [s], random)[0] for s, random in ((0, 0), (4, 0), (4, 1))]
    np.testing.assert_array_equal(together, alone)
    assert together[1] > together[0]


def test_every_way_on_every_corpus(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ways = part("ways")
    world = part("world").World(files)
    ways.compare(world, ["random", "other-template"], (3, 4), 2, 6, list(ways.WAYS.values())[:2])
    told, progress = capsys.readouterr()
    assert "12 scored items, 6 to choose the strength on" in told
    assert "Texts: random words 60, another world, template 60." in told
    lines = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(lines) == 3
    assert sum("(the default)" in line for line in lines) == 1
    assert progress.count(" at ") == 8
