"""The harvesting engine against transformers' own hidden states and against texts run one by one."""

import logging

import numpy as np
import pytest
import torch

from contrans_dist.engine.capture import capture, capture_ids, plan_batches, truncate
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import LanguageModel, encode_many, load_model, wrap_model
from tests.tiny import ARCHITECTURES, CONTEXT, save_tiny, tiny_model, tiny_tokenizer
from tests.truth import block_states, canary

LENGTHS = [7, 100, 1, 3, 40, 2, 13, 5, 60, 21, 8, 7]


def _ids(seed: int = 0) -> list[list[int]]:
    """Random texts of very different lengths in no order, the first and the last the same."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(3, 290, size=length).tolist() for length in LENGTHS]
    return [*ids[:-1], ids[0]]


def _lm(architecture: str = "llama", **config) -> LanguageModel:
    return wrap_model(tiny_model(architecture, **config), tiny_tokenizer(), architecture)


def _deviation(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_what_transformers_says(architecture):
    lm, ids = _lm(architecture), _ids()
    rows = capture_ids(lm, ids, batch_tokens=200)
    assert list(rows) == [0, 1, 2, 3]
    alone = capture_ids(lm, ids, batch_tokens=1)
    assert canary(lm, ids, rows) < 1e-5
    for row, text in enumerate(ids):
        for block, states in block_states(lm, text).items():
            assert rows[block].dtype == np.float32
            assert _deviation(rows[block][row], states[-1]) < 1e-5
            assert _deviation(alone[block][row], states[-1]) < 1e-5
    assert rows.n_tokens.tolist() == LENGTHS
    assert rows.token_ids.tolist() == [text[-1] for text in ids]
    # The models can tell positions and blocks apart, or the above would prove nothing.
    by_block = block_states(lm, ids[1])
    assert _deviation(by_block[1][-1], by_block[1][-2]) > 0.1
    assert _deviation(by_block[1][-1], by_block[2][-1]) > 0.1


@pytest.mark.parametrize("position", ["mean", -2, 1, "-1"])
def test_positions(position):
    lm, ids = _lm("mistral"), [text for text in _ids() if len(text) > 1]
    rows = capture_ids(lm, ids, [0, 3], position, batch_tokens=150)
    for row, text in enumerate(ids):
        for block in (0, 3):
            states = block_states(lm, text)[block]
            expected = states.mean(axis=0) if position == "mean" else states[int(position)]
            assert _deviation(rows[block][row], expected) < 1e-5
    tokens = [-1 if position == "mean" else text[int(position)] for text in ids]
    assert rows.token_ids.tolist() == tokens
    assert canary(lm, ids, rows, position) < 1e-5


def test_wrong_positions_are_named():
    lm = _lm()
    with pytest.raises(UserError, match="text 2: position -2 asked for, but it has 1 tokens"):
        capture_ids(lm, _ids(), position=-2)
    with pytest.raises(UserError, match="--position middle: expected last, mean"):
        capture_ids(lm, _ids(), position="middle")


def test_batches_hold_every_text_once_and_keep_to_the_budget():
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 200, size=500).tolist()
    batches = plan_batches(lengths, 1000, split_at=150)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 1000 for batch in batches)
    assert all(len({lengths[i] > 150 for i in batch}) == 1 for batch in batches)
    # Two neighbours would not have fitted into one batch, but for the split.
    assert len(batches) < 1.2 * sum(lengths) / 1000 + 2
    assert plan_batches([5, 7], 3) == [[1], [0]]
    assert plan_batches([], 100) == []


def test_only_blocks_up_to_the_highest_run_and_no_hook_stays():
    lm = _lm()
    capture_ids(
        lm, _ids(), [2, 0], share_prefixes=False
    )  # what the model can do is tried with its first texts
    ran = []
    for i, block in enumerate(lm.blocks):
        mlp = block.get_submodule("mlp")
        mlp.register_forward_hook(lambda module, args, output, i=i: ran.append(i))
    lm.model.lm_head.register_forward_hook(lambda module, args, output: ran.append("head"))
    rows = capture_ids(lm, _ids(), [2, 0], batch_tokens=10**6, share_prefixes=False)
    assert list(rows) == [0, 2]
    assert ran == [0, 1, 2] * (len(ran) // 3) != []
    assert not any(block._forward_hooks for block in lm.blocks)


def test_no_hook_stays_after_an_exception():
    lm = _lm()
    handle = lm.blocks[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture_ids(lm, _ids())
    handle.remove()
    assert not any(block._forward_hooks for block in lm.blocks)
    assert capture_ids(lm, _ids())[3].shape == (12, 32)


def test_texts_in_and_rows_out():
    lm = _lm()
    texts = ["She felt sad", "home", "One day a bird asked the old man", "", "home"]
    rows = capture(lm, texts, blocks="0.75")
    assert list(rows) == [3]
    assert rows[3].shape == (5, 32)
    assert rows.n_tokens.tolist() == [len(ids) for ids in encode_many(lm, texts)]
    for row, ids in enumerate(encode_many(lm, texts)):
        assert _deviation(rows[3][row], block_states(lm, ids)[3][-1]) < 1e-5
    assert capture(lm, [])[0].shape == (0, 32)


def test_tokenizers_without_bos_and_pad():
    lm = wrap_model(tiny_model(), tiny_tokenizer(bos=False, pad=False))
    rows = capture(lm, ["home", "She felt sad and angry"], [1])
    for row, ids in enumerate(encode_many(lm, ["home", "She felt sad and angry"])):
        assert 0 not in ids
        assert _deviation(rows[1][row], block_states(lm, ids)[1][-1]) < 1e-5
    with pytest.raises(UserError, match="text 1: no tokens"):
        capture(lm, ["home", ""])


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_longer_than_the_context_keeps_bos_and_its_end(chat):
    lm = wrap_model(tiny_model("gpt2"), tiny_tokenizer(chat=True))
    texts = ["home", "The boy was happy because he had found his red ball. " * 20]
    ids = encode_many(lm, texts, chat)
    rows = capture(lm, texts, chat=chat)
    assert rows.truncated == [1]
    assert rows.n_tokens.tolist() == [len(ids[0]), CONTEXT]
    cut = [ids[1][0], *ids[1][-(CONTEXT - 1) :]]
    assert cut[0] == 0
    assert _deviation(rows[2][1], block_states(lm, cut)[2][-1]) < 1e-5
    assert capture(lm, texts[:1], chat=chat).truncated == []


def test_rotary_frequencies_that_depend_on_the_longest_text_of_a_batch():
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
    }
    lm, ids = _lm("phi3", rope_parameters=rope, original_max_position_embeddings=16), _ids()
    assert lm.split_at == 16
    assert canary(lm, ids, capture_ids(lm, ids, batch_tokens=10**6)) < 1e-5
    lm.split_at = None
    assert canary(lm, ids, capture_ids(lm, ids, batch_tokens=10**6)) > 1e-3


def test_nan_and_infinity_are_reported():
    lm = _lm()
    texts = ["They went to the park", "home", "The old man", "home"]
    ids = encode_many(lm, texts)
    token = ids[1][-1]
    bad = [row for row, text in enumerate(ids) if token in text]
    assert bad[0] == 1
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[token] = float("nan")
    rows = capture_ids(lm, ids)
    assert rows.bad_rows() == bad
    assert rows.first_bad_block() == 0
    named = ", ".join(map(str, bad))
    with pytest.raises(RunError, match=f"texts {named}, first at block 2 .*--dtype"):
        capture(lm, texts, blocks=[2, 3])


def test_bfloat16():
    exact, lm = _lm(), _lm()
    lm.model.bfloat16()
    rows, reference = capture_ids(lm, _ids()), capture_ids(exact, _ids())
    for block, expected in reference.items():
        assert rows[block].dtype == np.float32
        cosine = (rows[block] * expected).sum(axis=1)
        cosine /= np.linalg.norm(rows[block], axis=1) * np.linalg.norm(expected, axis=1)
        assert cosine.min() > 0.999
        # Float32 holds bfloat16 without loss.
        assert np.array_equal(torch.tensor(rows[block]).bfloat16().float().numpy(), rows[block])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so_once(caplog, error):
    lm, ids = _lm(), _ids()
    expected = capture_ids(lm, ids)
    sizes = []

    def full(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        sizes.append(hidden.shape[0] * hidden.shape[1])
        if sizes[-1] > 150:
            raise error

    handle = lm.blocks[1].register_forward_pre_hook(full, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        rows = capture_ids(lm, ids, batch_tokens=1000)
        assert max(sizes) > 150
        sizes.clear()
        # What was learnt holds for the next texts: a harvest captures piece after piece.
        capture_ids(lm, ids, batch_tokens=1000)
        assert max(sizes) <= 150
    assert len(caplog.records) == 1
    for block, values in expected.items():
        assert _deviation(rows[block], values) < 1e-5
    handle.remove()
    lm.blocks[0].register_forward_pre_hook(full, with_kwargs=True)
    lm.context = None
    with pytest.raises(RunError, match="text 1: its 200 tokens alone do not fit"):
        capture_ids(lm, [[5], [5] * 200])


def test_another_error_of_a_gpu_is_none_of_memory() -> None:
    lm = _lm()

    def fail(*_args: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    lm.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        capture_ids(lm, _ids())
    assert lm.fits is None


def test_a_model_cut_over_devices(tmp_path):
    folder = str(save_tiny(tmp_path / "model", "llama"))
    whole = load_model(folder, device="cpu")
    places = {"embed_tokens": "cpu", "rotary_emb": "cpu", "norm": "cpu"}
    places |= {f"layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    lm = load_model(folder, device=places, head=False)
    assert next(lm.blocks[3].parameters()).device.type == "meta"
    rows, expected = capture_ids(lm, _ids()), capture_ids(whole, _ids())
    for block in expected:
        np.testing.assert_allclose(rows[block], expected[block], rtol=1e-5, atol=1e-6)


def test_the_canary_sees_a_wrong_row():
    lm, ids = _lm(), _ids()
    rows = capture_ids(lm, ids, [1, 3])
    assert canary(lm, ids[:3], {block: values[:3] for block, values in rows.items()}) < 1e-5
    swapped = {block: values[[1, 0, 2]] for block, values in rows.items()}
    assert canary(lm, ids[:3], swapped) > 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "bloom", "mixtral", "gemma3"])
def test_a_gpu_gives_the_same_rows(architecture):
    lm, ids = _lm(architecture), _ids()
    expected = capture_ids(lm, ids)
    lm.model.cuda()
    for position in ("last", "mean"):
        rows = capture_ids(lm, ids, position=position, batch_tokens=200)
        assert canary(lm, ids, rows, position) < 1e-4
    rows = capture_ids(lm, ids, batch_tokens=200)
    for block in expected:
        assert _deviation(rows[block], expected[block]) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_loop_never_waits_for_the_gpu():
    lm, ids = _lm(), _ids()
    lm.model.cuda()
    capture_ids(lm, ids, batch_tokens=1000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        capture_ids(lm, ids, batch_tokens=1000)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_texts_longer_than_a_window_are_read_through_it() -> None:
    lm = wrap_model(tiny_model("mistral"), tiny_tokenizer())
    window = lm.config.sliding_window
    assert isinstance(window, int)
    rng = np.random.default_rng(3)
    long = [rng.integers(3, 290, size=window + 5).tolist() for _ in range(2)]
    rows = capture_ids(lm, long, [3], batch_tokens=10**6)
    for i, text in enumerate(long):
        np.testing.assert_allclose(rows[3][i], block_states(lm, text)[3][-1], rtol=1e-4, atol=1e-5)


def test_a_spoilt_text_does_not_spoil_its_batch() -> None:
    """Also where it shares a row with others."""
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    ids = [[*range(5, 25), 30 + i, 7, 9] for i in range(12)]
    expected = capture_ids(lm, ids)
    with torch.no_grad():
        lm.decoder.get_input_embeddings().weight[299] = float("nan")  # type: ignore[operator, union-attr]
    rows = capture_ids(lm, [*ids, [*range(5, 25), 299, 4]], batch_tokens=10**6)
    assert rows.bad_rows() == [len(ids)]
    for block in expected:
        np.testing.assert_allclose(rows[block][: len(ids)], expected[block], rtol=1e-4, atol=1e-5)


def test_texts_longer_than_the_context_are_cut_before_they_are_run() -> None:
    lm = _lm("gpt2")
    assert lm.context == CONTEXT
    long = [5 + i % 200 for i in range(CONTEXT + 3)]
    told = f"text 1 has {CONTEXT + 3} tokens, the model's context holds {CONTEXT}"
    with pytest.raises(UserError, match=told):
        capture_ids(lm, [[5, 6], long])
    ids, cut = truncate(lm, [[5, 6], long])
    assert (cut, len(ids[1]), ids[1][-1]) == ([1], CONTEXT, long[-1])
    expected = block_states(lm, ids[1])[3][-1]
    np.testing.assert_allclose(capture_ids(lm, ids)[3][1], expected, rtol=1e-4, atol=1e-5)
