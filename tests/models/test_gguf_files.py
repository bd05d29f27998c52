"""llama.cpp's files, made here: of a model in half precision, of none, and of more than is honest."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import contrans_dist as ct
from contrans_dist.models import model_facts
from contrans_dist.models.gguf_files import unpack
from tests.commands import run

D, INNER, VOCABULARY, CONTEXT = 32, 64, 8, 64
WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "Ġ"]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))


def write_model(path: Path, half: bool = True) -> dict[str, np.ndarray]:
    """A random llama of one block with a vocabulary of `WORDS`; returns its weights by GGUF's names."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // 2)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {
        "token_embd": (VOCABULARY, D), "output": (VOCABULARY, D), "blk.0.attn_q": (D, D),
        "blk.0.attn_k": (D, D), "blk.0.attn_v": (D, D), "blk.0.attn_output": (D, D),
        "blk.0.ffn_gate": (INNER, D), "blk.0.ffn_up": (INNER, D), "blk.0.ffn_down": (D, INNER),
        "output_norm": (D,), "blk.0.attn_norm": (D,), "blk.0.ffn_norm": (D,),
    }  # fmt: skip
    weights = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float16 if half and len(shape) > 1 else np.float32)
        weights[name] = values
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_file_in_half_precision_stays_in_it(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "tiny.gguf")
    facts = model_facts(str(tmp_path / "tiny.gguf"))
    assert (facts.n_blocks, facts.d, facts.dtype, facts.context) == (1, D, "float16", CONTEXT)
    assert facts.weights.startswith("gguf-sha256:")
    lm = ct.load_model(str(tmp_path / "tiny.gguf"), dtype="float32")
    loaded = lm.model.state_dict()
    for name in ("gate", "up", "down"):
        values = loaded[f"model.layers.0.mlp.{name}_proj.weight"].numpy()
        assert np.array_equal(values, weights[f"blk.0.ffn_{name}"].astype(np.float32))


def test_a_folder_made_of_it_is_one_of_transformers(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf", half=False)
    unpack(tmp_path / "tiny.gguf", tmp_path / "folder")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    straight = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tmp_path / "folder")("ab c", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(whole(ids).logits, straight(ids).logits)


def test_it_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "tiny.gguf")
    first = run(capsys, "generate", "--model", tmp_path / "tiny.gguf", "ab", "--max-new-tokens", "2")
    again = run(capsys, "generate", "--model", tmp_path / "tiny.gguf", "ab", "--max-new-tokens", "2")
    assert (first.code, again.code, first.out) == (0, 0, again.out)
    assert "quantisation once" in first.err
    assert "quantisation" not in again.err


def test_a_control_vector_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vector.gguf", "controlvector")
    writer.add_tensor("direction.1", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ended = run(capsys, "generate", "--model", tmp_path / "vector.gguf", "Hello")
    assert ended.code == 2
    assert "controlvector" in ended.err.splitlines()[-1]
    assert not list((tmp_path / "assets").rglob("made_from.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"GGUF", "ends within its head"),
        (b"PK" + bytes(40), "begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1), "its tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 40), "its keys"),
        # A list that says it has more entries than there are bytes in the world.
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 1, 1, 1, b"k", 9, 8, 1 << 62), "ends within its head"),
    ],
)
def test_what_is_none_is_refused_before_it_is_read(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    run(capsys, "generate", "--model", tmp_path / "x.gguf", "Hello").refused("x.gguf", said)


def test_more_blocks_than_any_model_has_are_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped bit. Before, transformers made module after module until memory or patience ended."""
    path = tmp_path / "x.gguf"
    write_model(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"llama.block_count") + len("llama.block_count") + 4
    assert content[at : at + 4] == struct.pack("<I", 1)
    content[at + 3] ^= 0x40
    path.write_bytes(content)
    run(capsys, "generate", "--model", path, "Hello").refused("x.gguf: llama.block_count: 1,073,741,825, exp")


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "generate", "--model", tmp_path / "x.gguf", "Hello").refused("x.gguf: no such file")
