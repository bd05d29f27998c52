"""Loading, finding the blocks, tokens and identities."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from contrans_dist.engine.capture import capture
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import (
    encode,
    encode_many,
    facts,
    find_blocks,
    load_model,
    matched_depth,
    model_files,
    resolve_blocks,
    tokenizer_hash,
    unusable,
    weights_identity,
    wrap_model,
)
from contrans_dist.models.classifier import load_classifier
from contrans_dist.models.model_files import ModelFiles
from contrans_dist.models.streaming import open_streamed
from tests.models.test_classifier import save_classifier
from tests.tiny import ARCHITECTURES, save_tiny, tiny_model, tiny_tokenizer

TEXTS = ["She felt sad", "One day a bird asked the old man", "Once upon a time there was", "home"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_found_with_and_without_a_head(architecture):
    model = tiny_model(architecture)
    decoder, blocks = find_blocks(model)
    ran = []
    handles = [
        block.register_forward_hook(lambda module, args, output, i=i: ran.append(i))
        for i, block in enumerate(blocks)
    ]
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert ran == [0, 1, 2, 3]
    for handle in handles:
        handle.remove()
    for part in (model.base_model, model.get_decoder(), decoder):
        assert list(find_blocks(part)[1]) == list(blocks)


def _small(kind: str, auto=AutoModelForCausalLM, **fields):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, **fields}
    return auto.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.mark.parametrize(
    ("kind", "build", "words"),
    [
        (
            "t5",
            lambda: _small(
                "t5", AutoModelForSeq2SeqLM, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=32
            ),
            "encoder-decoder",
        ),
        ("bert", lambda: _small("bert", AutoModel, intermediate_size=64), "later tokens"),
        ("mamba", lambda: _small("mamba", state_size=4), "no attention"),
        # Says nowhere that it is an encoder: only running it shows.
        ("roformer", lambda: _small("roformer", intermediate_size=64, embedding_size=32), "later tokens"),
    ],
)
def test_other_models_are_refused_by_name(kind, build, words):
    with pytest.raises(UserError, match=f"'{kind}'.*{words}.*expected"):
        wrap_model(build(), tiny_tokenizer())


def test_specifications_of_blocks():
    expected = {
        "all": list(range(32)),
        "24": [24],
        "8:16": list(range(8, 16)),
        "30:": [30, 31],
        "-2:": [30, 31],
        "3,5": [3, 5],
        "5,3,4:6": [3, 4, 5],
        "0.75": [24],
        "1.0": [31],
        "0.0": [0],
        "-1": [31],
    }
    assert {spec: resolve_blocks(spec, 32) for spec in expected} == expected


@pytest.mark.parametrize("spec", ["32", "-33", "8:33", "16:8", "8:8", "x", "", "1.5", "1:2:3", "3,", "0x3"])
def test_a_wrong_specification_names_the_flag_and_the_blocks(spec):
    with pytest.raises(UserError, match=r"^--block .*blocks 0 to 31$"):
        resolve_blocks(spec, 32, flag="--block")


def test_matched_depth_is_the_official_one():
    assert [matched_depth(n) for n in (32, 40, 80)] == [24, 30, 60]
    assert matched_depth(4, 1.0) == 3


def test_tokens_begin_with_exactly_one_bos():
    lm = wrap_model(tiny_model(), tiny_tokenizer(chat=True))
    plain = lm.tokenizer("home", add_special_tokens=False)["input_ids"]
    assert encode(lm, "home") == [0, *plain]
    chat = encode(lm, "home", chat=True)
    assert lm.tokenizer.decode(chat) == "<s>[user] home\n[assistant] "
    assert chat.count(0) == 1
    assert encode_many(lm, TEXTS) == [encode(lm, text) for text in TEXTS]
    assert encode_many(lm, TEXTS, chat=True) == [encode(lm, text, chat=True) for text in TEXTS]
    assert encode_many(lm, []) == []


def test_a_tokenizer_without_bos_or_template():
    lm = wrap_model(tiny_model(), tiny_tokenizer(bos=False, pad=False))
    assert lm.front == []
    assert encode(lm, "") == []
    with pytest.raises(UserError, match="no chat template"):
        encode(lm, "home", chat=True)


def test_a_text_that_cannot_be_run_says_why():
    lm = wrap_model(tiny_model(vocab=300), tiny_tokenizer())
    lm.tokenizer.add_tokens(["<image>"])
    bad = encode(lm, "home <image> home")
    assert max(bad) >= 300 > encode(lm, "home")[-1]
    assert unusable(lm, bad) == f"token {max(bad)} ('<image>') is beyond the model's 300 embeddings"
    assert unusable(lm, encode(lm, "home")) is None
    assert unusable(lm, [0, 299]) is None
    assert "no tokens" in str(unusable(lm, []))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_partial_depth_and_no_head(architecture, tmp_path):
    folder = save_tiny(tmp_path, architecture)
    whole = load_model(str(folder))
    rows = capture(whole, TEXTS, [0, 1])
    for head in (True, False):
        lm = load_model(str(folder), highest_block=1, head=head)
        assert (len(lm.blocks), lm.n_blocks, lm.d) == (2, 4, 32)
        # The weights left out are those of the upper blocks, and of the head where none is wanted.
        upper = sum(p.numel() for block in whole.blocks[2:] for p in block.parameters())
        output = whole.model.get_output_embeddings().weight
        tied = output is whole.model.get_input_embeddings().weight
        left_out = upper + (0 if head or tied else output.numel())
        size = sum(p.numel() for p in whole.model.parameters())
        assert sum(p.numel() for p in lm.model.parameters()) == size - left_out
        part = capture(lm, TEXTS)
        assert list(part) == [0, 1]
        for block in part:
            np.testing.assert_allclose(part[block], rows[block], rtol=1e-6, atol=1e-6)
        with pytest.raises(UserError, match="blocks 0 to 1 are loaded"):
            capture(lm, TEXTS, blocks=[2])


def test_a_hybrid_model_cut_below_its_attention(tmp_path):
    sizes = {"attn_layer_period": 4, "attn_layer_offset": 3, "expert_layer_period": 2, "num_experts": 2}
    folder = save_tiny(tmp_path, "jamba", use_mamba_kernels=False, mamba_d_state=4, **sizes)
    rows = capture(load_model(str(folder)), TEXTS)
    part = capture(load_model(str(folder), highest_block=1), TEXTS)
    np.testing.assert_allclose(part[1], rows[1], rtol=1e-5, atol=1e-5)


def test_dtypes(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    assert load_model(str(folder)).dtype == torch.float32
    assert load_model(str(folder), dtype="float16").weights_dtype == torch.float16
    half = load_model(str(folder), dtype="bfloat16", compute_dtype="bfloat16")
    half.model.save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    lm = load_model(str(tmp_path / "half"))
    assert lm.weights_dtype == torch.bfloat16
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    with pytest.raises(UserError, match="--dtype half: expected one of float32"):
        load_model(str(folder), dtype="half")


@pytest.mark.parametrize(("quantization", "cosine"), [("int8", 0.99), ("nf4", 0.8)])
def test_quantised_on_the_cpu(quantization, cosine, tmp_path):
    folder = save_tiny(tmp_path, "llama", d=64)
    rows = capture(load_model(str(folder), device="cpu"), TEXTS, blocks=[1])[1]
    lm = load_model(str(folder), device="cpu", quantization=quantization, highest_block=1)
    kinds = {type(m).__name__ for m in lm.blocks[1].modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    got = capture(lm, TEXTS)[1]
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(got, axis=1)
    assert ((rows * got).sum(axis=1) / norms).min() > cosine
    for layer in lm.model.modules():
        # In the precision that the manifest will name, the checkpoint's own.
        assert getattr(layer, "compute_dtype", None) in (None, torch.float32)
    with pytest.raises(UserError, match="--quantization int3: expected one of int8, nf4"):
        load_model(str(folder), quantization="int3")


def test_names(tmp_path):
    named = ModelFiles.of("org/model@abc")
    assert (named.name, named.place, named.revision) == ("org/model@abc", "org/model", "abc")
    assert ModelFiles.of("org/model") == ModelFiles("org/model", "org/model")
    folder = tmp_path / "a@b"
    save_tiny(folder)
    assert ModelFiles.of(str(folder)) == ModelFiles(str(folder), str(folder))
    assert load_model(str(folder)).n_blocks == 4
    for name in ("./nowhere", "/nowhere/at/all", "a/b/c", ""):
        with pytest.raises(UserError, match="no such folder"):
            load_model(name)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("said", "raised", "words"),
    [
        ("We couldn't connect to 'https://huggingface.co'\nto load the files", RunError, "does not answer"),
        ("org/x is not a local folder and is not a valid\nmodel identifier", UserError, "--model org/x: "),
    ],
)
def test_what_the_hub_says_becomes_one_line(said, raised, words, monkeypatch):
    def refuse(*_, **__):
        raise OSError(said)

    monkeypatch.setattr("contrans_dist.models.model_files.cached_file", refuse)
    with pytest.raises(raised, match=words) as caught:
        load_model("org/x")
    assert "\n" not in str(caught.value)


def test_incomplete_and_broken_checkpoints(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    model = tiny_model("llama")
    state = model.state_dict()
    del state["model.layers.1.mlp.down_proj.weight"]
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(RunError, match=r"weights missing.*layers\.1\.mlp\.down_proj\.weight"):
        load_model(str(folder))
    assert load_model(str(folder), highest_block=0).n_blocks == 4
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or not whole"):
        load_model(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(str(folder))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="'vit'"):
        load_model(str(folder))
    (folder / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(UserError, match="no-such-thing"):
        load_model(str(folder))


def test_tokenizer_hash():
    hashes = [
        tokenizer_hash(tiny_tokenizer()),
        tokenizer_hash(tiny_tokenizer(vocab=290)),
        tokenizer_hash(tiny_tokenizer(bos=False)),
        tokenizer_hash(tiny_tokenizer(pad=False)),
        tokenizer_hash(tiny_tokenizer(chat=True)),
    ]
    assert len(set(hashes)) == len(hashes)
    used = tiny_tokenizer()
    used(["home", "a longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(used) == hashes[0]


def test_weights_identity_of_a_folder(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path, "llama")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    named = f"model.safetensors {len(data)}\n".encode()
    assert weights_identity(str(folder)) == "sha256:" + hashlib.sha256(named + data).hexdigest()
    monkeypatch.setattr(facts, "FULL_LIMIT", 1000)
    sampled = weights_identity(str(folder))
    assert sampled.startswith("sha256-sampled:")
    data[-1] ^= 1
    weights.write_bytes(data)
    assert weights_identity(str(folder)) != sampled
    weights.unlink()
    with pytest.raises(UserError, match="no weights"):
        weights_identity(str(folder))


def test_weights_identity_of_a_hub_model(monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    requests = []

    def cached(name, file, revision):
        requests.append((name, revision))
        return f"/cache/models--org--model/snapshots/{commit}/{file}"

    monkeypatch.setattr(model_files, "cached_file", cached)
    assert weights_identity("org/model@v1") == f"commit:{commit}"
    assert requests == [("org/model", "v1")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("quantization", [None, "int8", "nf4"])
def test_a_gpu_is_used_where_there_is_one(quantization, tmp_path):
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, "llama", d=64)
    lm = load_model(str(folder), quantization=quantization, highest_block=1)
    assert lm.device.type == "cuda"
    assert all(p.device.type == "cuda" for p in lm.model.parameters())
    assert np.isfinite(capture(lm, TEXTS)[1]).all()


@pytest.mark.parametrize("load", [load_model, open_streamed, load_classifier])
def test_attention_is_not_left_to_cudnn(load: Callable[[str], object], tmp_path: Path) -> None:
    save = save_classifier if load is load_classifier else save_tiny
    torch.backends.cuda.enable_cudnn_sdp(True)
    load(str(save(tmp_path / "model")))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_attention_on_a_gpu_is_cudnns(tmp_path: Path) -> None:
    """By PyTorch's own choice, with a mask and without one."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_model(str(save_tiny(tmp_path)))
    heads = torch.zeros(2, 4, 24, 64, device="cuda", dtype=torch.float16)
    mask = torch.ones(2, 1, 24, 24, device="cuda", dtype=torch.bool).tril()
    chosen = {torch._fused_sdp_choice(heads, heads, heads, attn_mask=of) for of in (None, mask)}
    assert not chosen & {SDPBackend.CUDNN_ATTENTION.value, SDPBackend.MATH.value}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_has_failed_is_known() -> None:
    """In a process of its own, for which the GPU is lost."""
    code = (
        "import torch\nfrom contrans_dist.models.devices import gpus_work\n"
        "assert gpus_work()\nvalues = torch.zeros(2, device='cuda')\nassert gpus_work()\n"
        "try:\n    print(values[torch.tensor([5], device='cuda')].tolist())\n"
        "except RuntimeError:\n    assert not gpus_work()\nelse:\n    raise SystemExit('nothing failed')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_OWN_CODE = """
from transformers import LlamaForCausalLM, LlamaModel


class Own(LlamaModel):
    pass


class OwnForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = Own(config)
        self.post_init()
"""


@pytest.mark.parametrize("autos", [["AutoModelForCausalLM"], ["AutoModel", "AutoModelForCausalLM"]])
def test_code_that_comes_with_a_model_runs_with_and_without_a_head(autos, tmp_path):
    """Before, a harvest took transformers' own class where the code named one for the whole model alone."""
    folder = save_tiny(tmp_path / f"own{len(autos)}", "llama", n_blocks=2)
    (folder / "own_llama.py").write_text(_OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoModel": "own_llama.Own", "AutoModelForCausalLM": "own_llama.OwnForCausalLM"}
    config["auto_map"] = {auto: classes[auto] for auto in autos}
    (folder / "config.json").write_text(json.dumps(config))
    for head in (True, False):
        lm = load_model(str(folder), head=head, trust_remote_code=True)
        assert type(lm.decoder).__name__ == "Own"
