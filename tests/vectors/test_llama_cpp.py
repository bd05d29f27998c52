"""An exported control vector under llama.cpp itself, on SmolLM2, against our own steering of its weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

import contrans_dist as ct
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel
from contrans_dist.store.location import Location
from jobs import fetch_real_model
from tests.commands import run

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]

PACKAGES = ["xllamacpp==2026.10.11549", "llama-cpp-py-sync==0.11739"]
"""Of exactly these versions: see `run_llama_cpp`."""
BLOCK, STRENGTH, SHARE = 20, 2.0, 0.3
PROMPTS = [
    "The capital of France is", "She opened the door and saw", "My favourite food is", "He felt so",
    "The weather today is", "Once upon a time there was a", "I am very", "The dog barked and",
    "In the morning we", "It was the best day of",
]  # fmt: skip
PAIRS = [("I am happy.", "I am sad."), ("A joyful feast!", "A gloomy day."), ("She smiled.", "She wept.")]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with llama.cpp in it."""
    folder = tmp_path_factory.mktemp("llama-cpp")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGES[0]}: the package index does not give it: {done.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """The Hugging Face folder, and the llama.cpp file that it was made of."""
    try:
        return {"folder": fetch_real_model.fetch(), "q4_1": fetch_real_model.GGUF}
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(files: dict[str, Path]) -> LanguageModel:
    return ct.load_model(str(files["folder"]), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vector(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector that is 30 % of the median residual norm long, at strength 2."""
    happy, sad = (ct.capture(model, list(texts), blocks=[BLOCK]) for texts in zip(*PAIRS, strict=True))
    norm = float(np.median(np.linalg.norm(np.concatenate([happy[BLOCK], sad[BLOCK]]), axis=1)))
    row = ct.concept_vector(happy[BLOCK], sad[BLOCK])
    values = np.zeros((model.n_blocks, model.d), np.float32)
    values[BLOCK] = row * (SHARE * norm / STRENGTH / np.linalg.norm(row))
    made = ct.ConceptVector(values=values, concept="happy", model=model.name, norms={BLOCK: norm})
    assert made.share(BLOCK, STRENGTH) == pytest.approx(SHARE)
    path = tmp_path_factory.mktemp("vector") / "happy.safetensors"
    made.save(Location.parse(path))
    return path


def as_float32(path: Path, out: Path) -> Path:
    """The same model in float32: what llama.cpp multiplies in is then what we multiply in."""
    reader = GGUFReader(path)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def changes(model: LanguageModel, values: np.ndarray, block: int, ids: list[list[int]]) -> np.ndarray:
    """What steering at a block does to the next token's logits, [prompts, vocabulary]."""

    def logits() -> np.ndarray:
        rows = [model.model(torch.tensor([prompt])).logits[0, -1].numpy() for prompt in ids]
        return np.stack(rows).astype(np.float64)

    with torch.no_grad():
        base = logits()
        with ct.steer(model, values, block=block, strength=STRENGTH):
            return logits() - base


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Their correlation over prompts and vocabulary."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.999999), ("q4_1", 0.99)])
def test_llama_cpp_does_what_we_do_and_not_one_block_off(
    precision: str,
    least: float,
    files: dict[str, Path],
    llama_cpp: Path,
    model: LanguageModel,
    vector: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exported = tmp_path / "happy.gguf"
    ended = run(
        capsys, "export", "--vector", vector, "--format", "gguf", "--out", exported, "--strength", STRENGTH
    )
    assert ended.code == 0, ended.err
    weights = files["q4_1"]
    if precision == "float32":
        weights = as_float32(weights, tmp_path / "model.gguf")
    ids = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    (tmp_path / "prompts.json").write_text(json.dumps(ids))
    command = [sys.executable, str(Path(__file__).with_name("run_llama_cpp.py")), str(weights)]
    done = subprocess.run(
        [*command, str(tmp_path / "prompts.json"), str(tmp_path / "out.npz"), str(exported)],
        env={**os.environ, "PYTHONPATH": str(llama_cpp)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as told:
        there = told["0"].astype(np.float64) - told["base"]
    row = ct.ConceptVector.load(str(vector)).at(BLOCK)
    found = {block: alike(there, changes(model, row, block, ids)) for block in (19, 20, 21)}
    print(precision, found)
    assert found[BLOCK] >= least
    assert max(found[BLOCK - 1], found[BLOCK + 1]) < 0.95
