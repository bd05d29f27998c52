"""TruthfulQA against scores written out here by transformers alone, and lm-evaluation-harness itself."""

import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ByT5Tokenizer

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.choices import answer_ids
from contrans_dist.benchmarks.truthfulqa import TruthfulQABenchmark, TruthfulQAEvaluation, mc1, mc2
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import LanguageModel, load_model, wrap_model
from jobs import fetch_real_model
from tests.tiny import tiny_model, tiny_tokenizer

QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "Where is the water?",
        "mc1_targets": {"Under the tree": 1, "In the park": 0, "He did not know": 0},
        "mc2_targets": {"Under the tree": 1, "near the forest": 1, "In the park": 0, "He did not know": 0},
    },
    {
        "question": "Who ran after the cat?",
        "mc1_targets": {"The big dog ran after her cat.": 1, "The old man": 0},
        "mc2_targets": {"The big dog ran after her cat.": 1, "The old man": 0, "No one": 0},
    },
    {
        "question": "Was the boy happy?",
        "mc1_targets": {"Yes": 1, "He was sad, angry and afraid": 0, "no": 0, "No": 0},
        "mc2_targets": {"Yes": 1, "He was sad, angry and afraid": 0, "no": 0},
    },
]


def tiny_lm(**tokenizer: bool) -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer(**tokenizer))


def write(path: Path, content: object = QUESTIONS) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def settings(texts: str, **more: object) -> TruthfulQAEvaluation:
    return TruthfulQAEvaluation(texts=texts, **more)  # type: ignore[arg-type]


def hub_table(records: list[dict]) -> pa.Table:
    """The questions as the hub's Parquet file has them."""
    kind = pa.struct([("choices", pa.list_(pa.string())), ("labels", pa.list_(pa.int32()))])

    def target(record: dict, task: str) -> dict:
        return {"choices": list(record[task]), "labels": list(record[task].values())}

    columns = {task: [target(r, task) for r in records] for task in ("mc1_targets", "mc2_targets")}
    return pa.table(
        {
            "question": [r["question"] for r in records],
            **{task: pa.array(values, kind) for task, values in columns.items()},
        }
    )


def by_transformers(lm: LanguageModel, prompt: str, answer: str, offset: torch.Tensor | None = None) -> tuple:
    """(sum of log-probabilities, tokens) of " answer" after the prompt, by the model's own forward."""
    whole = lm.tokenizer(f"{prompt} {answer}")["input_ids"]
    start = len(lm.tokenizer(prompt)["input_ids"])
    assert whole[:start] == lm.tokenizer(prompt)["input_ids"]
    hooks = []
    if offset is not None:
        hooks = [lm.blocks[1].register_forward_hook(lambda _m, _a, out: out + offset)]
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return sum(logprobs[i - 1, whole[i]].item() for i in range(start, len(whole))), len(whole) - start


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_scores_are_the_log_likelihoods_of_the_answers_tokens(tmp_path, bos, protocol):
    lm = tiny_lm(bos=bos)
    bench = TruthfulQABenchmark.load(settings(write(tmp_path / "q.json"), protocol=protocol, seed=3))
    assert isinstance(bench, Benchmark)
    vector = np.random.default_rng(0).standard_normal(lm.d).astype(np.float32)
    steered = Intervention("vector", {1: vector}, 2.0)
    table = bench.score(lm, bench.items(), [BASE, steered]).to_pylist()
    assert len(table) == 6
    for row, (condition, question) in zip(
        table, [(c, q) for c in ("base", "vector") for q in QUESTIONS], strict=True
    ):
        text = question["question"]
        prompt = {"default": f"Q: {text}\nA:", "paper": f"[INST] {text}[/INST]"}[protocol]
        offset = 2 * torch.tensor(vector) if condition == "vector" else None
        scored = {a: by_transformers(lm, prompt, a, offset) for a in row["choices"]}
        assert set(scored) == {*question["mc1_targets"], *question["mc2_targets"]}
        assert (row["condition"], row["question"], row["concept"]) == (condition, text, "")
        assert row["strength"] == (0 if condition == "base" else 2)
        assert row["block"] == (None if condition == "base" else 1)
        np.testing.assert_allclose(row["logprobs"], [s for s, _ in scored.values()], atol=1e-4)
        assert row["tokens"] == [n for _, n in scored.values()]
        by = {
            "sum": {a: s for a, (s, n) in scored.items()},
            "per_token": {a: s / n for a, (s, n) in scored.items()},
            "per_character": {a: s / len(a) for a, (s, n) in scored.items()},
        }
        for name, values in by.items():
            true = next(a for a, label in question["mc1_targets"].items() if label)
            rivals = [values[a] for a, label in question["mc1_targets"].items() if not label]
            assert row[f"mc1_{name}"] == (values[true] > max(rivals))
            weights = {a: math.exp(values[a]) for a in question["mc2_targets"]}
            share = sum(w for a, w in weights.items() if question["mc2_targets"][a]) / sum(weights.values())
            assert row[f"mc2_{name}"] == pytest.approx(share, abs=1e-5)
        assert row["chosen"] == max(question["mc1_targets"], key=by["sum"].__getitem__)
        assert row["chance_mc1"] == 1 / len(question["mc1_targets"])


def test_a_vector_of_each_items_own_steers_all_its_choices(tmp_path):
    lm = tiny_lm()
    bench = TruthfulQABenchmark.load(settings(write(tmp_path / "q.json")))
    vectors = np.random.default_rng(1).standard_normal((3, lm.d)).astype(np.float32)
    together = bench.score(lm, bench.items(), [Intervention("random", {1: vectors}, 1.0)]).to_pylist()
    for i, item in enumerate(bench.items()):
        alone = bench.score(lm, [item], [Intervention("random", {1: vectors[i]}, 1.0)]).to_pylist()[0]
        np.testing.assert_allclose(together[i]["logprobs"], alone["logprobs"], atol=1e-5)


def test_a_tie_is_no_hit_wherever_the_true_answer_stands():
    scores = np.array([-1.0, -1.0, -2.0])
    assert not mc1(scores, np.array([True, False, False]))
    assert not mc1(scores, np.array([False, True, False]))
    assert mc1(np.array([-1.5, -1.0, -2.0]), np.array([False, True, False]))
    assert mc2(np.array([-1000.0, -1000.0]), np.array([True, False])) == pytest.approx(0.5)


def test_the_order_is_drawn_by_the_seed_and_changes_no_score(tmp_path):
    path = write(tmp_path / "q.json", QUESTIONS * 8)
    one, two = (TruthfulQABenchmark.load(settings(path, seed=s)) for s in (0, 1))
    assert one == TruthfulQABenchmark.load(settings(path, seed=0)) != two
    orders = {
        tuple(i.mc1) for s in range(20) for i in TruthfulQABenchmark.load(settings(path, seed=s)).items()
    }
    assert len({order[0] for order in orders if len(order) == 4}) == 4  # any of them stands first
    lm = tiny_lm()
    for a, b in zip(
        one.score(lm, one.items()[:3], [BASE]).to_pylist(),
        two.score(lm, two.items()[:3], [BASE]).to_pylist(),
        strict=True,
    ):
        assert {k: v for k, v in a.items() if k.startswith("mc1_")} == {
            k: v for k, v in b.items() if k.startswith("mc1_")
        }
        assert a["mc2_sum"] == pytest.approx(b["mc2_sum"])
    few = TruthfulQABenchmark.load(settings(path, seed=0, limit=5)).items()
    assert len(few) == 5
    assert set(few) < set(one.items())
    assert few != TruthfulQABenchmark.load(settings(path, seed=1, limit=5)).items()


def test_the_space_is_the_answers_whatever_the_tokenizer_does(shared):
    """A tokenizer with word and space in one, one with the space before the word, one with it after."""
    bytes_, spm, after = (
        tiny_lm(),
        load_model(str(shared / "models/stories3m")),
        load_model(str(shared / "models/tinystories-656k")),
    )
    for lm, joined in ((bytes_, True), (spm, True), (after, False)):
        for prompt in ("Where is it?\nA:", "Where is it?\nA: "):
            [(context, answer)] = answer_ids(lm, [prompt], ["It is here."])
            assert [*context, *answer] == lm.tokenizer("Where is it?\nA: It is here.")["input_ids"]
            text = lm.tokenizer.decode(answer)
            assert text.strip() == "It is here."
            alone = lm.tokenizer("Where is it?\nA:")["input_ids"]
            assert (context == alone) == joined  # else its colon is one token with the space


def test_a_tokenizer_without_offsets_that_ends_texts_itself():
    """ByT5's: one token a byte, implemented in Python, `</s>` (1) after every text."""
    lm = wrap_model(tiny_model("llama", vocab=400), ByT5Tokenizer())
    assert not lm.tokenizer.is_fast
    assert lm.tokenizer("A:")["input_ids"] == [ord("A") + 3, ord(":") + 3, 1]
    assert (
        answer_ids(lm, ["A:", "A: "], ["It", "It"])
        == [([ord("A") + 3, ord(":") + 3], [ord(" ") + 3, ord("I") + 3, ord("t") + 3])] * 2
    )


# --- data ---


def test_the_hubs_parquet_file_gives_the_same_questions(tmp_path):
    pq.write_table(hub_table(QUESTIONS), tmp_path / "q.parquet")
    json_file = TruthfulQABenchmark.load(settings(write(tmp_path / "q.json")))
    parquet_file = TruthfulQABenchmark.load(settings(str(tmp_path / "q.parquet")))
    assert parquet_file.items() == json_file.items()


def test_without_texts_the_file_comes_from_the_hub(tmp_path, monkeypatch):
    """The hub's own client finds it in the cache, or says that it cannot."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"truthfulqa/truthful_qa.*not in the local cache.*`texts`"):
        TruthfulQABenchmark.load(TruthfulQAEvaluation())
    commit = "741b8276f2d1982aa3d5b832d3ee81ed3b896490"
    folder = tmp_path / "datasets--truthfulqa--truthful_qa" / "snapshots" / commit / "multiple_choice"
    folder.mkdir(parents=True)
    pq.write_table(hub_table(QUESTIONS), folder / "validation-00000-of-00001.parquet")
    bench = TruthfulQABenchmark.load(TruthfulQAEvaluation())
    assert [item.scenario for item in bench.items()] == [q["question"] for q in QUESTIONS]


def test_bad_data_are_named(tmp_path):
    good = QUESTIONS[0]
    for bad, message in (
        ({}, "expected a list"),
        ([good, {"mc1_targets": {}}], "question 2: expected a text `question`"),
        ([{**good, "mc2_targets": ["a"]}], "question 1: mc2_targets: expected answers with labels 0 and 1"),
        ([{**good, "mc1_targets": {"a": 2, "b": 0}}], "mc1_targets: expected answers with labels"),
        ([{**good, "mc1_targets": {"a": 1, "b": 1}}], "exactly one true answer.*found 2 of 2"),
        ([{**good, "mc2_targets": {"a": 1, "b": 1}}], "at least one false, found 2 of 2"),
    ):
        with pytest.raises(UserError, match=message):
            TruthfulQABenchmark.load(settings(write(tmp_path / "q.json", bad)))
    with pytest.raises(UserError, match="no field 'who'"):
        TruthfulQABenchmark.load(settings(write(tmp_path / "q.json"), template="{who} {text}"))
    long = [{**good, "question": "the little girl " * 100}]
    bench = TruthfulQABenchmark.load(settings(write(tmp_path / "q.json", long)))
    with pytest.raises(UserError, match=r"question/0000 needs .* context holds 128"):
        bench.score(tiny_lm(), bench.items(), [BASE])


def test_the_817_questions(shared):
    bench = TruthfulQABenchmark.load(settings(str(shared / "data/truthfulqa/mc_task.json")))
    assert len({item.id for item in bench.items()}) == len(bench.items()) == 817
    lm = load_model(str(shared / "models/stories3m"))
    summary = bench.summarise(bench.score(lm, bench.items()[:4], [BASE]))
    chance = 100 * np.mean([1 / len(item.mc1) for item in bench.items()[:4]])
    assert f"chance is {chance:.1f} % for mc1" in summary["notes"][0]
    assert 100 * np.mean([1 / len(item.mc1) for item in bench.items()]) == pytest.approx(22.25, abs=0.01)


def test_summary_has_each_normalisation_and_the_chosen_one(tmp_path):
    rng = np.random.default_rng(0)
    names = ("sum", "per_token", "per_character")
    rows = [
        {
            "item": f"question/{i:04d}", "concept": "honesty", "condition": condition, "strength": strength,
            **{f"mc1_{n}": bool(rng.random() < 0.4) for n in names},
            **{f"mc2_{n}": rng.random() for n in names}, "chance_mc1": 0.25, "chance_mc2": 0.5,
        }
        for condition, strength in (("base", 0.0), ("vector", 1.0))
        for i in range(30)
    ]  # fmt: skip
    bench = TruthfulQABenchmark.load(settings(write(tmp_path / "q.json"), normalisation="token"))
    summary = bench.summarise(pa.Table.from_pylist(rows))
    assert (summary["reference"], len(summary["notes"])) == ("vector", 2)
    base, vector = summary["conditions"]
    for entry, part in ((base, rows[:30]), (vector, rows[30:])):
        metrics = entry["metrics"]
        for n in names:
            assert metrics[f"mc1_{n}"]["value"] == pytest.approx(np.mean([r[f"mc1_{n}"] for r in part]))
            assert metrics[f"mc2_{n}"]["value"] == pytest.approx(np.mean([r[f"mc2_{n}"] for r in part]))
        assert metrics["mc1"] == metrics["mc1_per_token"] == metrics["honesty/mc1"]
        assert metrics["mc2"] == metrics["mc2_per_token"]
        assert metrics["mc2"]["low"] < metrics["mc2"]["value"] < metrics["mc2"]["high"]
        assert metrics["mc1"]["n"] == 30
    assert set(vector["p_vs_base"]) == {f"mc{k}{s}" for k in (1, 2) for s in ("", *(f"_{n}" for n in names))}
    assert base["p_vs_base"] == {}


# --- lm-evaluation-harness ---

HARNESS_TASKS = ("truthfulqa_mc1", "truthfulqa_mc2")
LONG = [pytest.mark.long, pytest.mark.timeout(3600)]
ASKED = [
    pytest.param((20, "stories3m"), id="20"),
    pytest.param((817, "stories3m"), marks=LONG, id="all"),
    pytest.param((50, "SmolLM2"), marks=[*LONG, pytest.mark.real], id="50-SmolLM2"),
]


@pytest.fixture(scope="module", params=ASKED)
def asked(request: pytest.FixtureRequest, shared: Path) -> tuple[LanguageModel, list[dict]]:
    """A model, and the first questions of the real file or all of them."""
    count, name = request.param
    records: list[dict] = json.loads((shared / "data/truthfulqa/mc_task.json").read_text())[:count]
    assert len(records) == count
    if name == "stories3m":
        return load_model(str(shared / "models/stories3m"), dtype="float32"), records
    try:
        return load_model(str(fetch_real_model.fetch())), records
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def harness(
    asked: tuple[LanguageModel, list[dict]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict]]:
    """The harness's own tasks on local questions: prompt, requests, tokens, scores and metric of each."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("harness")
    lm, records = asked
    pq.write_table(hub_table(records), folder / "validation.parquet")
    for task in HARNESS_TASKS:
        given = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / f"{task}.yaml"
        (folder / f"{task}.yaml").write_text(
            f"include: {given}\ntask: local_{task}\ntag: null\ndataset_path: parquet\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    validation: {folder / 'validation.parquet'}\n"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it asks pip and cmake
        result = lm_eval.simple_evaluate(
            model=HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=8, device="cpu"),
            tasks=[f"local_{task}" for task in HARNESS_TASKS],
            # Without its index of thousands of others, which takes seconds to make.
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            random_seed=0,
        )
    return {task: result["samples"][f"local_{task}"] for task in HARNESS_TASKS}


@pytest.mark.parametrize("task", HARNESS_TASKS)
def test_agrees_with_lm_evaluation_harness_question_by_question(tmp_path, asked, harness, task):
    (lm, records), samples = asked, harness[task]
    assert len(samples) == len(records)
    prompts = [sample["arguments"][0][0] for sample in samples]
    head = prompts[0].removesuffix(f"Q: {samples[0]['doc']['question']}\nA:")
    assert head.count("Q: ") == 6
    path = write(tmp_path / "q.json", records)
    bench = TruthfulQABenchmark.load(settings(path, template=head + "Q: {text}\nA:", seed=5))
    ours = bench.score(lm, bench.items(), [BASE]).to_pylist()
    key = f"{task.removeprefix('truthfulqa_')}_targets"
    accuracy = []
    for item, row, sample in zip(bench.items(), ours, samples, strict=True):
        assert item.prompt == sample["arguments"][0][0]
        scores = dict(zip(row["choices"], row["logprobs"], strict=True))
        for choice, response in zip(sample["doc"][key]["choices"], sample["resps"], strict=True):
            assert scores[choice] == pytest.approx(float(response[0][0]), abs=1e-3)
        mine = float(row["mc1_sum"]) if task.endswith("mc1") else row["mc2_sum"]
        assert mine == pytest.approx(float(sample["acc"]), abs=1e-3)
        accuracy.append(mine)
    assert 0 < np.mean(accuracy) < 1
