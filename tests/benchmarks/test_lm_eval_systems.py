"""An instruction and proxy-tuning over tasks of lm-evaluation-harness, through the real driver."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch

from contrans_dist.benchmarks.lm_eval import HarnessBenchmark, HarnessEvaluation
from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.evaluation.baselines import System
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering
from contrans_dist.models import LanguageModel, load_model
from tests.tiny import CONTEXT, save_tiny

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests.benchmarks.test_lm_eval import (
    BLOCK,
    SENTENCES,
    WORDS,
    _offline,  # noqa: F401 -- for every test here
    compare_metrics,
    compare_rows,
    mean_metrics,
    task_file,
    theirs,
)

INSTRUCTION = "They went to the park to play."
TASKS = ("choose", "gaps", "last_word", "go_on")
STOPS = ("\n", "x", "the")
NEW_TOKENS = 10
QUESTIONS = [
    {
        "question": f"{SENTENCES[i % 5][:24]} {i}?",
        "choices": [f"the {WORDS[(i + j) % 10]}" + " who ran" * (j % 2) for j in range(3)],
        "gold": i % 3,
    }
    for i in range(10)
]


def write_tasks(folder: Path, instruction: str = "") -> Path:
    """Four tasks of as many kinds; an instruction stands at the very beginning of every prompt."""
    folder.mkdir()
    more: dict[str, Any] = {"description": f"{instruction}\n"} if instruction else {}
    task_file(
        folder, "choose", QUESTIONS, doc_to_text="Question: {{question}}\nAnswer:",
        output_type="multiple_choice", doc_to_choice="choices", doc_to_target="gold",
        training_split="train", fewshot_split="train", metric_list=mean_metrics("acc", "acc_norm"), **more,
    )  # fmt: skip
    gaps = [
        {"options": [f"The {WORDS[i]} was", f"The {WORDS[i + 1]} was"], "end": "happy and sad", "gold": i % 2}
        for i in range(6)
    ]
    task_file(  # the choices stand in the prompt, and what follows them is scored
        folder, "gaps", gaps, output_type="multiple_choice", doc_to_text="{{gold}}", doc_to_choice="options",
        doc_to_target="end", metric_list=mean_metrics("acc"), **more,
    )  # fmt: skip
    task_file(
        folder, "last_word", [{"text": text} for text in SENTENCES], output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}", doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            *mean_metrics("acc"),
        ],
        **more,
    )  # fmt: skip
    starts = [{"start": text[:40], "after": "e"} for text in SENTENCES]
    task_file(
        folder, "go_on", starts, output_type="generate_until", doc_to_text="{{start}}", doc_to_target="after",
        generation_kwargs={"until": list(STOPS), "max_gen_toks": NEW_TOKENS, "do_sample": False},
        metric_list=mean_metrics("exact_match"), **more,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> HarnessEvaluation:
    include = write_tasks(tmp_path_factory.mktemp("tasks") / "plain")
    return HarnessEvaluation(tasks=TASKS, include=str(include), num_fewshot=1, strengths=(0.0, 2.0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A target, and two weaker models with its tokenizer: tuned and plain."""
    sizes = {"target": (4, 32, 0), "tuned": (2, 16, 1), "plain": (2, 16, 2)}
    return {
        name: str(save_tiny(tmp_path_factory.mktemp(name), n_blocks=n_blocks, d=d, seed=seed))
        for name, (n_blocks, d, seed) in sizes.items()
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, str]) -> dict[str, LanguageModel]:
    return {name: load_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def made(
    in_process: None,
    settings: HarnessEvaluation,
    folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Any]:
    """(metrics.json, rows) of one evaluation of a vector and both systems."""
    out = tmp_path_factory.mktemp("out")
    row = 3 * np.random.default_rng(0).normal(size=32).astype(np.float32)
    target, tuned, plain = (ModelSettings(id=folders[name]) for name in ("target", "tuned", "plain"))
    metrics = evaluate(
        target,
        settings,
        Steering({"kindness": {"vector": {BLOCK: row}}}),
        str(out),
        ClusterSettings(address="local", actors=1),
        others=[
            System("inst-align", target, instruction=INSTRUCTION),
            System("proxy-tuning", target, guides=(tuned, plain)),
        ],
    )
    return metrics.model_dump(), pq.read_table(out / "results.parquet")


def entry(metrics: dict[str, Any], condition: str) -> dict[str, Any]:
    (found,) = (each for each in metrics["conditions"] if each["condition"] == condition)
    return dict(found)


def rows_of(table: Any, condition: str) -> Any:
    return table.filter([name == condition for name in table["condition"].to_pylist()])


def test_an_instruction_is_asked_as_if_it_stood_in_the_prompt(
    made: tuple[dict[str, Any], Any],
    settings: HarnessEvaluation,
    models: dict[str, LanguageModel],
    tmp_path: Path,
) -> None:
    documents = {document.id: document for document in HarnessBenchmark.load(settings).items()}
    include = write_tasks(tmp_path / "instructed", INSTRUCTION)
    expected = theirs(models["target"], include, TASKS, num_fewshot=1)
    asked = [
        arguments[0]
        for samples in expected["samples"].values()
        for sample in samples
        for arguments in sample["arguments"]
    ]
    tokenize = models["target"].tokenizer
    assert all(text.startswith(f"{INSTRUCTION}\n") for text in asked)
    assert max(len(tokenize(text)["input_ids"]) for text in asked) < CONTEXT - NEW_TOKENS  # nothing is cut
    metrics, table = made
    assert compare_rows(rows_of(table, "inst-align"), documents, expected) == 30 + 12 + 5 + 5
    assert compare_metrics(entry(metrics, "inst-align")["metrics"], expected) == 2 + 1 + 2 + 1
    plain, told = (
        {row["item"]: (row["logprobs"], row["texts"]) for row in rows_of(table, name).to_pylist()}
        for name in ("base", "inst-align")
    )
    assert all(told[item] != answer for item, answer in plain.items())


def tuned_logits(models: dict[str, LanguageModel], ids: list[int]) -> torch.Tensor:
    """The formula written out: the target's logits plus what tuning changed in the weaker one's, `[T, V]`."""
    with torch.no_grad():
        target, tuned, plain = (
            models[name].model(torch.tensor([ids])).logits[0] for name in ("target", "tuned", "plain")
        )
    return target + tuned - plain


def scored(models: dict[str, LanguageModel], context: str, continuation: str) -> tuple[float, bool]:
    """(log-likelihood, whether it is the greedy continuation) under the formula."""
    tokenize = models["target"].tokenizer
    front, whole = tokenize(context)["input_ids"], tokenize(context + continuation)["input_ids"]
    logits = tuned_logits(models, whole)
    places = range(len(front), len(whole))
    logprob = sum(float(logits[i - 1].log_softmax(-1)[whole[i]]) for i in places)
    return logprob, all(int(logits[i - 1].argmax()) == whole[i] for i in places)


def written(models: dict[str, LanguageModel], context: str) -> str:
    """What the formula writes after a context, greedily, up to the first stop string."""
    tokenizer = models["target"].tokenizer
    ids = list(tokenizer(context)["input_ids"])
    start = len(ids)
    for _ in range(NEW_TOKENS):
        token = int(tuned_logits(models, ids)[-1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    text = str(tokenizer.decode(ids[start:], skip_special_tokens=True))
    for stop in STOPS:
        text = text.split(stop)[0]
    return text


def test_proxy_tuning_answers_by_its_formula(
    made: tuple[dict[str, Any], Any], settings: HarnessEvaluation, models: dict[str, LanguageModel]
) -> None:
    metrics, table = made
    rows = {row["item"]: row for row in rows_of(table, "proxy-tuning").to_pylist()}
    texts = []
    for document in HarnessBenchmark.load(settings).items():
        for place, request in enumerate(document.requests):
            context = document.prompt + request.context
            if request.method == "generate_until":
                texts.append(rows[document.id]["texts"][place])
                assert texts[-1] == written(models, context)
                continue
            logprob, greedy = scored(models, context, request.continuation)
            assert rows[document.id]["logprobs"][place] == pytest.approx(logprob, rel=2e-5, abs=2e-3)
            assert rows[document.id]["greedy"][place] == greedy
    assert len(texts) == 5
    plain = {row["item"]: row["texts"][0] for row in rows_of(table, "base").to_pylist()}
    assert texts != [plain[f"go_on/{i}"] for i in range(5)]
    chosen = [np.array(rows[f"choose/{i}"]["logprobs"]) for i in range(10)]
    lengths = [[len(choice) for choice in question["choices"]] for question in QUESTIONS]  # type: ignore[attr-defined]
    numbers = entry(metrics, "proxy-tuning")["metrics"]
    for name, best in (
        ("acc", [int(logprobs.argmax()) for logprobs in chosen]),
        ("acc_norm", [int((logprobs / n).argmax()) for logprobs, n in zip(chosen, lengths, strict=True)]),
    ):
        hits = [place == question["gold"] for place, question in zip(best, QUESTIONS, strict=True)]
        assert (numbers[f"choose/{name}"]["value"], numbers[f"choose/{name}"]["n"]) == (np.mean(hits), 10)


def test_both_are_tested_against_the_vector(made: tuple[dict[str, Any], Any]) -> None:
    metrics, table = made

    def hits(condition: str) -> list[bool]:
        rows = {row["item"]: row for row in rows_of(table, condition).to_pylist()}
        return [
            int(np.argmax(rows[f"choose/{i}"]["logprobs"])) == question["gold"]
            for i, question in enumerate(QUESTIONS)
        ]

    assert metrics["reference"] == "vector"
    tested = entry(metrics, "vector")["p_vs"]
    assert set(tested) == {"inst-align", "proxy-tuning"}
    for condition, p_values in tested.items():
        pairs = list(zip(hits("vector"), hits(condition), strict=True))
        won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        p = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert p_values["choose/acc"] == pytest.approx(p)
