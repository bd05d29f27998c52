"""A real instruct model, SmolLM2-135M: rows, a vector, steering and the chat template, each against plain
transformers. Skipped where the package index does not give it (`jobs/fetch_real_model.py`)."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import contrans_dist as ct
from contrans_dist.engine.scoring import BASE, Intervention, generate, next_token
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel, encode, encode_many, weights_identity
from jobs import fetch_real_model
from tests.commands import run

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
HOME = fetch_real_model.CACHE / "home"
ASSETS = str(HOME / "assets")
"""Where the weights of the llama.cpp file go, once for all runs of the tests."""
BLOCK, TEXTS = 20, [
    "The capital of France is",
    "She opened the letter, read the first line, and began to cry. She was very",
    "Water boils at",
    "One, two, three, four,",
]  # fmt: skip
JOY = ["I won the first prize and danced all night", "My best friend came home, and we laughed for hours"]
GRIEF = ["I lost my oldest friend, and wept all night", "My dog died this morning, and the house is silent"]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return fetch_real_model.fetch()
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return ct.load_model(str(folder))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The same model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def joy(lm: LanguageModel) -> np.ndarray:
    """A vector of joy at `BLOCK`, float32 [d]."""
    positive, negative = (ct.capture(lm, texts, blocks=[BLOCK])[BLOCK] for texts in (JOY, GRIEF))
    return np.asarray(ct.concept_vector(positive, negative))


@contextmanager
def hooked(plain: Any, addition: np.ndarray) -> Iterator[None]:
    """`addition` on what a decoder layer returns, by a forward hook."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        row = torch.from_numpy(addition)
        return (output[0] + row, *output[1:]) if isinstance(output, tuple) else output + row

    handle = plain.model.layers[BLOCK].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def test_rows_are_the_hidden_states_of_transformers(lm: LanguageModel, plain: Any, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = ct.capture(lm, TEXTS, blocks=[0, 1, 15, 28])
    for i, text in enumerate(TEXTS):
        states = plain(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for block in (0, 1, 15, 28):
            expected = states[block + 1][0, -1].numpy()
            assert np.abs(rows[block][i] - expected).max() < 1e-5 * np.abs(expected).max()


@torch.no_grad()
def test_a_vector_is_the_mean_of_the_differences(joy: np.ndarray, plain: Any, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def mean(texts: list[str]) -> np.ndarray:
        rows = [
            plain(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[BLOCK + 1]
            for text in texts
        ]
        return np.asarray(np.mean([row[0, -1].double().numpy() for row in rows], axis=0))

    expected = mean(JOY) - mean(GRIEF)
    assert np.linalg.norm(joy - expected) < 1e-5 * np.linalg.norm(expected)


@torch.no_grad()
def test_steered_logits_are_those_of_a_plain_hook(lm: LanguageModel, plain: Any, joy: np.ndarray) -> None:
    ids = encode_many(lm, TEXTS)
    every = np.arange(lm.config.vocab_size)
    conditions = [BASE, Intervention("joy", {BLOCK: joy}, 2.0)]
    ours = next_token(lm, ids, conditions, watch=every).logits
    for i, row in enumerate(ids):
        inputs = torch.tensor([row])
        base = plain(inputs).logits[0, -1].numpy()
        with hooked(plain, 2.0 * joy):
            steered = plain(inputs).logits[0, -1].numpy()
        assert np.abs(steered - base).max() > 0.1  # it does something
        assert np.abs(ours[0, i] - base).max() < 1e-3
        assert np.abs(ours[1, i] - steered).max() < 1e-3


@torch.no_grad()
def test_steered_texts_are_those_of_a_plain_hook(
    lm: LanguageModel, plain: Any, joy: np.ndarray, folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conditions = [BASE, Intervention("joy", {BLOCK: joy}, 2.0)]
    ours = generate(lm, encode_many(lm, TEXTS[:2]), conditions, max_new_tokens=8)
    for i, text in enumerate(TEXTS[:2]):
        inputs = tokenizer(text, return_tensors="pt")
        base = plain.generate(**inputs, max_new_tokens=8, do_sample=False)
        with hooked(plain, 2.0 * joy):
            steered = plain.generate(**inputs, max_new_tokens=8, do_sample=False)
        for ids, continued in ((base, ours[0][i]), (steered, ours[1][i])):
            whole = tokenizer.decode(ids[0], skip_special_tokens=True)
            assert whole == text + continued
    assert ours[0] != ours[1]
    assert ours[0][0].startswith(" Paris")


def test_the_chat_template_begins_with_one_bos(lm: LanguageModel, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = "What is the capital of France?"
    ids = encode(lm, question, chat=True)
    turns = [{"role": "user", "content": question}]
    templated = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    assert ids == templated["input_ids"]
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    # The template opens each of its three turns (system, user, assistant) with that token; none is added.
    assert ids.count(tokenizer.bos_token_id) == 3
    assert generate(lm, [ids], max_new_tokens=10)[0][0] == "The capital of France is Paris."


def test_a_llama_cpp_file_is_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line: it is taken out of its quantisation at first use, and answers."""
    command = [sys.executable, "-m", "contrans_dist", "generate", "--model", str(fetch_real_model.GGUF)]
    options = ["--chat", "What is the capital of France?", "--max-new-tokens", "10", "--json"]
    home = {**os.environ, "HF_HOME": str(HOME)}
    done = subprocess.run([*command, *options], env=home, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["texts"][0]["base"] == "The capital of France is Paris."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", ASSETS)
        file = weights_identity(str(fetch_real_model.GGUF))
        assert file == "gguf-sha256:" + fetch_real_model.GGUF_SHA256
        assert weights_identity(str(folder)).startswith("sha256:")


@pytest.mark.parametrize(
    ("kept", "said"),
    [(3, "within its head"), (20, "within its head"), (40_000, "within its head"), (40_000_000, "GGUF file")],
)
def test_a_llama_cpp_file_that_is_cut_off_is_told(
    folder: Path, kept: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fetch_real_model.GGUF.open("rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
        ended = run(capsys, "generate", "--model", tmp_path / "cut.gguf", "Hello")
    assert ended.code == 2
    assert "cut.gguf" in ended.err.splitlines()[-1]
    assert said in ended.err.splitlines()[-1]


def test_the_readme_steers_a_chat_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands from the harvest on, as printed, and the answers that it shows."""
    section = (ROOT / "README.md").read_text().partition("## A llama.cpp file")[2].partition("\n## ")[0]
    blocks = [block.split("```")[0] for block in section.split("```sh\n")[1:]]
    shown = section.split("```text\n")[1].split("```")[0]
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    commands = [line.replace("runs/", f"{tmp_path}/") for line in lines if line.startswith("contrans ")]
    assert len(commands) == 4
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", ASSETS)
        for command in commands:
            ended = run(capsys, *shlex.split(command)[1:])
            assert ended.code == 0, ended.err
            said.append(ended.out)
    answers = said[2].splitlines()
    assert answers[:2] == shown.splitlines()
    assert (tmp_path / "joy.gguf").is_file()
