"""Models of which one block after the other is read: same rows as the whole model, each weight read once."""

import json
import os
import re
import subprocess
import sys
import weakref
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.capture.stage import Stage
from contrans_dist.engine.capture.states import States
from contrans_dist.engine.capture.streamed import capture_streamed, plan_capture, states_of, sweep
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import checkpoint, crossing, load_model, streaming
from contrans_dist.models.checkpoint import Checkpoint
from contrans_dist.models.crossing import copy_streams
from contrans_dist.models.streaming import StreamedModel, _to_device, open_streamed
from tests.tiny import ARCHITECTURES, save_tiny, tiny_model, tiny_tokenizer

LENGTHS = [7, 100, 1, 3, 40, 2, 13, 5, 60, 21, 8, 7]


def _ids(shortest: int = 1) -> list[list[int]]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, 290, size=length).tolist() for length in LENGTHS if length >= shortest]
    return [*ids[:-1], ids[0]]


def _deviation(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def _by_transformers(folder: Path, ids: list[list[int]]) -> np.ndarray:
    """Rows `[texts, blocks but the last, d]` of each text alone, from transformers' own hidden states."""
    model = load_model(str(folder), dtype="float32", device="cpu").model
    rows = []
    for text in ids:
        with torch.no_grad():
            states = model(torch.tensor([text]), output_hidden_states=True).hidden_states
        rows.append(torch.stack([state[0, -1] for state in states[1:-1]]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_the_whole_models(architecture: str, tmp_path: Path) -> None:
    folder, ids = save_tiny(tmp_path / "model", architecture), _ids()
    rows = capture_streamed(open_streamed(str(folder), device="cpu"), ids, batch_tokens=200)
    assert list(rows) == [0, 1, 2, 3]
    whole = capture_ids(load_model(str(folder), device="cpu", head=False), ids, batch_tokens=200)
    wanted = _by_transformers(folder, ids)
    for k in rows:
        assert rows[k].dtype == np.float32
        assert _deviation(rows[k], whole[k]) < 1e-5
    for k in range(3):
        assert _deviation(rows[k], wanted[:, k]) < 1e-5
        assert _deviation(rows[k], rows[k + 1]) > 0.1
    np.testing.assert_array_equal(rows.token_ids, whole.token_ids)
    np.testing.assert_array_equal(rows.n_tokens, whole.n_tokens)


@pytest.mark.parametrize("position", ["mean", -2, 1])
def test_positions_and_blocks(position: str | int, tmp_path: Path) -> None:
    folder, ids = save_tiny(tmp_path / "model", "gemma2"), _ids(shortest=2)
    whole = capture_ids(load_model(str(folder), device="cpu"), ids, "0,2", position, 150)
    rows = capture_streamed(open_streamed(str(folder), device="cpu"), ids, [2, 0], position, 150)
    assert list(rows) == [0, 2]
    for k in rows:
        assert _deviation(rows[k], whole[k]) < 1e-5
    assert rows.token_ids.tolist() == whole.token_ids.tolist()


def test_a_second_sweep_runs_the_batches_of_the_first(tmp_path: Path) -> None:
    """In others, one that is tried again would find nothing of what it saved. On a GPU: on a processor they
    are small whatever is asked."""
    streamed = open_streamed(str(save_tiny(tmp_path / "model")), device="cpu")
    assert streamed.lm.device == streamed.lm.streamed_on == torch.device("cpu")
    streamed.forget_embedding()
    streamed.lm.streamed_on = torch.device("cuda")
    assert streamed.lm.device.type == "cuda"
    assert len(plan_capture(streamed.lm, [[3] * 50] * 40, [0], batch_tokens=4000).batches) == 1


@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", None), ("float32", "bfloat16")])
def test_precision(stored: str, dtype: str | None, tmp_path: Path) -> None:
    model = tiny_model("qwen3").to(getattr(torch, stored))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    options: dict[str, Any] = {"dtype": dtype, "compute_dtype": "bfloat16", "device": "cpu"}
    whole = capture_ids(load_model(str(tmp_path), **options), _ids(), share_prefixes=False)
    streamed = open_streamed(str(tmp_path), **options)
    assert streamed.lm.dtype == torch.bfloat16
    rows = capture_streamed(streamed, _ids())
    for k in whole:
        assert _deviation(rows[k], whole[k]) < 1e-5


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that are read from now on."""
    names: list[str] = []
    read = Checkpoint.read

    def noted(self: Checkpoint, stored: Any) -> torch.Tensor:
        names.append(next(name for name, each in self.tensors.items() if each is stored))
        return read(self, stored)

    monkeypatch.setattr(Checkpoint, "read", noted)
    return names


def _block_of(name: str) -> int | None:
    number = re.search(r"\.(\d+)\.", f".{name}")
    return int(number[1]) if number and "vision" not in name else None


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2", "gemma3"])
def test_each_weight_is_read_once_and_none_above(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    tiny_model(architecture).save_pretrained(folder, max_shard_size="30kB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    names = _reads(monkeypatch)
    streamed = open_streamed(str(folder), device="cpu")
    assert {_block_of(name) for name in names} == {None}
    rows = capture_streamed(streamed, _ids(), [1, 2], batch_tokens=60)
    assert max(Counter(names).values()) == 1
    stored = streamed.checkpoint.tensors
    for k in range(4):
        of_block = {name for name in stored if _block_of(name) == k}
        assert of_block
        assert of_block & set(names) == (of_block if k < 3 else set())
    assert not [name for name in names if "vision" in name or "lm_head" in name]
    assert streamed.checkpoint.bytes_read == sum(stored[name].nbytes for name in names)
    assert streamed.blocks_read == [0, 1, 2]
    whole = capture_ids(load_model(str(folder), device="cpu"), _ids(), [1, 2], batch_tokens=60)
    assert all(_deviation(rows[k], whole[k]) < 1e-5 for k in (1, 2))


def test_tied_embeddings_and_a_second_capture(tmp_path: Path) -> None:
    """The embeddings are freed in between, and read again."""
    folder = save_tiny(tmp_path / "model", "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    streamed = open_streamed(str(folder), device="cpu")
    first = capture_streamed(streamed, _ids(), batch_tokens=100)
    assert streamed.lm.model.get_input_embeddings().weight.device.type == "meta"
    again = capture_streamed(streamed, _ids(), batch_tokens=100)
    for k in first:
        np.testing.assert_array_equal(again[k], first[k])


@pytest.mark.parametrize("memory", [0, 20_000])
def test_spilled_states_give_the_same_rows(memory: int, tmp_path: Path, monkeypatch: Any) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    kept = capture_streamed(open_streamed(str(folder), device="cpu"), _ids(), batch_tokens=64)
    written: list[int] = []
    write = States._write

    def noted(self: States, path: Path, i: int, state: torch.Tensor) -> None:
        written.append(i)
        write(self, path, i, state)

    monkeypatch.setattr(States, "_write", noted)
    streamed = open_streamed(str(folder), device="cpu")
    spilled = capture_streamed(streamed, _ids(), batch_tokens=64, memory=memory)
    # Before each block; what leaves the last one is of no use.
    assert set(Counter(written).values()) == {4}
    assert (0 in written) == (memory == 0)
    for k in kept:
        np.testing.assert_array_equal(spilled[k], kept[k])


def test_states_of_a_gpu_count_as_the_memory_that_is_pinned_for_them(tmp_path: Path) -> None:
    """Powers of two: three of 1,152 bytes take 6,144."""
    streamed = open_streamed(str(save_tiny(tmp_path / "model")), device="cpu")
    batches = plan_capture(streamed.lm, [[3] * 9] * 3, [3], batch_tokens=9).batches
    assert len(batches) == 3
    assert 9 * streamed.lm.d * streamed.lm.dtype.itemsize == 1152
    for device, memory, held in (("cpu", 3456, 3), ("cuda", 3456, 1), ("cuda", 6143, 2), ("cuda", 6144, 3)):
        streamed.device = torch.device(device)
        with states_of(streamed, batches, memory, tmp_path) as states:
            assert states.in_memory == held, device


def test_texts_that_are_through_before_others_hold_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets with other highest blocks in one sweep; all states lie on the disk."""
    streamed = open_streamed(str(save_tiny(tmp_path / "model")), device="cpu")
    low = plan_capture(streamed.lm, [[5, 6, 7]] * 60, [0], batch_tokens=3)
    high = plan_capture(streamed.lm, [[5, 6, 7]] * 2, [3], batch_tokens=3, place=60)
    read, held, most = States._read, weakref.WeakSet[torch.Tensor](), 0

    def counted(self: States, path: Path, i: int) -> torch.Tensor:
        nonlocal most
        held.add(state := read(self, path, i))
        most = max(most, len(held))
        return state

    monkeypatch.setattr(States, "_read", counted)
    batches = [*low.batches, *high.batches]
    rows = {k: np.zeros((62, streamed.lm.d), np.float32) for k in (0, 3)}
    assert len(batches) == 62
    with states_of(streamed, batches, 0, tmp_path) as states:
        sweep(streamed, batches, rows, states)
    assert most <= 8  # at work, read ahead, to be written
    alone = capture_streamed(open_streamed(str(tmp_path / "model"), device="cpu"), [[5, 6, 7]], [0, 3])
    assert _deviation(rows[0][:60], np.repeat(alone[0], 60, 0)) < 1e-5
    assert _deviation(rows[3][60:], np.repeat(alone[3], 2, 0)) < 1e-5


def test_a_block_for_which_there_is_no_memory_beside_another_is_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And batches are smaller from there on, so that the next ones find room."""
    folder, before, load = save_tiny(tmp_path / "model"), [weakref.ref(torch.nn.Module())], StreamedModel.load
    whole = capture_streamed(open_streamed(str(folder), device="cpu"), _ids(), batch_tokens=200)

    def crowded(self: StreamedModel, k: int) -> torch.nn.Module:
        if k == 1 and not failed:
            failed.append(k)
            raise torch.OutOfMemoryError("CUDA out of memory")
        if k == 1:
            assert before[-1]() is None
        block = load(self, k)
        before.append(weakref.ref(block))
        return block

    failed: list[int] = []
    monkeypatch.setattr(StreamedModel, "load", crowded)
    streamed = open_streamed(str(folder), device="cpu")
    rows = capture_streamed(streamed, _ids(), batch_tokens=200)
    assert failed == [1]
    assert streamed.blocks_read == [0, 1, 2, 3]
    assert streamed.lm.fits is not None
    assert 50 <= streamed.lm.fits <= 100
    for k in whole:
        assert _deviation(rows[k], whole[k]) < 1e-5


def test_what_was_saved_outlives_later_passes(tmp_path: Path) -> None:
    shapes = [(2, 3, 4), (1, 5, 4), (3, 1, 4)]
    first = [torch.randint(99, shape).float() for shape in shapes]
    with States(shapes, torch.float32, 100, tmp_path) as states:
        assert (states.in_memory, states.offsets[-1] - states.offsets[1]) == (1, 4 * (20 + 12))
        states.begin(0)
        for i, state in enumerate(first):
            states.put(i, state)
        states.end()
        states.save()
        states.release()
        for step in (1, 2):
            states.begin(step)
            for i, state in enumerate(states.in_order()):
                states.put(i, state + 1)
            states.end()
        assert all(torch.equal(a, b + 2) for a, b in zip(states.in_order(), first, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["states-0000.raw", "states-0002.raw"]
    for memory in (0, 100, 10**6):
        with States(shapes, torch.float32, memory, tmp_path) as states:
            states.resume(0)
            assert all(torch.equal(a, b) for a, b in zip(states.in_order(), first, strict=True))
    os.truncate(tmp_path / "states-0000.raw", 200)
    with (
        States(shapes, torch.float32, 0, tmp_path) as states,
        pytest.raises(RunError, match=r"states-0000\.raw: not whole"),
    ):
        states.resume(0)


def test_reading_leaves_the_computing_thread_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default dtype is the whole process's: reading a block must not change it, not even for a moment."""
    streamed = open_streamed(str(save_tiny(tmp_path / "model", "mixtral")), dtype="bfloat16", device="cpu")
    calls: list[Any] = []
    monkeypatch.setattr(torch, "set_default_dtype", calls.append)
    streamed.load(2)
    assert not calls


def test_all_blocks_come_through_one_stream_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one stream has freed, no other gets: with one for each block, a GPU would hold them all."""
    copy_streams.cache_clear()
    used: list[object] = []
    stream = SimpleNamespace(synchronize=lambda: None)

    def on(stream: object) -> nullcontext[None]:
        used.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: object())
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    for _ in range(3):
        _to_device(torch.nn.Identity(), torch.device("cuda:0"))
    copy_streams.cache_clear()
    assert len(used) == 3
    assert len(set(used)) == 1


def test_the_host_waits_for_nothing_that_enters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ids and states go the way on which a GPU's host does not: also those that were on disk."""
    streamed = open_streamed(str(save_tiny(tmp_path / "model")), device="cpu")
    brought: list[tuple[int, ...]] = []

    def bring(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        brought.append(tuple(tensor.shape))
        return crossing.to_device(tensor, device)

    monkeypatch.setattr(streaming, "to_device", bring)
    capture_streamed(streamed, [[3, 4, 5], [6, 7, 8]], memory=0)
    checked, state = (2, 3, streamed.lm.d), (2, 3, streamed.lm.d)
    assert brought == [(2, 3), checked, state, state, state, state]


def test_what_is_on_the_device_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which PyTorch refuses."""
    pinned: list[torch.device] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.device)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    for place in ("cpu", "meta"):  # meta stands for a GPU
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
        crossing.to_device(torch.empty(1, device=place), torch.device("cuda"))
    assert pinned == [torch.device("cpu")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_gpu_gives_the_rows_of_the_processor(memory: int, tmp_path: Path) -> None:
    folder, ids = str(save_tiny(tmp_path / "model")), _ids()
    expected = capture_streamed(open_streamed(folder, device="cpu"), ids)
    streamed = open_streamed(folder, device="cuda")
    plan = plan_capture(streamed.lm, ids, [1, 3], batch_tokens=200)
    staged = {k: np.zeros((len(ids), streamed.lm.d), np.float32) for k in (1, 3)}
    rows = capture_streamed(streamed, ids, batch_tokens=200, memory=memory)
    first, second = Stage(open_streamed(folder, device="cuda"), 0, 1), Stage(streamed, 2, 3)
    second.run(plan.batches, staged, first.run(plan.batches, staged))
    for k in (1, 3):
        assert _deviation(rows[k], expected[k]) < 1e-4
        assert _deviation(staged[k], expected[k]) < 1e-4


def test_what_waits_for_a_gpu_leaves_the_processor_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kind of event: another spins."""
    calls: list[object] = []

    class Event:
        def __init__(self, blocking: bool = False) -> None:
            calls.append(blocking)

        def record(self, stream: str) -> None:
            calls.append(stream)

        def synchronize(self) -> None:
            calls.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device.type}")
    state = SimpleNamespace(device=torch.device("cuda"), to=lambda _place, non_blocking: torch.ones(2))
    on_host = crossing.OnHost(cast(torch.Tensor, state))
    assert calls == [True, "stream of cuda"]
    assert on_host.tensor().tolist() == [1, 1]
    assert calls[2:] == ["waited"]


def test_bad_texts(tmp_path: Path) -> None:
    streamed = open_streamed(str(save_tiny(tmp_path / "model", "llama")), device="cpu")
    with pytest.raises(UserError, match="text 1: no tokens"):
        capture_streamed(streamed, [[5], []])
    with pytest.raises(UserError, match="text 0: position -2 asked for, but it has 1 tokens"):
        capture_streamed(streamed, [[5]], position=-2)
    with pytest.raises(UserError, match="blocks 0 to 3"):
        capture_streamed(streamed, [[5]], [4])


def _damage(folder: Path, how: str) -> str:
    """Spoils a checkpoint of several files; what the message must say."""
    files = sorted(folder.glob("*.safetensors"))
    if how == "short":
        os.truncate(files[1], files[1].stat().st_size - 8)
    elif how == "header":
        files[1].write_bytes(b"\xff" * 100)
    elif how == "gone":
        files[1].unlink()
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
        return "model.safetensors.index.json: damaged"
    elif how == "tensor":
        tensors = load_file(files[-1])
        name = next(name for name in tensors if ".3." in name)
        save_file({n: t for n, t in tensors.items() if n != name}, files[-1], metadata={"format": "pt"})
        return f"block 3: weights missing or of another shape: .*{name.rsplit('.', 2)[1]}"
    return files[1].name


@pytest.mark.parametrize("how", ["short", "header", "gone", "index", "tensor"])
def test_damaged_checkpoints(how: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="30kB")
    tiny_tokenizer().save_pretrained(tmp_path)
    said = _damage(tmp_path, how)
    with pytest.raises((RunError, UserError), match=said) as caught:
        capture_streamed(open_streamed(str(tmp_path), device="cpu"), _ids())
    assert "\n" not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    streamed = open_streamed(str(folder), device="cpu")
    os.truncate(folder / "model.safetensors", 30_000)
    with pytest.raises(RunError, match="bytes too early") as caught:
        capture_streamed(streamed, _ids())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fits", [True, False])
def test_files_that_fit_stay_in_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """Sweeps on one node would else each read them from the disk; larger ones push out what is used."""
    path = save_tiny(tmp_path / "model") / "model.safetensors"
    size = sum(tensor.nbytes for tensor in load_file(path).values())
    dropped: list[int] = []

    def advise(_file: int, _start: int, length: int, advice: int) -> None:
        dropped.append(length if advice == os.POSIX_FADV_DONTNEED else 0)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(checkpoint, "host_memory", lambda: size - (not fits))
    for stored in Checkpoint([path]).tensors.values():
        assert stored[...].nbytes == stored.nbytes
    assert sum(dropped) == (0 if fits else size)


def test_checkpoints_that_cannot_be_streamed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    with pytest.raises(UserError, match=r"--placement stream: .* is quantised"):
        open_streamed(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"--placement stream: .* no weights as safetensors"):
        open_streamed(str(folder))


def test_what_fails_while_loading_is_not_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    monkeypatch.setattr("contrans_dist.models.checkpoint._advise", _lacking)
    with pytest.raises(RunError, match="AttributeError: this system lacks posix_fadvise") as caught:
        open_streamed(str(folder), device="cpu")
    assert "share parts" not in str(caught.value)


def _lacking(*_: Any) -> None:
    raise AttributeError("this system lacks posix_fadvise")


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 300,
    "pad_token_id": 2,
}
SHARING: dict[str, dict[str, Any]] = {
    "gemma4_text": {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
    },
    "rwkv": {"attention_hidden_size": 32},
}


@pytest.mark.parametrize("architecture", SHARING)
def test_models_whose_blocks_share_more_are_refused(architecture: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(architecture, **SMALL, **SHARING[architecture])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"model type '{architecture}' cannot be streamed") as caught:
        open_streamed(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_loop_that_does_more_than_call_its_blocks_is_refused(tmp_path: Path) -> None:
    """Three loops over the blocks of a real model that nothing but a look inside could tell from its own."""
    streamed = open_streamed(str(save_tiny(tmp_path / "model", "llama")), device="cpu")
    decoder: Any = streamed.lm.decoder

    def loop(kind: str, input_ids: Any = None, inputs_embeds: Any = None, **_named: Any) -> None:
        first = inputs_embeds if inputs_embeds is not None else decoder.embed_tokens(input_ids)
        stream, rotary = first, decoder.rotary_emb(first, torch.arange(first.shape[1])[None])
        for layer in decoder.layers:
            given = {"position_embeddings": rotary, "attention_mask": None}
            if kind == "given":
                given["first_stream"] = first
            stream = layer(stream, **given)
            if kind == "changed":
                stream = stream + first

    def refusal(kind: str) -> str:
        decoder.forward = lambda **inputs: loop(kind, **inputs)
        try:
            whole = type(streamed.lm.model)
            StreamedModel(streamed.lm, whole, streamed.checkpoint, streamed.device)
        except UserError as error:
            return str(error)
        return ""

    assert refusal("plain") == ""
    assert "given more of the text" in refusal("given")
    assert "changes on its way" in refusal("changed")


MEASURE = """
import sys
from contrans_dist.engine.capture.streamed import capture_streamed
from contrans_dist.models.streaming import open_streamed

def most():  # not ru_maxrss: that begins with what the process that started this one had
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith("VmHWM"))

before = most()
streamed = open_streamed(sys.argv[1], device="cpu")
capture_streamed(streamed, [[5] * 40] * 16, batch_tokens=160, memory=0)
print(before, most(), streamed.checkpoint.nbytes)
"""


def test_peak_memory(tmp_path: Path) -> None:
    """Of a model of some hundred megabytes, never more than two blocks are in memory."""
    options = {"n_blocks": 16, "d": 768, "intermediate_size": 2048}
    save_tiny(tmp_path / "model", "llama", **options)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    before, peak, size = map(int, done.stdout.split())
    assert size > 350 << 20
    assert peak - before < 2 * size / 16 + (100 << 20)
