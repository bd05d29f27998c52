"""A/B behaviours against next-token distributions by transformers alone, and the CAA files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch
from transformers import ByT5Tokenizer

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.behaviours import BehaviourBenchmark, BehaviourEvaluation
from contrans_dist.config.recipe import load_recipe
from contrans_dist.data.templates import prompts
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, load_model, wrap_model
from contrans_dist.pipeline.inputs import RecipeTexts, captures
from contrans_dist.pipeline.runs import RECIPES
from tests.tiny import tiny_model, tiny_tokenizer

TWO = {
    "question": "Did the boy eat dinner?\n\nChoices:\n (A) Yes\n (B) No",
    "answer_matching_behavior": "(B)",
    "answer_not_matching_behavior": "(A)",
}
FOUR = {
    "question": "Where is the cat?\nSay it.\n\nChoices:\n(A) home\n(B) here\n(C) the (D) tree\n(D) park",
    "answer_matching_behavior": " (D)",
    "answer_not_matching_behavior": "(A)",
}


def write(folder: Path, **behaviours: list[dict]) -> str:
    for name, records in behaviours.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "test_dataset_ab.json").write_text(json.dumps(records))
    return str(folder)


def load(texts: str, **more: object) -> BehaviourBenchmark:
    return BehaviourBenchmark.load(BehaviourEvaluation(texts=texts, **more))  # type: ignore[arg-type]


def tiny_lm(**tokenizer: bool) -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer(**tokenizer))


def next_probabilities(lm: LanguageModel, ids: list[int], offset: torch.Tensor | None = None) -> np.ndarray:
    """Over the vocabulary, by the model's own forward, with something added to block 2's output."""
    hooks = []
    if offset is not None:
        hooks = [lm.blocks[2].register_forward_hook(lambda _m, _a, out: out + offset)]
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, -1].double()
    for hook in hooks:
        hook.remove()
    return logits.softmax(-1).numpy()


@pytest.mark.parametrize("bos", [True, False])
def test_the_letters_share_is_the_next_tokens_probability_over_the_letters(tmp_path, bos):
    lm = tiny_lm(bos=bos)
    bench = load(write(tmp_path, survival=[TWO, FOUR]))
    assert isinstance(bench, Benchmark)
    assert [item.concept for item in bench.items()] == ["survival"] * 2
    vector = np.random.default_rng(0).standard_normal(lm.d).astype(np.float32)
    table = bench.score(lm, bench.items(), [BASE, Intervention("vector", {2: vector}, 3.0)]).to_pylist()
    expected = [(c, r) for c in ("base", "vector") for r in (TWO, FOUR)]
    for row, (condition, record) in zip(table, expected, strict=True):
        letters = "AB" if record is TWO else "ABCD"
        ids = lm.tokenizer(record["question"] + "\nAnswer: (")["input_ids"]
        letter_ids = [lm.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in letters]
        assert {len(tokens) for tokens in letter_ids} == {1}
        offset = 3 * torch.tensor(vector) if condition == "vector" else None
        p = next_probabilities(lm, ids, offset)[[tokens[0] for tokens in letter_ids]]
        assert row["letter"] == letters[-1]
        assert row["options"] == list(letters)
        assert row["probability"] == pytest.approx(p[-1] / p.sum(), abs=1e-5)
        assert row["letter_mass"] == pytest.approx(p.sum(), abs=1e-5)
        np.testing.assert_allclose(row["logprobs"], np.log(p), atol=1e-4)
        assert (row["first"], row["condition"], row["concept"]) == (False, condition, "survival")


def test_a_tokenizer_that_joins_bracket_and_letter_is_asked_for_that_token(tmp_path):
    """With a token `(A` but none `(B`, A is one token where B is two, both after the same context."""
    lm = tiny_lm()
    lm.tokenizer.add_tokens(["(A"])
    joined = lm.tokenizer.convert_tokens_to_ids("(A")
    lm.model.resize_token_embeddings(joined + 1)
    lm = wrap_model(lm.model, lm.tokenizer)
    bench = load(write(tmp_path, refusal=[TWO]), template="{text}. Answer: (")
    row = bench.score(lm, bench.items(), [BASE]).to_pylist()[0]
    whole = lm.tokenizer(TWO["question"] + ". Answer: (B")["input_ids"]
    context, (bracket, b) = whole[:-2], whole[-2:]
    p = next_probabilities(lm, context)
    a_share, b_share = p[joined], p[bracket] * next_probabilities(lm, [*context, bracket])[b]
    assert row["probability"] == pytest.approx(b_share / (a_share + b_share), abs=1e-5)


def test_a_tokenizer_that_ends_texts_itself_and_one_without_offsets(tmp_path):
    """ByT5's: one token a byte, implemented in Python, `</s>` after every text."""
    lm = wrap_model(tiny_model("llama", vocab=400), ByT5Tokenizer())
    bench = load(write(tmp_path, refusal=[TWO]))
    row = bench.score(lm, bench.items(), [BASE]).to_pylist()[0]
    ids = lm.tokenizer(TWO["question"] + "\nAnswer: (")["input_ids"][:-1]
    p = next_probabilities(lm, ids)[[ord("A") + 3, ord("B") + 3]]
    assert row["probability"] == pytest.approx(p[1] / p.sum(), abs=1e-5)


@pytest.mark.parametrize(
    ("template", "turn"), [(None, "Answer: ("), ("{text}\\n(", "("), ("{text} (", "("), ("{text}", "")]
)
def test_under_a_chat_template_the_letter_is_in_the_models_turn(tmp_path, template, turn):
    lm = tiny_lm(chat=True)
    bench = load(write(tmp_path, refusal=[TWO]), chat=True, template=template)
    row = bench.score(lm, bench.items(), [BASE]).to_pylist()[0]
    text = f"<s>[user] {TWO['question']}\n[assistant] {turn}"  # the template of tests/tiny.py
    ids = [lm.tokenizer(text + letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
    assert ids[0][:-1] == ids[1][:-1]
    p = next_probabilities(lm, ids[0][:-1])[[ids[0][-1], ids[1][-1]]]
    assert row["probability"] == pytest.approx(p[1] / p.sum(), abs=1e-5)
    with pytest.raises(UserError, match="no chat template"):
        bench.score(tiny_lm(), bench.items(), [BASE])


def test_a_letter_after_a_word_follows_a_space(tmp_path):
    lm = tiny_lm()
    bench = load(write(tmp_path, refusal=[TWO]), template="{text}\nAnswer:")
    row = bench.score(lm, bench.items(), [BASE]).to_pylist()[0]
    ids = [lm.tokenizer(TWO["question"] + f"\nAnswer: {letter}")["input_ids"] for letter in "AB"]
    cut = next(i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b)
    p = next_probabilities(lm, ids[0][:cut])[[ids[0][cut], ids[1][cut]]]
    assert row["probability"] == pytest.approx(p[1] / p.sum(), abs=1e-5)


def rows(condition: str, strength: float, values: dict[tuple[str, str], list[float]]) -> list[dict]:
    return [
        {
            "item": f"{concept}/{letter}{i}", "concept": concept, "condition": condition,
            "strength": strength, "letter": letter, "first": letter == "A", "probability": value,
            "letter_mass": value / 2,
        }
        for (concept, letter), numbers in values.items()
        for i, value in enumerate(numbers)
    ]  # fmt: skip


def test_summary_balances_the_positions(tmp_path):
    rng = np.random.default_rng(0)
    counts = {
        ("refusal", "A"): 30, ("refusal", "B"): 10, ("survival", "A"): 20, ("survival", "C"): 4,
        ("myopia", "B"): 7,
    }  # fmt: skip
    values = {
        key: {cell: rng.random(n).tolist() for cell, n in counts.items()}
        for key in (("base", 0.0), ("vector", 1.0), ("random", 1.0))
    }
    table = pa.Table.from_pylist([row for (c, s), numbers in values.items() for row in rows(c, s, numbers)])
    summary = load(write(tmp_path, refusal=[TWO])).summarise(table)
    assert [n.split(":")[0] for n in summary["notes"]] == ["myopia"]
    for entry in summary["conditions"]:
        cells = values[entry["condition"], entry["strength"]]
        metrics = entry["metrics"]

        def of(cells=cells, concepts=("refusal", "survival", "myopia"), letters="ABC"):
            return [v for (c, x), numbers in cells.items() if c in concepts and x in letters for v in numbers]

        balanced = (np.mean(of(letters="A")) + np.mean(of(letters="BC"))) / 2
        assert metrics["match_probability"]["value"] == pytest.approx(balanced)
        assert metrics["match_probability"]["low"] < balanced < metrics["match_probability"]["high"]
        assert metrics["match_probability"]["n"] == 71
        assert metrics["match_probability_plain"]["value"] == pytest.approx(np.mean(of()))
        assert metrics["letter_mass"]["value"] == pytest.approx(np.mean(of()) / 2)
        one = (np.mean(cells["refusal", "A"]) + np.mean(cells["refusal", "B"])) / 2
        assert metrics["refusal/match_probability"]["value"] == pytest.approx(one)
        assert metrics["myopia/match_probability"]["value"] == pytest.approx(np.mean(cells["myopia", "B"]))
        for letter in "ABC":
            assert metrics[f"match_probability_{letter}"]["value"] == pytest.approx(
                np.mean(of(letters=letter))
            )
        assert metrics["survival/match_probability_C"]["n"] == 4
        if entry["condition"] != "base":
            theirs = [v for numbers in values["base", 0.0].values() for v in numbers]
            p = scipy.stats.wilcoxon(of(), theirs).pvalue
            assert entry["p_vs_base"]["match_probability"] == pytest.approx(p)
        assert ("p_vs" in entry) == (entry["condition"] == "vector")
        if "p_vs" in entry:
            theirs = [v for numbers in values["random", 1.0].values() for v in numbers]
            p = scipy.stats.wilcoxon(of(), theirs).pvalue
            assert entry["p_vs"]["random"]["match_probability"] == pytest.approx(p)


# --- data ---


def test_the_seven_behaviours(shared):
    folder = shared / "data/caa/test"
    bench = load(str(folder))
    concepts = list(dict.fromkeys(item.concept for item in bench.items()))
    assert concepts == [
        "coordinate-other-ais", "corrigible-neutral-HHH", "hallucination", "myopic-reward", "refusal",
        "survival-instinct", "sycophancy",
    ]  # fmt: skip
    assert len(bench.items()) == len({item.id for item in bench.items()}) == 350
    raw = json.loads((folder / "survival-instinct/test_dataset_ab.json").read_text())
    mine = [item for item in bench.items() if item.concept == "survival-instinct"]
    for item, record in zip(mine, raw, strict=True):
        assert item.prompt == record["question"] + "\nAnswer: ("
        assert f"({item.letter})" == record["answer_matching_behavior"].strip()
        assert all(f"({letter})" in record["question"] for letter in item.options)
        assert f"({chr(ord(item.options[-1]) + 1)})" not in record["question"]
        assert record["question"].startswith(item.scenario)
        assert "Choices" not in item.scenario
    assert sorted({len(item.options) for item in mine}) == [2, 3, 5]
    alone = load(str(folder / "refusal/test_dataset_ab.json"), limit=7, seed=1)
    assert {item.concept for item in alone.items()} == {"refusal"}
    assert len(alone.items()) == 7
    assert set(alone.items()) < set(bench.items())
    drawn = [load(str(folder / "refusal"), limit=7, seed=seed).items() for seed in (1, 0)]
    assert drawn[0] == alone.items() != drawn[1]
    lm = load_model(str(shared / "models/stories3m"))
    short = sorted(mine, key=lambda item: len(item.prompt))[:3]
    vectors = np.ones((3, lm.d), np.float32)
    scored = bench.score(lm, short, [BASE, Intervention("random", {3: vectors}, 1.0)])
    assert all(0 < p < 1 for p in scored.column("probability").to_pylist())


def test_the_recipes_take_their_vectors_from_the_letter(shared, tmp_path):
    """What `lcross-modulation` harvests of CAA's contrast sets, and the token that its rows come from."""
    recipe = load_recipe(RECIPES / "lcross-modulation.yaml")
    assert isinstance(recipe.concepts.texts, dict)
    places = {name: str(shared / str(path)) for name, path in recipe.concepts.texts.items()}
    concepts = recipe.concepts.model_copy(update={"texts": places})
    recipe = recipe.model_copy(update={"concepts": concepts})
    table = RecipeTexts(recipe, tmp_path).contrast()
    capture = captures(recipe, "target", 32)["contrast"]
    rows = list(zip(table.to_pylist(), prompts(table, capture.template), strict=True))
    assert len(rows) == 2 * (360 + 290 + 1000 + 950 + 408 + 903 + 1000)
    lm = load_model(str(shared / "models/stories3m"))
    for behaviour in places:
        raw = json.loads(Path(places[behaviour]).read_text())
        mine = [(row, prompt) for row, prompt in rows if row["concept"] == behaviour]
        for label, name in (
            ("positive", "answer_matching_behavior"),
            ("negative", "answer_not_matching_behavior"),
        ):
            labelled = [prompt for row, prompt in mine if row["label"] == label]
            assert labelled == [f"{record['question']} {record[name]}" for record in raw]
            letters = [record[name].strip(" ()") for record in raw]
            for prompt, letter in list(zip(labelled, letters, strict=True))[:3]:
                token = lm.tokenizer(prompt)["input_ids"][int(capture.position)]
                assert lm.tokenizer.decode(token).strip() == letter


def test_bad_data_are_named(tmp_path):
    for bad, message in (
        ({}, "expected a list"),
        ([TWO, {"question": "a"}], "question 2: expected texts question"),
        (
            [{**TWO, "answer_matching_behavior": "(C)"}],
            r"'\(C\)' is none of the options offered: \(A\), \(B\)",
        ),
        ([{**TWO, "question": "Yes or no?"}], "options offered: none"),
        ([{**TWO, "answer_matching_behavior": "(A)"}], r"are both \(A\)"),
    ):
        with pytest.raises(UserError, match=message):
            load(write(tmp_path, refusal=bad))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"expected a folder of <behaviour>/test_dataset_ab.json"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="expected `texts`"):
        BehaviourBenchmark.load(BehaviourEvaluation())
    with pytest.raises(UserError, match="no field 'who'"):
        load(write(tmp_path, refusal=[TWO]), template="{text} {who}")
    long = {**TWO, "question": "the little girl " * 100 + TWO["question"]}
    bench = load(write(tmp_path, refusal=[long]))
    with pytest.raises(UserError, match=r"item refusal/0000 needs .* context holds 128"):
        bench.score(tiny_lm(), bench.items(), [BASE])
