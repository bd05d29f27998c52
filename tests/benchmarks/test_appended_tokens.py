"""A tokenizer that adds a token behind every text changes no number of any benchmark."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import processors

from contrans_dist.benchmarks import Benchmark
from contrans_dist.benchmarks.lm_eval import HarnessBenchmark, HarnessEvaluation
from contrans_dist.benchmarks.truthfulqa import TruthfulQABenchmark
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.evaluation.actors import SystemActor
from contrans_dist.evaluation.samples import Probe
from contrans_dist.models import LanguageModel, wrap_model
from tests.benchmarks.test_behaviours import FOUR, TWO
from tests.benchmarks.test_behaviours import load as behaviours
from tests.benchmarks.test_behaviours import write as write_behaviours
from tests.benchmarks.test_emotions import random_logits_bench
from tests.benchmarks.test_perplexity import load as perplexity
from tests.benchmarks.test_toxigen import ITEMS
from tests.benchmarks.test_toxigen import made as toxigen
from tests.benchmarks.test_truthfulqa import settings as truthfulqa_settings
from tests.benchmarks.test_truthfulqa import write as write_questions
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer

VOCABULARY = 320
VECTOR = {2: np.random.default_rng(3).standard_normal(32).astype(np.float32)}
SWEEP = [BASE, Intervention("vector", VECTOR, 3.0)]


def language_model(bos: bool, added: str = "") -> LanguageModel:
    """The same model and tokenizer, which adds `added` behind every text."""
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.add_special_tokens({"sep_token": "<sep>"})
    names = ["<s>"] * bos + ["$A"] + [added] * bool(added)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(names),
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>", "<sep>")],
    )
    return wrap_model(tiny_model(vocab=VOCABULARY), tokenizer)


@pytest.fixture(
    scope="module", params=[(True, "</s>"), (True, "<sep>"), (False, "</s>")], ids=["eos", "sep", "eos alone"]
)
def pair(request: pytest.FixtureRequest) -> tuple[LanguageModel, LanguageModel]:
    """A model whose tokenizer adds nothing behind a text, and the same with one that does."""
    bos, added = request.param
    plain, ended = language_model(bos), language_model(bos, added)
    last = ended.tokenizer.convert_tokens_to_ids(added)
    assert ended.tokenizer("home")["input_ids"] == [*plain.tokenizer("home")["input_ids"], last]
    return plain, ended


def truthfulqa(folder: Path) -> Benchmark:
    return TruthfulQABenchmark.load(truthfulqa_settings(write_questions(folder / "questions.json")))


def lm_eval(folder: Path) -> Benchmark:
    """A task of each kind of request."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from tests.benchmarks.test_lm_eval import mean_metrics, task_file

    docs = [{"text": text[:30], "choices": ["a girl", "the old man"], "gold": i % 2}
            for i, text in enumerate(CORPUS[:4])]  # fmt: skip
    task_file(
        folder, "choose", docs, output_type="multiple_choice", doc_to_text="{{text}}", doc_to_target="gold",
        doc_to_choice="choices", metric_list=mean_metrics("acc"),
    )  # fmt: skip
    task_file(
        folder, "pages", docs, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="text",
        metric_list=[
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
        ],
    )  # fmt: skip
    task_file(
        folder, "go_on", docs, output_type="generate_until", doc_to_text="{{text}}", doc_to_target="text",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        metric_list=mean_metrics("exact_match"),
    )  # fmt: skip
    return HarnessBenchmark.load(
        HarnessEvaluation(tasks=("choose", "pages", "go_on"), include=str(folder), num_fewshot=0)
    )


BENCHMARKS: dict[str, Callable[[Path], Benchmark]] = {
    "emotions": lambda _: random_logits_bench(),
    "emotions, paper": lambda _: random_logits_bench("paper"),
    "truthfulqa": truthfulqa,
    "behaviours": lambda folder: behaviours(write_behaviours(folder, refusal=[TWO, FOUR])),
    "perplexity": lambda folder: perplexity(folder, window=32, stride=16),
    "toxigen": lambda _: toxigen(ITEMS, max_new_tokens=9),
    "lm-eval": lm_eval,
}


@pytest.fixture(scope="module", params=BENCHMARKS)
def benchmark(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        if request.param == "lm-eval":
            datasets = pytest.importorskip("datasets")
            patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        return BENCHMARKS[request.param](tmp_path_factory.mktemp("data"))


@pytest.mark.filterwarnings("ignore:the first sub-token")
def test_a_benchmark_gives_the_same_rows(
    benchmark: Benchmark, pair: tuple[LanguageModel, LanguageModel]
) -> None:
    items = benchmark.items()
    expected, found = (benchmark.score(lm, items, SWEEP).to_pylist() for lm in pair)
    assert len(found) >= 2 * len(items) > 0
    assert found == expected
    base, steered = expected[: len(items)], expected[-len(items) :]
    strip = {"condition", "strength", "block"}
    assert [_without(row, strip) for row in base] != [_without(row, strip) for row in steered]


def _without(row: dict[str, Any], names: set[str]) -> str:
    return json.dumps({name: value for name, value in row.items() if name not in names})


def test_single_prompts_are_continued_and_compared_alike(pair: tuple[LanguageModel, LanguageModel]) -> None:
    probe = Probe("joy", "vector", 3.0, VECTOR, ITEMS[:2], ["", ""], [item.prompt for item in ITEMS])
    expected, found = (probe.on(cast(SystemActor, SimpleNamespace(lm=lm)), None) for lm in pair)
    assert found == expected
    examples, tokens = found
    assert len(examples) == 4
    assert any(row.continuation for row in examples)
    assert len(tokens) > 4
