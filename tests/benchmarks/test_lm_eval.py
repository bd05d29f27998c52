"""lm-evaluation-harness on our engine, question by question against the harness's own model (`HFLM`)."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import contrans_dist as ct
from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.lm_eval import (
    Document,
    HarnessBenchmark,
    HarnessEvaluation,
    HarnessRequest,
    answers,
)
from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import read_evaluation
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering
from contrans_dist.models import LanguageModel, load_model, wrap_model
from contrans_dist.store.location import Location
from contrans_dist.store.results import plain
from tests.commands import run
from tests.models.test_tokens import metaspace, writing
from tests.tiny import CONTEXT, CORPUS, save_tiny, tiny_model, tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import datasets  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.hf_steered import SteeredModel  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

WORDS = ["girl", "boy", "dog", "cat", "bird", "tree", "ball", "man", "water", "park"]
SENTENCES = CORPUS[:5]
LONG = " ".join(CORPUS)
BLOCK = 2


# -- tasks of our own --------------------------------------------------------------------------------


def task_file(folder: Path, name: str, docs: list[dict[str, Any]], **content: Any) -> None:
    """A task with its data: every document to be judged, and the first three as examples."""
    data = folder / f"{name}.json"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(data), "test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **content,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def mean_metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    choices = [
        {
            "question": f"{SENTENCES[i % 5]} Who was number {i}?",
            "choices": [f"the {WORDS[(i + j) % 10]}" + " who ran" * (j % 2) for j in range(3)],
            "gold": i % 3,
        }
        for i in range(9)
    ]
    few = {"training_split": "train", "fewshot_split": "train"}
    mc = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        **few,
    }
    task_file(
        folder, "choose", choices, doc_to_text="Question: {{question}}\nAnswer:",
        metric_list=mean_metrics("acc", "acc_norm", "exact_match"), **mc,
    )  # fmt: skip
    task_file(  # the space stands before the choices, and nothing stands before them once more
        folder, "spaced", choices[:7], doc_to_text="{{question}} It was ", target_delimiter="",
        metric_list=mean_metrics("acc", "acc_mutual_info"), **mc,
    )  # fmt: skip
    gaps = [
        {"options": [f"The {WORDS[i]} was", f"The {WORDS[i + 1]} was"], "end": "happy and sad", "gold": i % 2}
        for i in range(6)
    ]
    task_file(
        folder, "gaps", gaps, output_type="multiple_choice", doc_to_text="{{gold}}", doc_to_choice="options",
        doc_to_target="end", metric_list=mean_metrics("acc"),
    )  # fmt: skip
    pages = [{"page": text} for text in [*SENTENCES, LONG[:900], LONG]]
    task_file(
        folder, "pages", pages, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="page",
        metric_list=[
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    )  # fmt: skip
    # Chat templates write the first token themselves; then the tokenizer must not add another.
    last = [{"text": text} for text in [*SENTENCES, f"<s>{SENTENCES[0]}", f"</s>{SENTENCES[1]}"]]
    task_file(
        folder, "last_word", [*last, {"text": LONG}], output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}", doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            *mean_metrics("acc"),
        ],
    )  # fmt: skip
    begun = [*SENTENCES, f"<s>{SENTENCES[0]}"]
    starts = [{"start": text[:40], "after": "e" if i % 2 else "nothing"} for i, text in enumerate(begun)]
    task_file(
        folder, "go_on", [*starts, {"start": LONG, "after": "a"}], output_type="generate_until",
        doc_to_text="{{start}}", doc_to_target="after",
        generation_kwargs={"until": ["\n", "x", "the"], "max_gen_toks": 12, "do_sample": False},
        metric_list=mean_metrics("exact_match"),
        filter_list=[
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "letter", "filter": [
                {"function": "regex", "regex_pattern": "([a-z])", "group_select": 0},
                {"function": "take_first"},
            ]},
        ],
    )  # fmt: skip
    group = {
        "group": "both",
        "task": ["choose", "gaps"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    return folder


TASKS = ("choose", "spaced", "gaps", "pages", "last_word", "go_on")


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        # It asks pip and cmake after every evaluation.
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield


@pytest.fixture(scope="module")
def settings(include: Path) -> HarnessEvaluation:
    return HarnessEvaluation(tasks=TASKS, include=str(include), num_fewshot=2)


@pytest.fixture(scope="module")
def benchmark(settings: HarnessEvaluation) -> HarnessBenchmark:
    return HarnessBenchmark.load(settings)


@pytest.fixture(scope="module", params=["llama", "gpt2", "stories3m"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A tokenizer with BOS, one without, and a model that knows what it says."""
    if request.param == "stories3m":
        return load_model(str(request.getfixturevalue("shared") / "models/stories3m"))
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(str(save_tiny(folder, request.param, bos=request.param == "llama")))


@pytest.fixture(scope="module")
def vector(lm: LanguageModel) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=lm.d)
    return np.asarray(values / np.linalg.norm(values) * 3, np.float32)


def theirs(
    lm: LanguageModel, include: Path, tasks: tuple[str, ...] = TASKS, **options: Any
) -> dict[str, Any]:
    """The harness's own model on the harness's own way, one text at a time."""
    harness_lm = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1)
    manager = TaskManager(include_path=str(include), include_defaults=False)
    given = {"num_fewshot": 2, "bootstrap_iters": 0, **options}
    return dict(lm_eval.simple_evaluate(model=harness_lm, tasks=list(tasks), task_manager=manager, **given))


def compare_rows(table: pa.Table, documents: dict[str, Document], expected: dict[str, Any]) -> int:
    """Each question's answer; returns how many there were."""
    rows = {row["item"]: row for row in table.to_pylist()}
    n = 0
    for task, samples in expected["samples"].items():
        for sample in samples:
            row = rows[f"{task}/{sample['doc_id']}"]
            assert len(row["texts"]) == len(sample["resps"])
            for place, (resp,) in enumerate(sample["resps"]):
                request = documents[row["item"]].requests[place]
                n += 1
                if request.method == "generate_until":
                    assert row["texts"][place] == resp
                    continue
                logprob = resp[0] if request.method == "loglikelihood" else resp
                assert row["logprobs"][place] == pytest.approx(logprob, rel=2e-5, abs=2e-3)
                if request.method == "loglikelihood":
                    assert row["greedy"][place] == resp[1]
    return n


def compare_metrics(metrics: dict[str, Any], expected: dict[str, Any]) -> int:
    n = 0
    for task, found in expected["results"].items():
        for key, value in found.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            ours = metrics[f"{task}/{metric}" + ("" if kind == "none" else f",{kind}")]
            assert ours["value"] == pytest.approx(value, rel=1e-4)
            assert ours["n"] == found["sample_len"]
            n += 1
    return n


# -- against the harness's own model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(benchmark: HarnessBenchmark, lm: LanguageModel, vector: np.ndarray) -> pa.Table:
    """Every document unsteered, steered, and steered the other way, in one call."""
    vectors = {BLOCK: vector}
    interventions = [BASE, Intervention("vector", vectors, 2.0), Intervention("vector", vectors, -2.0)]
    return benchmark.score(lm, benchmark.items(), interventions)


def rows_of(table: pa.Table, strength: float) -> pa.Table:
    return table.filter(pa.compute.equal(table["strength"], strength))


def test_unsteered_numbers_are_the_harness_s_own(
    benchmark: HarnessBenchmark, lm: LanguageModel, include: Path, scored: pa.Table
) -> None:
    documents = {document.id: document for document in benchmark.items()}
    expected = theirs(lm, include)
    # choose 9 x 3, spaced 7 x (3 + 3 without a question), gaps 6 x 2, pages 7, last_word 8, go_on 7, twice
    # as it has two filters
    assert compare_rows(rows_of(scored, 0.0), documents, expected) == 27 + 42 + 12 + 7 + 8 + 2 * 7
    base = benchmark.summarise(scored)["conditions"][0]
    assert base["condition"] == "base"
    assert compare_metrics(base["metrics"], expected) == 3 + 2 + 1 + 2 + 2 + 2


def test_steered_numbers_are_those_of_the_harness_s_model_while_it_is_steered(
    benchmark: HarnessBenchmark, lm: LanguageModel, vector: np.ndarray, include: Path, scored: pa.Table
) -> None:
    documents = {document.id: document for document in benchmark.items()}
    entries = {entry["strength"]: entry for entry in benchmark.summarise(scored)["conditions"]}
    with ct.steer(lm, vector, block=BLOCK, strength=2.0):
        expected = theirs(lm, include)
    assert compare_rows(rows_of(scored, 2.0), documents, expected) == 110
    compare_metrics(entries[2.0]["metrics"], expected)
    moved = [
        abs(
            entries[s]["metrics"]["pages/word_perplexity"]["value"]
            - entries[0.0]["metrics"]["pages/word_perplexity"]["value"]
        )
        for s in (2.0, -2.0)
    ]
    assert min(moved) > 0.1


def test_the_harness_steers_with_the_file_that_is_exported_as_our_engine_does(
    benchmark: HarnessBenchmark,
    lm: LanguageModel,
    vector: np.ndarray,
    include: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = np.zeros((lm.n_blocks, lm.d), np.float32)
    values[[1, BLOCK]] = vector
    made = ct.ConceptVector(values=values, concept="c", model=lm.name)
    made.save(Location.parse(tmp_path / "c.safetensors"))
    ended = run(
        capsys, "export", "--vector", tmp_path / "c.safetensors", "--format", "lm-eval",
        "--out", tmp_path / "c.pt", "--block", f"1,{BLOCK}", "--strength", 1.5,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    steered = SteeredModel(pretrained=lm.name, steer_path=str(tmp_path / "c.pt"), device="cpu", batch_size=1)
    told = lm_eval.simple_evaluate(
        model=steered, tasks=["choose"], num_fewshot=2, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(include), include_defaults=False),
    )  # fmt: skip
    there = {f"choose/{sample['doc_id']}": sample["resps"] for sample in told["samples"]["choose"]}
    items = [document for document in benchmark.items() if document.task == "choose"]
    table = benchmark.score(lm, items, [BASE, Intervention("vector", {1: vector, BLOCK: vector}, 1.5)])
    base, here = (rows_of(table, strength).to_pylist() for strength in (0.0, 1.5))
    for row in here:
        assert row["logprobs"] == pytest.approx([resp[0] for (resp,) in there[row["item"]]], abs=1e-4)
    assert len(here) == len(there) == 9
    assert min(abs(a["logprobs"][0] - b["logprobs"][0]) for a, b in zip(base, here, strict=True)) > 1e-2


# A bar keeps apart what would be a special token.
WRITTEN = [
    "Jane and Joe\nJoe was sad", " Jane was a girl\nJ", "Joe\n\nJoe", " there was\na\nJane", "J\nJ", "\nJane",
    "a little girl", " a little girl", "  two spaces\nJ", "Jean\n Joe\nJ", "\n\nJ", "sad. . ,\nJoe", "é\nJé",
    " ", "<s>there was</s>", "sad <|/s> home",
]  # fmt: skip


@pytest.mark.parametrize("make", [tiny_tokenizer, metaspace])
def test_texts_are_cut_at_stop_strings_as_the_harness_s_own(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prompt ends with the stop string's first character."""
    model = wrap_model(tiny_model(vocab=400), make())
    harness_lm = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1)
    options = {"until": ["\nJ"], "max_gen_toks": 30, "do_sample": False}
    ours, theirs = [], []
    for i, text in enumerate(WRITTEN):
        prompt = f"There was a girl, {i}\n"
        parts = model.tokenizer(text.split("|"), add_special_tokens=False)["input_ids"]
        new = [*itertools.chain(*parts), model.tokenizer.eos_token_id]
        with monkeypatch.context() as patch:
            writing(model, patch, new)
            instance = Instance("generate_until", {}, (prompt, {**options}), 0)
            theirs += harness_lm.generate_until([instance], disable_tqdm=True)
        with monkeypatch.context() as patch:
            writing(model, patch, new)
            request = HarnessRequest("generate_until", prompt, until=("\nJ",), max_new_tokens=30)
            [[[answer]]] = answers(model, [Document(str(i), "t", "", "", (request,))], [BASE])
            ours.append(answer.text)
    assert ours == theirs
    assert len(set(theirs)) > 8


# -- what is asked -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_model(str(save_tiny(tmp_path_factory.mktemp("tiny") / "llama", chat=True)))


def test_documents_are_whole_and_the_same_each_time(
    benchmark: HarnessBenchmark, settings: HarnessEvaluation
) -> None:
    assert isinstance(benchmark, Benchmark)
    items = benchmark.items()
    assert [item.id for item in items] == [
        f"{task}/{i}" for task, n in zip(TASKS, [9, 7, 6, 7, 8, 7], strict=True) for i in range(n)
    ]
    assert repr(HarnessBenchmark.load(settings).items()) == repr(items)
    other = HarnessBenchmark.load(settings.model_copy(update={"seed": 1})).items()
    assert [item.scenario for item in other] == [item.scenario for item in items]
    assert other[0].prompt != items[0].prompt  # other examples
    by_id = {item.id: item for item in items}
    chosen = by_id["choose/4"]
    assert chosen.scenario == f"{SENTENCES[4]} Who was number 4?"
    assert chosen.prompt.endswith(f"Question: {chosen.scenario}\nAnswer:")
    assert chosen.prompt.count("Question: ") == 3
    assert {request.context for request in chosen.requests} == {""}
    assert by_id["pages/6"].scenario == LONG
    gap = by_id["gaps/3"]
    whole = [gap.prompt + request.context for request in gap.requests]
    assert [text.rpartition("\n")[2] for text in whole] == ["The cat was", "The bird was"]
    assert by_id["spaced/0"].prompt == ""  # some of its questions have no context at all


def test_what_travels_to_actors_is_settings_alone(benchmark: HarnessBenchmark) -> None:
    sent = cloudpickle.dumps(benchmark)
    assert len(sent) < 3000
    arrived = cloudpickle.loads(sent)
    assert arrived == benchmark
    assert arrived.tasks is None


def test_limit_groups_and_no_examples(include: Path) -> None:
    group = HarnessEvaluation(tasks=("both",), include=str(include), limit=4)
    bench = HarnessBenchmark.load(group)
    items = bench.items()
    assert [item.id for item in items] == [f"{task}/{i}" for task in ("choose", "gaps") for i in range(4)]
    assert items[0].prompt.count("Question: ") == 1


def test_what_is_scored_belongs_to_the_identity(tmp_path: Path) -> None:
    """The data, the task's file, its group's and the code that they name."""
    docs = [{"question": f"Is {i} odd?", "choices": ["no", "yes"], "gold": i % 2} for i in range(4)]
    task_file(
        tmp_path, "odd", docs, output_type="multiple_choice", doc_to_text="Q: {{question}}",
        doc_to_choice="choices", doc_to_target="gold", metric_list=mean_metrics("acc"),
    )  # fmt: skip
    group = {
        "group": "both",
        "task": ["odd"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    (tmp_path / "code.py").write_text("def process(doc, results):\n    return {'acc': 1.0}\n")
    task = tmp_path / "odd.yaml"
    task.write_text(task.read_text() + "process_results: !function code.process\n")

    def identity() -> tuple[str, str]:
        settings = HarnessEvaluation(tasks=("both",), include=str(tmp_path))
        benchmark = HarnessBenchmark.load(settings)
        return content_hash(list(benchmark.items())), content_hash(benchmark.identity())

    seen = [identity()]
    assert identity() == seen[0]
    for name, old, new in (
        ("odd.json", "Is 3 odd", "Is 5 odd"),
        ("odd.json", '"yes"', '"yess"'),
        ("odd.json", '"gold": 1', '"gold": 0'),
        ("odd.yaml", "Q: ", "q: "),
        ("odd.yaml", "mean", "median"),
        ("odd.yaml", "version: 1.0", "version: 2.0"),
        ("both.yaml", "true", "false"),
        ("code.py", "1.0", "2.0"),
    ):
        file = tmp_path / name
        before = file.read_text()
        assert old in before
        file.write_text(before.replace(old, new))
        assert identity() not in seen, (name, old)
        seen.append(identity())
        file.write_text(before)


def logprobs_after(lm: LanguageModel, front: list[int], new: list[int]) -> list[float]:
    """Log-probability of each new token, by one plain pass over all of them."""
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([front + new])).logits[0].log_softmax(-1)
    return [float(logprobs[len(front) + i - 1, token]) for i, token in enumerate(new)]


def test_an_instruction_before_the_prompt_reaches_every_question(
    benchmark: HarnessBenchmark, tiny: LanguageModel
) -> None:
    instruction = "One day a bird\n"
    kept = {item.id: item for item in benchmark.items()}
    chosen = [kept["pages/0"], kept["pages/5"]]
    chosen.append(Document("t/0", "t", "", "the boy", (replace(kept["go_on/0"].requests[0], context=""),)))
    chosen.append(Document("t/1", "t", "", "the boy", (HarnessRequest("loglikelihood", "", " was happy"),)))
    told = [replace(item, prompt=instruction + item.prompt) for item in chosen]
    ((short,), (long,), (go_on,), (pair,)) = answers(tiny, told, [BASE])[0]

    def ids(text: str) -> list[int]:
        return list(tiny.tokenizer(text)["input_ids"])

    front = ids(instruction)
    # A whole text follows a BOS of the harness's own; what is scored begins where the instruction ends.
    assert short.logprob == pytest.approx(
        sum(logprobs_after(tiny, [0, *front], ids(instruction + SENTENCES[0])[len(front) :])), abs=2e-3
    )
    whole = ids(instruction + LONG[:900])
    assert len(whole) > 2 * CONTEXT
    expected = sum(logprobs_after(tiny, [0, *front], whole[len(front) : CONTEXT]))
    for start in range(CONTEXT, len(whole), CONTEXT):
        end = min(start + CONTEXT, len(whole))
        expected += sum(logprobs_after(tiny, whole[end - CONTEXT - 1 : start], whole[start:end]))
    assert long.logprob == pytest.approx(expected, abs=5e-3)
    prompt_ids = ids(instruction + "the boy")
    scored = ids(instruction + "the boy was happy")[len(prompt_ids) :]
    assert pair.logprob == pytest.approx(sum(logprobs_after(tiny, prompt_ids, scored)), abs=2e-3)
    prompt = torch.tensor([prompt_ids])
    new = tiny.model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    text = tiny.tokenizer.decode(new, skip_special_tokens=True)
    for stop in ("\n", "x", "the"):
        text = text.split(stop)[0]
    assert go_on.text == text


def test_each_document_keeps_to_one_random_direction(
    benchmark: HarnessBenchmark, tiny: LanguageModel
) -> None:
    items = [item for item in benchmark.items() if item.id in ("choose/1", "gaps/2", "pages/6", "go_on/1")]
    rows = np.random.default_rng(1).normal(size=(len(items), tiny.d)).astype(np.float32)
    together = answers(tiny, items, [BASE, Intervention("random", {1: rows}, 1.0)])[1]
    for item, row, found in zip(items, rows, together, strict=True):
        ((alone,),) = answers(tiny, [item], [Intervention("random", {1: row}, 1.0)])
        assert len(found) == len(alone) == len(item.requests)
        for a, b in zip(found, alone, strict=True):
            assert (a.text, a.greedy) == (b.text, b.greedy)
            assert (a.logprob is None) == (b.logprob is None)
            assert a.logprob is None or a.logprob == pytest.approx(b.logprob, abs=2e-3)


def test_generation_stops_at_a_special_token_too(tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / "llama")))
    prompt = lm.tokenizer("One day")["input_ids"]
    free = lm.model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, len(prompt) :]
    request = HarnessRequest("generate_until", max_new_tokens=30)
    whole = answers(lm, [Document("t/0", "t", "", "One day", (request,))], [BASE])[0][0][0].text
    assert whole == lm.tokenizer.decode(free, skip_special_tokens=True)
    # One that the text does not show, as chat models end their turns with: the fifth, declared special.
    ids = free.tolist()
    assert ids[4] not in [*prompt, *ids[:4]]
    end = lm.tokenizer.convert_ids_to_tokens(ids[4])
    lm.tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    assert lm.tokenizer.decode(ids[4:5], skip_special_tokens=True) == ""
    passes: list[int] = []
    lm.decoder.register_forward_hook(lambda *_: passes.append(1))
    turn = Document("t/0", "t", "", "One day", (replace(request, until=(end,)),))
    assert answers(lm, [turn], [BASE])[0][0][0].text == lm.tokenizer.decode(ids[:4])
    assert len(passes) == 5
    assert "generate" not in vars(lm.model)


def test_drawn_texts_are_asked_for_as_often_as_the_task_says(tmp_path: Path, tiny: LanguageModel) -> None:
    docs = [{"start": text[:20], "after": "a"} for text in SENTENCES[:2]]
    task_file(
        tmp_path, "drawn", docs, output_type="generate_until", doc_to_text="start", doc_to_target="after",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5},
        repeats=3, metric_list=mean_metrics("exact_match"),
        filter_list=[{"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}],
    )  # fmt: skip
    bench = HarnessBenchmark.load(HarnessEvaluation(tasks=("drawn",), include=str(tmp_path), seed=5))
    assert [len(item.requests) for item in bench.items()] == [3, 3]
    table = bench.score(tiny, bench.items(), [BASE])
    texts = table["texts"].to_pylist()
    assert len({text for row in texts for text in row}) > 2
    assert bench.score(tiny, bench.items(), [BASE])["texts"].to_pylist() == texts
    metrics = bench.summarise(table)["conditions"][0]["metrics"]
    assert set(metrics) == {"drawn/exact_match,vote", "exact_match,vote"}
    voted = table.set_column(
        table.schema.get_field_index("texts"), "texts", pa.array([["b", "a", "a"], ["b", "c", "b"]])
    )
    (entry,) = bench.summarise(voted)["conditions"]
    assert entry["metrics"]["drawn/exact_match,vote"]["value"] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"generation_kwargs": {"until": ["x"], "num_beams": 4}}, "task odd, generation_kwargs: num_beams=4"),
        ({"generation_kwargs": {"do_sample": True, "temperature": 1.0, "top_p": 0.9}}, "top_p=0.9"),
        ({"generation_kwargs": {"until": ["x"], "do_sample": True}}, "do_sample needs a temperature"),
        ({"unsafe_code": True}, "task odd: runs code that the model wrote"),
        ({"doc_to_image": ["start"]}, "task odd: asks about images"),
        ({"test_split": "nowhere"}, "tasks odd: not to be loaded"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_done_are_refused_before_anything_is_scored(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    given = {"output_type": "generate_until", "doc_to_text": "start", "doc_to_target": "start", **content}
    task_file(tmp_path, "odd", [{"start": "The dog"}], metric_list=mean_metrics("exact_match"), **given)
    with pytest.raises(UserError, match=message) as caught:
        HarnessBenchmark.load(HarnessEvaluation(tasks=("odd",), include=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_question_the_model_cannot_hold_is_named(tiny: LanguageModel) -> None:
    long = Document("t/7", "t", "", "The", (HarnessRequest("loglikelihood", "", " " + LONG),))
    with pytest.raises(
        UserError, match=rf"t/7: continuation ' Once.*has \d+ tokens; expected 1 to {CONTEXT}"
    ):
        answers(tiny, [long], [BASE])
    much = Document("t/8", "t", "", "The", (HarnessRequest("generate_until", max_new_tokens=CONTEXT),))
    with pytest.raises(
        UserError, match=rf"t/8: {CONTEXT} new tokens are asked for; the model holds {CONTEXT}"
    ):
        answers(tiny, [much], [BASE])


def test_settings_that_make_no_sense(include: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"include: .*/none is no folder"):
        HarnessBenchmark.load(HarnessEvaluation(tasks=("choose",), include=str(tmp_path / "none")))
    with pytest.raises(UserError, match="texts does not apply"):
        HarnessBenchmark.load(HarnessEvaluation(tasks=("choose",), include=str(include), texts="x"))


def test_tasks_of_one_s_own_and_the_harness_s_are_known_by_name(include: Path) -> None:
    with pytest.raises(UserError, match=r"knows no 'arc_easyy' \(there is: arc_easy"):
        HarnessBenchmark.load(HarnessEvaluation(tasks=("choose", "arc_easyy"), include=str(include)))


def test_without_the_extra_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from contrans_dist.benchmarks.lm_eval import HarnessBenchmark, HarnessEvaluation\n"
        "try: HarnessBenchmark.load(HarnessEvaluation(tasks=('arc_easy',)))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "UserError benchmark lm-eval needs the extra: pip install 'contrans-dist[lm-eval]'"
    )


# -- what the numbers come to ------------------------------------------------------------------------


def row(
    item: str, condition: str, strength: float, logprobs: list[float], concept: str = ""
) -> dict[str, Any]:
    n = len(logprobs)
    return {
        "item": item, "task": item.split("/")[0], "concept": concept, "condition": condition,
        "strength": strength, "block": None, "logprobs": logprobs, "greedy": [False] * n, "texts": [None] * n,
    }  # fmt: skip


def choices(hit: bool, gold: int, n: int = 3) -> list[float]:
    """Log-probabilities under which the right answer wins, or the next."""
    return [-1.0 if i == (gold if hit else (gold + 1) % n) else -9.0 for i in range(n)]


def binomial_p(n_less: int, n: int) -> float:
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(n_less, n - n_less) + 1)) / 2**n)


def test_intervals_tests_and_groups_by_hand(include: Path) -> None:
    bench = HarnessBenchmark.load(HarnessEvaluation(tasks=("both",), include=str(include)))
    hits = {
        ("base", 0.0): [i < 2 for i in range(15)],
        ("vector", 1.0): [i < 11 for i in range(15)],
        ("random", 1.0): [i in (0, 14) for i in range(15)],
        ("vector", 2.0): [True] * 15,
    }
    rows = []
    for (condition, strength), hit in hits.items():
        rows += [row(f"choose/{i}", condition, strength, choices(hit[i], i % 3)) for i in range(9)]
        rows += [row(f"gaps/{i}", condition, strength, choices(hit[9 + i], i % 2, 2)) for i in range(6)]
    summary = bench.summarise(pa.Table.from_pylist(rows[::-1]))
    entries = {(e["condition"], e["strength"]): e for e in summary["conditions"]}
    assert next(iter(entries)) == ("base", 0.0)
    assert set(entries) == set(hits)
    for key, hit in hits.items():
        for name, part in {"choose/acc": hit[:9], "gaps/acc": hit[9:], "both/acc": hit, "acc": hit}.items():
            metric, n = entries[key]["metrics"][name], len(part)
            p = sum(part) / n
            assert (metric["value"], metric["n"]) == (pytest.approx(p), n), name
            if 0 < p < 1 and n != 15:
                half = 1.959964 * math.sqrt(p * (1 - p) / (n - 1))  # the sample's standard deviation
                assert (metric["low"], metric["high"]) == pytest.approx((p - half, p + half), abs=1e-6)
            if p == 1:  # Wilson: never certain
                assert (metric["low"], metric["high"]) == pytest.approx((n / (n + 1.959964**2), 1), abs=1e-6)
            assert metric["low"] < metric["value"] or p == 0
    vector, base, random = hits[("vector", 1.0)], hits[("base", 0.0)], hits[("random", 1.0)]
    assert entries[("vector", 1.0)]["p_vs_base"]["both/acc"] == pytest.approx(binomial_p(0, 9))
    assert summary["reference"] == "vector"
    for key in (("vector", 1.0), ("vector", 2.0)):  # the one row of `random` is compared with both
        lost = sum(v and not r for v, r in zip(hits[key], random, strict=True))
        won = sum(r and not v for v, r in zip(hits[key], random, strict=True))
        assert set(entries[key]["p_vs"]) == {"random"}
        tested = entries[key]["p_vs"]["random"]
        assert tested["both/acc"] == tested["acc"] == pytest.approx(binomial_p(won, lost + won))
    assert vector[0]
    assert base[0]
    assert entries[("base", 0.0)]["p_vs_base"] == {}
    assert {key for key, entry in entries.items() if "p_vs" in entry} == {("vector", 1.0), ("vector", 2.0)}
    assert summary["tasks"]["choose"] == {
        "version": 1.0, "num_fewshot": 0,
        "higher_is_better": {"acc": True, "acc_norm": True, "exact_match": True},
    }  # fmt: skip


def test_the_metric_that_a_task_names_first_heads_the_rest(
    benchmark: HarnessBenchmark, tiny: LanguageModel, include: Path, tmp_path: Path
) -> None:
    names = {"choose": ["acc", "acc_norm", "exact_match"], "last_word": ["perplexity", "acc"],
             "pages": ["word_perplexity", "bits_per_byte"]}  # fmt: skip
    for task, expected in names.items():
        bench = HarnessBenchmark.load(HarnessEvaluation(tasks=(task,), include=str(include), limit=3))
        summary = bench.summarise(bench.score(tiny, bench.items(), [BASE]))
        metrics = summary["conditions"][0]["metrics"]
        assert list(metrics) == [*expected, *(f"{task}/{name}" for name in expected)]
        content = {"benchmark": "lm-eval", "model": "m", **summary}
        (tmp_path / task).mkdir()
        (tmp_path / task / "metrics.json").write_text(json.dumps(content))
        written = read_evaluation(Location.parse(tmp_path / task))
        assert written.metrics == expected
        assert [written.metric(name).higher for name in expected] == [
            "acc" in name or name == "exact_match" for name in expected
        ]


def test_tasks_without_a_common_metric_have_no_heading_and_say_so(tiny: LanguageModel, include: Path) -> None:
    settings = HarnessEvaluation(tasks=("gaps", "pages"), include=str(include), limit=2)
    bench = HarnessBenchmark.load(settings)
    summary = bench.summarise(bench.score(tiny, bench.items(), [BASE]))
    assert summary["notes"] == ["gaps, pages have no metric in common that could head the rest"]
    assert set(summary["conditions"][0]["metrics"]) == {
        "gaps/acc", "pages/word_perplexity", "pages/bits_per_byte",
    }  # fmt: skip


def test_concepts_are_averaged_and_shown(include: Path) -> None:
    bench = HarnessBenchmark.load(HarnessEvaluation(tasks=("gaps",), include=str(include)))
    hits = {"fear": [True] * 5 + [False], "joy": [True, False] + [True] * 4}
    rows = [
        row(f"gaps/{i}", condition, strength, choices(hit, i % 2, 2), concept)
        for concept, all_hits in hits.items()
        for condition, strength, some in (("base", 0.0, [False] * 6), ("vector", 1.0, all_hits))
        for i, hit in enumerate(some)
    ]
    base, vector = bench.summarise(pa.Table.from_pylist(rows))["conditions"]
    metrics = vector["metrics"]
    assert set(metrics) == {"acc", "gaps/acc", "fear/gaps/acc", "joy/gaps/acc"}
    assert {name: m["value"] for name, m in metrics.items()} == pytest.approx(dict.fromkeys(metrics, 5 / 6))
    half = 1.959964 * math.sqrt(5 / 36 / 5)
    assert metrics["acc"]["high"] == pytest.approx(5 / 6 + half, abs=1e-6)
    assert (metrics["acc"]["n"], base["metrics"]["acc"]["value"]) == (6, 0.0)
    assert vector["p_vs_base"]["fear/gaps/acc"] == pytest.approx(binomial_p(0, 5))
    # Signed ranks: each of the six documents is the better for it, and of 2^6 signs two are as extreme.
    assert vector["p_vs_base"]["acc"] == pytest.approx(2 / 2**6)


def test_a_perplexity_has_the_harness_s_bootstrapped_error_and_a_corpus_s_none(
    benchmark: HarnessBenchmark,
    tiny: LanguageModel,
    include: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = benchmark.summarise(benchmark.score(tiny, benchmark.items(), [BASE]))["conditions"][0][
        "metrics"
    ]
    assert capfd.readouterr().out == ""  # standard output belongs to results
    # The harness's pool is forked from a process full of threads, which can wait for ever.
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    expected = theirs(tiny, include, ("last_word",), bootstrap_iters=1000)["results"]["last_word"]
    half = 1.959964 * expected["perplexity_stderr,none"]
    perplexity = metrics["last_word/perplexity"]
    assert perplexity["high"] - perplexity["value"] == pytest.approx(half, rel=1e-3)
    assert metrics["pages/word_perplexity"]["low"] is None


# -- through the driver ------------------------------------------------------------------------------


def test_the_driver_scores_all_conditions_at_once_and_resumes(
    in_process: None, include: Path, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "llama")
    rng = np.random.default_rng(3)
    rows = {
        concept: {
            "vector": {BLOCK: rng.normal(size=32).astype(np.float32)},
            "random": {BLOCK: rng.normal(size=32).astype(np.float32)},
        }
        for concept in ("fear", "joy")
    }
    settings = HarnessEvaluation(
        tasks=("choose", "pages", "go_on"), include=str(include), limit=5, strengths=(0.0, 2.0),
        conditions=("vector", "random"),
    )  # fmt: skip
    one = ClusterSettings(address="local", actors=1)
    model = ModelSettings(id=str(folder))
    metrics = plain(evaluate(model, settings, Steering(rows), str(tmp_path / "out"), one))
    entries = {(e["condition"], e["strength"]): e["metrics"] for e in metrics["conditions"]}
    assert set(entries) == {("base", 0.0), ("vector", 2.0), ("random", 2.0)}
    lm = load_model(str(folder))
    compare_metrics(
        entries[("base", 0.0)],
        theirs(lm, include, ("choose", "pages", "go_on"), num_fewshot=0, limit=5),
    )
    with ct.steer(lm, rows["joy"]["vector"][BLOCK], block=BLOCK, strength=2.0):
        expected = theirs(lm, include, ("choose", "pages", "go_on"), num_fewshot=0, limit=5)
    joy = {k.removeprefix("joy/"): v for k, v in entries[("vector", 2.0)].items() if k.startswith("joy/")}
    assert compare_metrics(joy, expected) == 7
    assert metrics["leak"]["evaluated"] == 15
    again = evaluate(model, settings, Steering(rows), str(tmp_path / "out"), one)
    assert again.created == metrics["created"]
