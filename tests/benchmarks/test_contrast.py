"""Contrast prompts, against a plain loop with a hook; and the prompts against those of a harvest."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from contrans_dist.benchmarks.contrast import ContrastBenchmark, ContrastEvaluation
from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.config.recipe import validated
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import OverflowedError, UserError
from contrans_dist.harvest.driver import HarvestJob, harvest_sets
from contrans_dist.models import LanguageModel, load_model, wrap_model
from contrans_dist.store.location import Location
from contrans_dist.vectors.extract import one_vs_rest
from tests.sets import make_set
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

D, N_BLOCKS, BLOCK = 32, 4, 2
WORDS = ["happy", "sad", "red", "old", "big"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return wrap_model(tiny_model("llama", n_blocks=N_BLOCKS, d=D), tiny_tokenizer())


def of(
    table: dict[str, list[Any]], capture: CaptureSettings | None = None, **settings: Any
) -> ContrastBenchmark:
    given = validated(ContrastEvaluation, {"texts": "contrast", **settings}, "test")
    return ContrastBenchmark.of(given, pa.table(table), capture or CaptureSettings(), "contrast")


def pairs(n: int = 6) -> dict[str, list[Any]]:
    """Pairs that differ in a word, negative ones in another order; of one concept."""
    positive = [f"the {WORDS[i % 5]} dog was very happy under tree {i}" for i in range(n)]
    negative = [f"the {WORDS[i % 5]} dog was very sad under tree {i}" for i in range(n)]
    return {
        "text": positive + negative[::-1],
        "concept": ["joy"] * (2 * n),
        "label": ["positive"] * n + ["negative"] * n,
        "pair_id": [*range(n), *reversed(range(n))],
    }


def scenes() -> dict[str, list[Any]]:
    """Texts of three concepts, each against the others."""
    rows = [(f"a {word} boy and a {other} cat", word) for word in WORDS[:3] for other in WORDS]
    return {"text": [text for text, _ in rows], "concept": [concept for _, concept in rows]}


def plain(lm: LanguageModel, text: str, row: np.ndarray | None = None) -> np.ndarray:
    """The next token's distribution after a text, one full forward with a hook of this test's own."""
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        moved = states + torch.from_numpy(row)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = lm.model.model.layers[BLOCK].register_forward_hook(hook) if row is not None else None
    with torch.no_grad():
        logits = lm.model(ids).logits[0, -1].double()
    if handle is not None:
        handle.remove()
    return logits.softmax(0).numpy()


def gains(
    lm: LanguageModel, text: str, goal: np.ndarray, rest: np.ndarray, row: np.ndarray
) -> tuple[float, float]:
    kept = np.argsort(-(goal + rest))[:256]
    change = (np.log(plain(lm, text, row)) - np.log(plain(lm, text)))[kept]
    return float(goal[kept] @ change), float(rest[kept] @ change)


def test_the_gain_of_pairs_and_of_concepts_is_that_of_a_plain_loop(lm: LanguageModel) -> None:
    row = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    steered = [BASE, Intervention("vector", {BLOCK: row}, 0.5), Intervention("vector", {BLOCK: row}, 2.0)]
    table = pairs()
    benchmark = of(table)
    texts, n = table["text"], 6
    rest = np.mean([plain(lm, text) for text in texts[n:]], axis=0)
    scored = benchmark.score(lm, benchmark.items(), steered)
    for strength in (0.5, 2.0):
        rows = [row for row in scored.to_pylist() if row["strength"] == strength]
        assert [line["item"] for line in rows] == [f"joy/{i:05d}" for i in range(n, 2 * n)]
        for i, line in enumerate(rows):
            goal = plain(lm, texts[n - 1 - i])  # negative prompts come in the other order
            expected = gains(lm, texts[n + i], goal, rest, strength * row)
            assert (line["towards"], line["away"]) == pytest.approx(expected, abs=1e-4)
    base = [row for row in scored.to_pylist() if row["strength"] == 0]
    assert max(abs(line["towards"]) for line in base) < 1e-5

    table = scenes()
    benchmark = of(table)
    for concept in WORDS[:3]:
        items = [item for item in benchmark.items() if item.concept == concept]
        positive, negative = one_vs_rest(table["concept"], concept, 0)
        assert [item.scenario for item in items] == [table["text"][i] for i in negative]
        goal, rest = (
            np.mean([plain(lm, table["text"][i]) for i in side], axis=0) for side in (positive, negative)
        )
        lines = benchmark.score(lm, items, steered[1:2]).to_pylist()
        for item, line in zip(items, lines, strict=True):
            expected = gains(lm, item.prompt, goal, rest, 0.5 * row)
            assert (line["towards"], line["away"]) == pytest.approx(expected, abs=1e-4)


def test_a_cut_into_work_units_changes_nothing(lm: LanguageModel) -> None:
    benchmark = of(pairs())
    row = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    steered = [BASE, Intervention("vector", {BLOCK: row}, 1.0)]
    items = benchmark.items()
    whole = benchmark.score(lm, items, steered).sort_by([("item", "ascending"), ("strength", "ascending")])
    parts = [benchmark.score(lm, some, steered) for some in (items[:2], items[2:])]
    again = pa.concat_tables(parts).sort_by([("item", "ascending"), ("strength", "ascending")])
    for name in ("towards", "away"):
        assert np.allclose(whole[name], again[name], atol=1e-5)


def test_a_step_uphill_gains_one_downhill_loses_and_a_leap_loses_too(lm: LanguageModel) -> None:
    """The gradient of the gain, by autograd."""
    texts, n = pairs()["text"], 6
    rest = np.mean([plain(lm, text) for text in texts[n:]], axis=0)
    offset = torch.zeros(D, requires_grad=True)
    handle = lm.model.model.layers[BLOCK].register_forward_hook(lambda _m, _a, states: states + offset)
    for i, text in enumerate(texts[n:]):
        logs = lm.model(lm.tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1].log_softmax(0)
        goal = plain(lm, texts[n - 1 - i])
        kept = np.argsort(-(goal + rest))[:256].copy()
        (torch.from_numpy(goal[kept]).float() @ logs[kept]).backward()
    handle.remove()
    assert offset.grad is not None
    uphill = (offset.grad / offset.grad.norm()).numpy()
    steered = [BASE, *(Intervention("vector", {BLOCK: uphill}, s) for s in (-0.05, 0.05, 1000.0))]
    benchmark = of(pairs())
    entries = benchmark.summarise(benchmark.score(lm, benchmark.items(), steered))["conditions"]
    found = {entry["strength"]: entry["metrics"]["contrast_gain"]["value"] for entry in entries}
    assert found[1000.0] < found[-0.05] < 0 < found[0.05]


def test_what_negative_prompts_gain_as_well_does_not_count() -> None:
    (metric,) = ContrastBenchmark.metrics
    assert metric.estimate(np.array([[0.5, 0.4], [0.7, 0.2]]))["value"] == pytest.approx(0.3)
    assert metric.estimate(np.array([[0.5, -0.4], [0.7, -0.2]]))["value"] == pytest.approx(0.6)


def test_logits_that_overflow_are_the_worst_there_is(lm: LanguageModel) -> None:
    benchmark = of(pairs())
    handle = lm.model.model.norm.register_forward_hook(
        lambda _m, args, normed: normed * torch.where(args[0].abs().amax() > 1e5, torch.inf, 1.0)
    )
    broken = Intervention("vector", {N_BLOCKS - 1: np.eye(D, dtype=np.float32)[0]}, 1e6)
    (entry,) = benchmark.summarise(benchmark.score(lm, benchmark.items(), [broken]))["conditions"]
    handle.remove()
    assert entry["metrics"]["contrast_gain"]["value"] < -10


def test_an_unsteered_model_whose_logits_overflow_is_a_failure(lm: LanguageModel) -> None:
    benchmark = of(pairs())
    handle = lm.model.model.norm.register_forward_hook(lambda _m, _a, normed: normed * torch.inf)
    with pytest.raises(
        OverflowedError, match=r"condition base .*overflow; use bfloat16 or float32"
    ) as caught:
        benchmark.score(lm, benchmark.items(), [BASE])
    handle.remove()
    assert caught.value.lost == {("base", 0.0)}


def test_some_prompts_of_each_concept_evenly_spread() -> None:
    table = {"text": [f"text {i}" for i in range(300)], "concept": ["a"] * 100 + ["b"] * 100 + ["c"] * 100}
    benchmark = of(table, prompts=12)
    assert [item.concept for item in benchmark.items()] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert benchmark.positive["b"] == ("text 100", "text 133", "text 166", "text 199")
    assert len(of(table).items()) == 96


CAPTURES = {
    "template": CaptureSettings(template="Scene: {text}\nIt was"),
    "chat": CaptureSettings(template="{text}?", chat=True),
    "before": CaptureSettings(position=-3),
    "first": CaptureSettings(position=2),
    "cut": CaptureSettings(max_tokens=6),
    "mean": CaptureSettings(position="mean"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), n_blocks=2, d=16, chat=True))


@pytest.mark.parametrize("name", CAPTURES)
def test_prompts_are_those_of_the_harvest(name: str, folder: str, tmp_path: Path) -> None:
    capture, given = CAPTURES[name], pairs()
    table = pa.table({**given, "row": range(12), "text_id": [str(i) for i in range(12)]})
    job = HarvestJob(table, Location.parse(str(tmp_path / "set")), capture)
    (states,) = harvest_sets(ModelSettings(id=folder), [job])
    benchmark = ContrastBenchmark.load(ContrastEvaluation(texts=states.location.uri))
    assert benchmark.items() == of(given, capture).items()
    lm = load_model(folder)
    known, asked = benchmark.calls(lm, benchmark.items())
    harvested = states.read_columns(["token_id", "n_tokens"]).to_pylist()
    assert [ids[-1] for ids in asked.contexts] == [ids[-1] for ids in known.contexts[6:]]
    whole = [harvested[i] for i in [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 10, 11]]  # partners in the items' order
    for ids, row in zip(known.contexts, whole, strict=True):
        left = {"before": row["n_tokens"] - 2, "first": 3}.get(name, row["n_tokens"])
        assert len(ids) == left
        assert row["token_id"] in (ids[-1], -1 if name == "mean" else None)


def test_a_set_of_other_texts_is_told(tmp_path: Path) -> None:
    make_set(tmp_path / "corpus", {0: np.ones((4, 8), np.float32)}, 2)
    with pytest.raises(UserError, match="expected contrast texts, with a column 'concept'"):
        ContrastBenchmark.load(ContrastEvaluation(texts=str(tmp_path / "corpus")))
