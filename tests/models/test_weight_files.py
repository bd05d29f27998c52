"""What a checkpoint's files say of themselves: precision, shapes and sizes, before anything is allocated."""

import importlib.util
import json
import resource
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contrans_dist.errors import UserError
from contrans_dist.models import load_model, model_facts
from contrans_dist.models.classifier import Classifier
from contrans_dist.models.loading import describe
from contrans_dist.models.streaming import open_streamed
from tests.models.test_classifier import TEXTS, by_pipeline, classifier_model
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def configured(folder: Path, **changes: Any) -> Path:
    """The folder with other fields in its configuration; None takes one away."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", n_blocks=2, d=16)


def test_a_half_precision_bin_file_is_run_as_the_manifest_says(folder: Path) -> None:
    state = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    configured(folder, dtype=None, torch_dtype=None)
    assert model_facts(str(folder)).dtype == "float16"
    assert load_model(str(folder)).weights_dtype == torch.float16


@pytest.mark.parametrize(
    ("first", "rest", "config", "expected"),
    [
        ("float16", "float32", None, "float16"),
        ("bfloat16", "float32", None, "bfloat16"),
        ("int64", "float16", None, "float16"),
        ("float16", "float16", "float32", "float32"),
        ("float32", "float32", "bfloat16", "bfloat16"),
    ],
)
def test_one_precision_for_manifest_and_run(
    folder: Path, first: str, rest: str, config: str | None, expected: str
) -> None:
    """In shards of mixed types, and where the configuration says something else than the files."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    if first == "int64":
        state["a.counter"] = torch.zeros(3)
        names.insert(0, "a.counter")
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for (file, keys), kind in zip(shards.items(), (first, rest), strict=True):
        save_file({key: state[key].to(getattr(torch, kind)) for key in keys}, folder / file,
                  metadata={"format": "pt"})  # fmt: skip
    places = {key: file for file, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    configured(folder, dtype=config, torch_dtype=None)
    assert model_facts(str(folder)).dtype == expected
    assert str(load_model(str(folder)).weights_dtype) == f"torch.{expected}"
    assert str(open_streamed(str(folder)).lm.weights_dtype) == f"torch.{expected}"


class Runs:
    def __reduce__(self) -> Any:
        return print, ("boo",)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_file_that_could_run_code_is_refused_in_one_line(folder: Path, dtype: str | None) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**state, "x": Runs()}, folder / "pytorch_model.bin")
    configured(folder, dtype=dtype, torch_dtype=None)
    with pytest.raises(UserError, match=r"more than tensors.*expected safetensors$") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_tokenizer_that_needs_a_package_says_which(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "contrans_dist.models.pretrained.find_spec",
        lambda name: None if name == "sentencepiece" else real(name),
    )
    for read in (load_model, model_facts):
        with pytest.raises(UserError, match=r"tokenizer\.model alone, .* pip install sentencepiece"):
            read(str(folder))


def test_a_judge_never_fills_up(recwarn: pytest.WarningsRecorder) -> None:
    """A pad token beyond the embeddings, in the tokenizer and in the configuration."""
    for kind in ("roberta", "gpt2"):
        model, tokenizer = classifier_model(kind), tiny_tokenizer()
        expected = by_pipeline(model, tokenizer, TEXTS)
        other = tiny_tokenizer(pad=False)
        other.add_special_tokens({"pad_token": "<new pad>"})
        assert other.pad_token_id >= model.get_input_embeddings().weight.shape[0]
        model.config.pad_token_id = other.pad_token_id
        got = Classifier(model, other, kind).probabilities([*TEXTS, *TEXTS])
        np.testing.assert_allclose(got, np.concatenate([expected, expected]), atol=1e-5)


# -- hostile sizes ------------------------------------------------------------------------------------


def refused_at_once(read: Any, words: str) -> None:
    """One line, within seconds, without much memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 10**9}, {"num_hidden_layers": 10**6}, {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12}, {"intermediate_size": 10**10}, {"hidden_size": 10**6},
        {"vocab_size": 10**7},
    ],
)  # fmt: skip
def test_a_configuration_that_claims_absurd_sizes_is_refused(folder: Path, changes: dict[str, int]) -> None:
    configured(folder, **changes)
    for read in (load_model, open_streamed, describe):
        refused_at_once(lambda read=read: read(str(folder)), r"config\.json")


def test_a_shape_that_its_bytes_cannot_fill_is_refused(folder: Path) -> None:
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**33, 0], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    for read in (load_model, open_streamed, describe):
        refused_at_once(
            lambda read=read: read(str(folder)),
            r"model\.safetensors: model\.embed_tokens\.weight has shape \[8589934592, 0\]",
        )


def test_empty_tensors_of_honest_files_are_read(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "empty": torch.zeros(0, 8)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(folder)).n_blocks == 2


def test_a_tied_model_is_no_absurd_one(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tied", "gpt2", n_blocks=2, d=16)
    assert load_model(str(folder)).n_blocks == tiny_model("gpt2", 2, 16).config.n_layer
